"""Memory of the device that the models run on: what is free, and the peak of a piece of work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pytest_quant.errors import NotMeasured
from pytest_quant.hardware import Device


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
    """Bytes by which torch's allocations rose at most while ``work`` ran, over what was held when it began.

    On CUDA the allocator's own mark. On a CPU every allocation and release is recorded by torch's profiler, so
    that the same code gives the same bytes; resident memory would tell of the C library's caches as much.
    Elsewhere :class:`NotMeasured`.
    """
    give_back(device)
    if device.kind == "cpu":
        return _peak_of_events(work)
    if device.kind not in ("cuda", "rocm"):
        raise NotMeasured(
            f'the peak memory on {device.kind} cannot be measured by this version; use memory_budget(of="weights")'
        )
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or numpy says that memory did not suffice."""
    import torch

    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return exhausted or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _peak_of_events(work: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces its start and stop on stderr
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    events = [event for event in results.events() if event.name() == "[memory]"] if results is not None else []
    level = peak = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
