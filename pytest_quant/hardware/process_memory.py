"""What the operating system or the driver says that this process holds of a device's memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_quant.hardware import nvidia, sysfs
from pytest_quant.hardware.device import Device

PROCESS = "process_bytes"
"""What this process holds."""
DEVICE = "device_used_bytes"
"""What all processes on the device hold, where it cannot be told whose it is."""


def figures(
    device: Device,
    load: Callable[[], Any] = nvidia.load,
    environ: Mapping[str, str] | None = None,
    root: Path = sysfs.ROOT,
    pid: int | None = None,
) -> dict[str, float]:
    """:data:`PROCESS`, or :data:`DEVICE` where the process's own share is hidden; empty where neither is told.

    On a CPU the resident set of ``/proc/self/status``, on an NVIDIA GPU what NVML says: its context and libraries are
    in it, which no allocator counts. Inside a container NVML may list processes by the host's numbers, or none; Windows
    does not tell a process's bytes. Raises nothing.
    """
    if device.kind == "cpu":
        resident = _resident(root)
        return {} if resident is None else {PROCESS: float(resident)}
    if device.kind != "cuda":
        return {}
    try:
        nvml = load()
    except ImportError:
        return {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        mine = os.getpid() if pid is None else pid
        return _of_gpu(nvml, os.environ if environ is None else environ, mine)
    except (nvml.NVMLError, AttributeError):
        return {}
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _of_gpu(nvml: Any, environ: Mapping[str, str], pid: int) -> dict[str, float]:
    found = nvidia.handles(nvml, environ)
    if found is None:
        return {}
    handle = found.board if found.part is None else found.part
    with suppress(nvml.NVMLError, AttributeError):  # bindings that do not know the question
        for process in nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle):
            if process.pid == pid and process.usedGpuMemory is not None:
                return {PROCESS: float(process.usedGpuMemory)}
    return {DEVICE: float(nvml.nvmlDeviceGetMemoryInfo(handle).used)}


def _resident(root: Path) -> int | None:
    for line in (sysfs.text(root / "proc/self/status") or "").splitlines():
        words = line.split()
        if words[:1] == ["VmRSS:"] and words[2:] == ["kB"] and words[1].isdigit():
            return int(words[1]) * 1024
    return None
