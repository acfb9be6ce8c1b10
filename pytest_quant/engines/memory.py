"""Memory of the device that the models run on: what is free, and the peak of a piece of work."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quant.errors import NotMeasured
from pytest_quant.hardware import Device, cgroup, sysfs

_EXHAUSTED = (
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "storage size calculation overflowed",  # more bytes than 64 bits count
    "out of memory",  # CUDA, HIP, MPS, XPU
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusparse_status_insufficient_resources",
    "hipblas_status_alloc_failed",
    "rocblas_status_memory_error",
    "miopenstatusallocfailed",
    "out_of_device_memory",  # SYCL
    "out_of_host_memory",
    "cannot allocate memory",  # ENOMEM in words, of mmap say
)
"""What errors of no class of their own say, in small letters."""


def free_bytes(device: Device, root: Path = sysfs.ROOT) -> int | None:
    """Bytes that a model may still take on the device; ``None`` if it cannot be told.

    On a GPU what the driver has left, and what torch's allocator keeps for later; on a CPU what the system could give
    without swapping, less where a control group's limit leaves less.
    """
    if device.kind in ("cuda", "rocm"):
        import torch

        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + kept
    if device.kind != "cpu":
        return None
    lines = (sysfs.text(root / "proc/meminfo") or "").splitlines()
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    limits = (None if kib is None else kib * 1024, device.memory_bytes, cgroup.memory_free(root))
    return None if kib is None else min(limit for limit in limits if limit is not None)


def free_on(number: int) -> int:
    """The same of one GPU, by its number."""
    import torch

    kept = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
    return int(torch.cuda.mem_get_info(number)[0]) + kept


def give_back(device: Device) -> None:
    """Return what is no longer referred to, to the device and to the operating system."""
    gc.collect()
    if device.kind in ("cuda", "rocm"):
        import torch

        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_above_start(device: Device, work: Callable[[], object], places: Sequence[str] = ()) -> int:
    """Bytes by which torch's allocations rose at most while ``work`` ran, over what was held when it began.

    On CUDA the allocator's own mark. On a CPU every allocation and release is recorded by torch's profiler, so
    that the same code gives the same bytes; resident memory would tell of the C library's caches as much.
    Of several devices, named by ``places``, the marks of each are added. Elsewhere :class:`NotMeasured`.
    """
    give_back(device)
    if device.kind == "cpu":
        return _peak_of_events(work)
    if device.kind not in ("cuda", "rocm"):
        raise NotMeasured(
            f'the peak memory on {device.kind} cannot be measured by this version; use memory_budget(of="weights")'
        )
    import torch

    used = places or (torch.cuda.current_device(),)
    before = {}
    for place in used:
        torch.cuda.synchronize(place)
        torch.cuda.reset_peak_memory_stats(place)
        before[place] = torch.cuda.memory_allocated(place)
    work()
    for place in used:
        torch.cuda.synchronize(place)
    return int(sum(torch.cuda.max_memory_allocated(place) - before[place] for place in used))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch, its libraries, numpy or the system says that memory did not suffice."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # ValueError: numpy, of an array of more bytes than 63 bits count
    return (
        isinstance(error, RuntimeError) and any(said in text.lower() for text in _texts(error) for said in _EXHAUSTED)
    ) or (isinstance(error, ValueError) and str(error).startswith("array is too big"))


def origin_out_of_memory(error: BaseException) -> BaseException | None:
    """The error itself, or the one that it came from, that says that memory did not suffice; ``None`` where none
    does."""
    return next((each for each in _chain(error) if is_out_of_memory(each)), None)


def drop_frames(error: BaseException) -> None:
    """Let go of what an error holds on to, and those that it came from: the frames of what has ended, whose variables
    are tensors of a model half loaded, say. Nobody can look into them any more."""
    for each in _chain(error):
        frames = [frame for frame, _ in traceback.walk_tb(each.__traceback__)]
        traceback.clear_frames(each.__traceback__)
        for frame in frames:  # before Python 3.13 a frame that was looked at keeps a copy, until it is looked at again
            _ = frame.f_locals
        each.__traceback__ = None


def recover(device: Device) -> None:
    """Give back what a test's own code held when it ran out of memory: pytest keeps the frames of the last failure for
    a debugger, and so does pytest-rerunfailures."""
    last = getattr(sys, "last_value", None)
    if isinstance(last, BaseException) and last.__traceback__ is not None and origin_out_of_memory(last) is not None:
        drop_frames(last)
        sys.last_traceback = None
        give_back(device)


def first_line(error: BaseException) -> str:
    """What an error says, as one line of at most 200 characters."""
    text = next((text for text in _texts(error) if any(said in text.lower() for said in _EXHAUSTED)), str(error))
    lines = [line.strip() for line in text.strip().splitlines()]
    said = next((line for line in lines if any(word in line.lower() for word in _EXHAUSTED)), None)
    return (said or (lines[0] if lines else type(error).__name__))[:200]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and all that it came from, each once."""
    seen: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop(0)
        if each is not None and id(each) not in seen:
            seen[id(each)] = each
            yield each
            waiting += [each.__cause__, each.__context__]


def _texts(error: BaseException) -> Iterator[str]:
    """What an error says; and where it is the one with which transformers ends a conversion of weights, what went wrong
    there, of which it keeps the text alone."""
    yield str(error)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found: Any = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if isinstance(found, Mapping):
            yield from map(str, found.values())


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
