"""Memory of the device that the models run on: what is free, and the peak of a piece of work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

from pytest_quant.errors import NotMeasured
from pytest_quant.hardware import Device

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def free_bytes(device: Device) -> int | None:
    """Bytes that a model may still take on the device; ``None`` if it cannot be told."""
    if device.kind in ("cuda", "rocm"):
        import torch

        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    free = None if kib is None else kib * 1024
    if free is not None and device.memory_bytes is not None:
        return min(free, device.memory_bytes)
    return free


def give_back(device: Device) -> None:
    """Return what is no longer referred to, to the device and to the operating system."""
    gc.collect()
    if device.kind in ("cuda", "rocm"):
        import torch

        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_above_start(device: Device, work: Callable[[], object]) -> int:
    """Bytes by which memory rose at most while ``work`` ran, over what was held when it began.

    On CUDA from torch's allocator, on Linux from the kernel's high-water mark of resident memory, which
    is reset first. Elsewhere :class:`NotMeasured`.
    """
    give_back(device)
    if device.kind in ("cuda", "rocm"):
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        _CLEAR.write_text("5", encoding="ascii")
        start = _status("VmRSS")
        work()
        return max(0, _status("VmHWM") - start)
    except OSError as error:
        raise NotMeasured(
            f'the peak memory of a process cannot be measured on this system ({error}); use memory_budget(of="weights")'
        ) from None


def _status(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in {_STATUS}")
