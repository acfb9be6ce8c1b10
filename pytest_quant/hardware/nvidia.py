"""NVIDIA GPUs, asked through NVML (``pynvml`` of the package nvidia-ml-py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quant.hardware import mig, specs, sysfs
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.visible import Place, select

VENDOR = 0x10DE


def load() -> Any:
    """The module ``pynvml``. Raises ``ImportError``."""
    import pynvml

    return pynvml


def find(
    load: Callable[[], Any] = load, environ: Mapping[str, str] | None = None, root: Path = sysfs.ROOT
) -> tuple[Device | None, tuple[str, ...]]:
    """The first GPU that CUDA would show, and how many of its name; else ``None`` and why, if there is a GPU at all.

    Honours ``CUDA_VISIBLE_DEVICES``. ``memory_bytes`` is NVML's total, ``bandwidth`` the published peak in bytes a
    second (of the slice, under MIG). NVML is always shut down again. Raises no NVML error.
    """
    try:
        nvml = load()
    except ImportError:
        return None, _unasked(root, "the Python package nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return None, _unasked(root, "the driver's library libnvidia-ml was not found")
        return None, (_refused(nvml, error),)
    try:
        return _find(nvml, os.environ if environ is None else environ)
    except nvml.NVMLError as error:
        return None, (_refused(nvml, error),)
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _unasked(root: Path, why: str) -> tuple[str, ...]:
    loaded = (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidiactl").exists()
    if not loaded and not sysfs.has_display_of(root, VENDOR):
        return ()
    return (f"There seems to be an NVIDIA GPU, but it could not be asked: {why}.",)


def _refused(nvml: Any, error: Any) -> str:
    said = f"NVIDIA's driver could not be asked: NVML says {str(error)!r}"
    if error.value == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return f"{said}: its library and its kernel module are of different versions (reload the module, or reboot)."
    if error.value == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return f"{said}: the library is installed, the kernel module is not loaded."
    return f"{said}."


@dataclass
class _Gpu:
    handle: Any
    name: str
    uuid: str
    mig: bool = False
    slices: list[Any] = field(default_factory=list)
    slice_names: dict[str, int] = field(default_factory=dict)


def _find(nvml: Any, environ: Mapping[str, str]) -> tuple[Device | None, tuple[str, ...]]:
    driver = _ask(nvml, "nvmlSystemGetDriverVersion")
    gpus, places, notes = _visible(nvml, environ)
    if not places:
        return None, tuple(notes)
    mask, order = environ.get("CUDA_VISIBLE_DEVICES"), environ.get("CUDA_DEVICE_ORDER")
    notes += _order_notes(gpus, places, mask, order)
    return _device(nvml, gpus, places, _text(driver), notes), ()


def _visible(nvml: Any, environ: Mapping[str, str]) -> tuple[list[_Gpu], list[Place], list[str]]:
    """The GPUs that answer, where those are that CUDA shows, and notes: why there are none, where there are none."""
    gpus, notes = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError as error:
            notes.append(f"The NVIDIA GPU number {index} could not be asked: NVML says {str(error)!r}.")
    if not gpus:
        return [], [], notes or ["NVIDIA's driver is loaded but reports no GPU."]
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    named = {name: (at, part) for at, gpu in enumerate(gpus) for name, part in gpu.slice_names.items()}
    chosen = select(mask, [gpu.uuid for gpu in gpus], named)
    if not chosen:
        return gpus, [], [f"CUDA_VISIBLE_DEVICES={mask!r} hides all {len(gpus)} NVIDIA GPUs that are here."]
    # CUDA takes the first slice of a GPU that is partitioned, and cannot use one that has no slice yet.
    places = [(at, 0 if gpus[at].mig and part is None else part) for at, part in chosen]
    places = [(at, part) for at, part in places if part is None or part < len(gpus[at].slices)]
    if not places:
        return gpus, [], ["MIG is enabled on the NVIDIA GPUs that are visible, but no instance has been created."]
    return gpus, places, notes


def entries(load: Callable[[], Any] = load, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """For each GPU that :func:`find` counts, what ``CUDA_VISIBLE_DEVICES`` must be for CUDA to show it alone: as the
    variable names it now, else its index, or its UUID where NVML and CUDA may count in different orders. Empty where
    NVML cannot be asked, and where GPUs are partitioned (MIG)."""
    environ = os.environ if environ is None else environ
    try:
        nvml = load()
        nvml.nvmlInit()
    except Exception:
        return ()
    try:
        gpus, places, _ = _visible(nvml, environ)
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()
    if not places or any(part is not None for _, part in places):
        return ()
    mask, order = environ.get("CUDA_VISIBLE_DEVICES"), environ.get("CUDA_DEVICE_ORDER")
    named = [str(at) for at, _ in places] if mask is None else [entry.strip() for entry in mask.split(",")]
    if _by_index(mask) and _unordered(gpus, order):
        named = [gpus[at].uuid for at, _ in places]
    first = gpus[places[0][0]].name
    return tuple(name for name, (at, _) in zip(named, places, strict=False) if gpus[at].name == first)


@dataclass(frozen=True)
class Handles:
    """NVML's handles of the GPU that ``cuda:0`` is: of the board, and of the slice where it is partitioned (MIG)."""

    board: Any
    part: Any | None = None


def handles(nvml: Any, environ: Mapping[str, str] | None = None) -> Handles | None:
    """The GPU that :func:`find` answers, to ask more of it; ``nvml`` is initialized and stays so.

    ``None`` where CUDA shows none, and where NVML cannot tell which of several of different names is the first for
    CUDA (see ``CUDA_DEVICE_ORDER``). Raises NVML's error where the driver does not count its GPUs.
    """
    environ = os.environ if environ is None else environ
    gpus, places, _ = _visible(nvml, environ)
    mask, order = environ.get("CUDA_VISIBLE_DEVICES"), environ.get("CUDA_DEVICE_ORDER")
    if not places or (_by_index(mask) and _unordered(gpus, order)):
        return None
    at, part = places[0]
    return Handles(gpus[at].handle, None if part is None else gpus[at].slices[part])


def _by_index(mask: str | None) -> bool:
    return mask is None or not mask.strip().startswith(("GPU-", "MIG-"))


def _unordered(gpus: list[_Gpu], order: str | None) -> bool:
    return order != "PCI_BUS_ID" and len({gpu.name for gpu in gpus}) > 1


def _gpu(nvml: Any, handle: Any) -> _Gpu:
    gpu = _Gpu(
        handle, _text(nvml.nvmlDeviceGetName(handle)) or "", _text(_ask(nvml, "nvmlDeviceGetUUID", handle)) or ""
    )
    gpu.mig = (_ask(nvml, "nvmlDeviceGetMigMode", handle) or (0, 0))[0] == 1
    for index in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0 if gpu.mig else 0):
        part = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        if part is None:
            continue
        ids = _ask(nvml, "nvmlDeviceGetGpuInstanceId", part), _ask(nvml, "nvmlDeviceGetComputeInstanceId", part)
        for name in (_text(_ask(nvml, "nvmlDeviceGetUUID", part)), f"MIG-{gpu.uuid}/{ids[0]}/{ids[1]}"):
            gpu.slice_names[name or ""] = len(gpu.slices)
        gpu.slices.append(part)
    return gpu


def _order_notes(gpus: list[_Gpu], places: list[Place], mask: str | None, order: str | None) -> list[str]:
    notes = []
    if _by_index(mask) and _unordered(gpus, order):
        notes.append(
            "The NVIDIA GPUs here are of different names, and CUDA numbers the fastest first where NVML follows the "
            "PCI bus: another GPU than this may be used. Set CUDA_DEVICE_ORDER=PCI_BUS_ID to be sure."
        )
    others = sorted({gpus[at].name for at, _ in places} - {gpus[places[0][0]].name})
    if others:
        notes.append(f"Also visible: {', '.join(others)}.")
    if places[0][1] is not None and len(places) > 1:
        notes.append("Only the first of the visible MIG devices is counted.")
    return notes


def _device(nvml: Any, gpus: list[_Gpu], places: list[Place], driver: str | None, notes: list[str]) -> Device:
    at, part = places[0]
    gpu = gpus[at]
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu.handle)
    spec = specs.find(gpu.name)
    info = _ask(nvml, "nvmlDeviceGetMemoryInfo", gpu.handle)
    memory = None if info is None else int(info.total)
    partition, share = None, 1.0 if part is None else None
    if part is not None:
        held = mig.describe(nvml, gpu.slices[part], memory, spec)
        partition, memory, share = held.partition, held.memory_bytes, held.share
    elif _is_guest(nvml, gpu):
        partition, share = "vGPU", specs.guest_share(gpu.name)
        notes = [*notes, "This is a vGPU: its bandwidth is shared, so the published one is an upper limit."]
    if memory is None:
        notes = [*notes, "NVML does not tell this GPU's memory."]
    bandwidth = spec.bandwidth * share if spec and spec.bandwidth and share else None
    if bandwidth is None:
        notes = [*notes, f"The memory bandwidth of {gpu.name!r} is not known, so no speed is predicted."]
    elif spec and "bandwidth_tb_s" in spec.unsure:
        notes = [*notes, "The memory bandwidth in the specification table is unsure."]
    return Device(
        kind="cuda",
        vendor="nvidia",
        name=gpu.name,
        architecture=f"sm_{major}{minor}",
        count=sum(gpus[other].name == gpu.name for other, _ in places) if part is None else 1,
        compute_capability=(int(major), int(minor)),
        memory_bytes=memory,
        bandwidth=bandwidth,
        bandwidth_source=None if bandwidth is None else specs.SOURCE,
        driver=driver,
        partition=partition,
        notes=tuple(notes),
    )


def _is_guest(nvml: Any, gpu: _Gpu) -> bool:
    mode = _ask(nvml, "nvmlDeviceGetVirtualizationMode", gpu.handle)
    return specs.is_guest(gpu.name) if mode is None else bool(mode == nvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU)


def _ask(nvml: Any, question: str, *args: Any) -> Any:
    """NVML's answer, or ``None`` when the driver, the GPU or the bindings do not know the question."""
    try:
        return getattr(nvml, question)(*args)
    except (nvml.NVMLError, AttributeError):
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
