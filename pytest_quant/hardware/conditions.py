"""Watches the device during a measurement, for whatever would make its number untrue."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_quant.hardware import nvidia, sysfs
from pytest_quant.hardware.condition import NAMES, Condition, Conditions
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.watch_cpu import CpuWatch
from pytest_quant.hardware.watch_nvidia import GpuWatch

__all__ = ["NAMES", "Condition", "Conditions", "Watch"]


class Watch:
    """Around one measurement: :meth:`start` before it, :meth:`look` between its rounds, :meth:`stop` after it.

    ``workers`` is the number of pytest workers that share the machine, this one included; 0 or 1 where it runs alone.
    On an NVIDIA GPU ``start`` belongs after the model was loaded, so that this process is among those of the GPU. NVML
    is held from ``start`` to ``stop``. The CPU is watched beside a GPU too: what launches its kernels runs there.

    Nothing is raised: what cannot be asked is neither found nor among the figures. The rest of the arguments is for
    tests.
    """

    def __init__(
        self,
        device: Device,
        *,
        workers: int = 0,
        load: Callable[[], Any] = nvidia.load,
        environ: Mapping[str, str] | None = None,
        root: Path = sysfs.ROOT,
        pid: int | None = None,
        cpus: Collection[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        pid = os.getpid() if pid is None else pid
        self._always = _static(device, workers)
        self._parts: list[CpuWatch | GpuWatch] = [CpuWatch(root, pid, cpus, clock)]
        if device.kind == "cuda":
            self._parts.append(GpuWatch(load, environ, root, pid, clock))

    def start(self) -> None:
        """Begin; where it has begun already, begin again."""
        for part in self._parts:
            with suppress(Exception):
                part.start()

    def look(self) -> None:
        """What only shows at the moment: clocks, throttling, heat, power and other processes of a GPU. Some calls of
        NVML, and nothing on a CPU, where everything is counted by the kernel. Does nothing outside start and stop."""
        for part in self._parts:
            with suppress(Exception):
                part.look()

    def stop(self) -> Conditions:
        """End, and say what was found since :meth:`start`; without one, only what needs no watching."""
        found: list[Condition] = list(self._always)
        figures: dict[str, float] = {}
        for part in self._parts:
            with suppress(Exception):
                seen = part.stop()
                found += seen.found
                figures.update(seen.figures)
        return Conditions(_merged(found), figures)


def _static(device: Device, workers: int) -> tuple[Condition, ...]:
    found = []
    if device.partition is not None and device.partition.startswith("MIG"):
        found.append(Condition("mig", f"on {device.partition}, whose neighbours share the board's power and clocks"))
    elif device.partition == "vGPU":
        found.append(Condition("vgpu", f"on the vGPU {device.name}, which shares the GPU with other guests"))
    if workers > 1:
        others = f"{workers - 1} other pytest worker{'' if workers == 2 else 's'}"
        found.append(Condition("workers", f"beside {others}"))
    return tuple(found)


def _merged(found: list[Condition]) -> tuple[Condition, ...]:
    """One condition a name: the CPU and the GPU can both be too hot."""
    texts: dict[str, list[str]] = {}
    for condition in found:
        texts.setdefault(condition.name, []).append(condition.text)
    return tuple(Condition(name, "; ".join(parts)) for name, parts in texts.items())
