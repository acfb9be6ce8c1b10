"""Energy: which counter tells what the device took, and its joules."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pytest_quant.errors import NotMeasured, Unsupported
from pytest_quant.hardware import nvidia, rapl, sysfs
from pytest_quant.hardware.device import Device

PERIOD = 0.1
"""Seconds between updates of NVML's counter. NVIDIA documents none; "approximately every 100 ms" is what ML.ENERGY
measured (ml.energy, "Thermally Stable Profiling for Accurate GPU Energy Measurement")."""


class Counter(Protocol):
    """Counts upwards from any origin; only differences mean something."""

    @property
    def source(self) -> str:
        """What is counted, and by whom."""
        ...

    @property
    def period(self) -> float:
        """Seconds between updates: a difference is off by up to one period's energy at each end."""
        ...

    def joules(self) -> float:
        """Raises :class:`~pytest_quant.errors.NotMeasured` where the counter can be read no more."""
        ...


def counter(
    device: Device,
    *,
    load: Callable[[], Any] = nvidia.load,
    environ: Mapping[str, str] | None = None,
    root: Path = sysfs.ROOT,
) -> Counter:
    """The energy counter of a device (of the first, where there are several); of all packages where it is a CPU.

    Raises :class:`~pytest_quant.errors.Unsupported` where there is none, or where it counts more than this device.
    """
    if device.kind == "cuda":
        return _nvidia(device, load, environ)
    if device.kind == "cpu":
        return rapl.packages(root)
    vendors = {"rocm": "AMD GPUs", "xpu": "Intel GPUs", "mps": "Apple's chips"}
    raise Unsupported(
        f"the energy that {device.name} takes",
        f"this version of pytest-quant reads no energy counter of {vendors.get(device.kind, device.kind)}",
        "an NVIDIA GPU (Volta or newer), or a CPU with RAPL on Linux",
    )


class NvmlCounter:
    """The board's counter: GPU, memory and converters, since the driver was loaded. Holds NVML while it lives."""

    source = "NVML (total energy of the board)"
    period = PERIOD

    def __init__(self, nvml: Any, handle: Any) -> None:
        """``nvml`` is initialized, and is this counter's to shut down."""
        self._nvml, self._handle = nvml, handle
        weakref.finalize(self, _shut_down, nvml)

    def joules(self) -> float:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise NotMeasured(f"the GPU's energy counter can no longer be read: NVML says {str(error)!r}") from error


def _nvidia(device: Device, load: Callable[[], Any], environ: Mapping[str, str] | None) -> Counter:
    asked = f"the energy that {device.name} takes"
    if device.partition is not None:
        raise Unsupported(
            asked,
            f"{device.partition}: NVML counts the energy of the whole board, not of a part",
            "a whole GPU (no MIG, no vGPU)",
        )
    try:
        nvml = load()
    except ImportError:
        raise Unsupported(asked, "no nvidia-ml-py", "pip install nvidia-ml-py") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise Unsupported(asked, f"NVML says {str(error)!r}", "a driver that answers NVML") from None
    try:
        found = nvidia.handles(nvml, environ)
        if found is None:
            raise Unsupported(
                asked,
                "NVML does not tell which of the GPUs is the first for CUDA",
                "CUDA_DEVICE_ORDER=PCI_BUS_ID, and in CUDA_VISIBLE_DEVICES a GPU that is here",
            )
        nvml.nvmlDeviceGetTotalEnergyConsumption(found.board)
    except nvml.NVMLError as error:
        _shut_down(nvml)
        raise Unsupported(asked, f"NVML says {str(error)!r}", "Volta or newer, and a driver that counts") from None
    except Unsupported:
        _shut_down(nvml)
        raise
    return NvmlCounter(nvml, found.board)


def _shut_down(nvml: Any) -> None:
    with suppress(nvml.NVMLError):
        nvml.nvmlShutdown()
