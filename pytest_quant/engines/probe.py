"""Measures what nobody publishes of a device: bytes a second of its memory, operations a second of its units.

A bound must not be beaten by a run, so that each figure is the best of many attempts with torch's own kernels on all
threads. Memory is read by a plain sum, which does little else; products of a matrix with one vector, as in decoding,
reach between a third and all of it, depending on the type.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Any

from pytest_quant.engines import memory
from pytest_quant.engines.transformers import PLACES
from pytest_quant.formats.backends.torch_native import DTYPES
from pytest_quant.hardware import Device
from pytest_quant.roofline.rates import Rates, published

MEASURED = "measured"
BEYOND_CACHES = 2**28
"""A working set that the caches of all but a few servers do not hold."""
_LEAST, _MOST = 64 * 2**10, 2**30
_FREE_PART = 8
_ONE_CALL = 32 * 2**20
"""Bytes that one timed read covers at least; smaller sets are read several times over, to outweigh the call."""
_SIZES = (512, 1024, 2048)
_GPU_SIZES = (2048, 4096, 8192)
_READING, _MULTIPLYING = 0.3, 0.2
"""Seconds for each figure."""


def measure(device: Device, working_set: int, numerics: Collection[str]) -> Rates:
    """Rates of the device: published ones where there are, and otherwise measured ones, of the memory that holds
    ``working_set`` bytes (a set that fits in a cache is read from it) and of the units in ``numerics``.

    Takes a third of a second for the memory and about as much for each numeric. What cannot be measured stays unknown:
    numerics that torch multiplies in on this device only after a conversion, a device that torch cannot use.
    """
    known = published(device)
    bandwidth, bandwidth_source = known.bandwidth, known.bandwidth_source
    if bandwidth is None:
        bandwidth = _tried(lambda: _bandwidth(device, working_set))
        bandwidth_source = "not known" if bandwidth is None else f"{MEASURED}: best of many reads by all threads"
    missing = [name for name in numerics if name not in known.operations]
    found = {name: _tried(lambda name=name: _operations(device, name)) for name in missing}  # type: ignore[misc]
    probed = {name: rate for name, rate in found.items() if rate is not None}
    sources = [known.operations_source] if known.operations else []
    if probed:
        sources.append(f"{MEASURED}: best of many products of square matrices ({', '.join(sorted(probed))})")
    return Rates(
        bandwidth=bandwidth,
        operations=MappingProxyType({**known.operations, **probed}),
        bandwidth_source=bandwidth_source,
        operations_source="; ".join(sources) or "not known",
    )


def _tried(probe: Callable[[], float | None]) -> float | None:
    """What a probe found; ``None`` where torch is not installed or refuses the device, the type or the memory."""
    try:
        return probe()
    except (ImportError, RuntimeError, NotImplementedError, AssertionError, MemoryError):
        return None


def _bandwidth(device: Device, working_set: int) -> float | None:
    import torch

    size = _size(working_set, memory.free_bytes(device))
    if size is None:
        return None
    with torch.inference_mode():
        values = torch.ones(size // 4, device=PLACES[device.kind])
        times = -(-_ONE_CALL // size)
        read = values.expand(times, -1)
        seconds = min(_best(device, work, _READING / 2) for work in (read.sum, read.amax))
    return times * values.nbytes / seconds


def _size(working_set: int, free: int | None) -> int | None:
    """Bytes to read: the working set between limits; ``None`` where not even that little is free."""
    most = _MOST if free is None else min(_MOST, free // _FREE_PART)
    return None if most < _LEAST else min(max(working_set, _LEAST), most)


def _operations(device: Device, numeric: str) -> float | None:
    """Operations a second of the largest square product that the time allows."""
    import torch

    best: float | None = None
    end = time.perf_counter() + _MULTIPLYING
    with torch.inference_mode():
        for size in _SIZES if device.kind == "cpu" else _GPU_SIZES:
            multiply = _product(device, numeric, size)
            if multiply is None:
                return None
            rate = 2.0 * size**3 / _best(device, multiply, _MULTIPLYING / len(_SIZES))
            best = rate if best is None else max(best, rate)
            if time.perf_counter() + 2 * 8 * 2.0 * size**3 / rate > end + _MULTIPLYING:
                break  # the next size takes eight times as long
    return best


def _product(device: Device, numeric: str, size: int) -> Callable[[], object] | None:
    import torch

    place = PLACES[device.kind]
    if numeric == "int8":
        whole = torch.ones((size, size), dtype=torch.int8, device=place)
        return lambda: torch._int_mm(whole, whole.t())
    if numeric not in DTYPES:
        return None
    matrix = torch.ones((size, size), dtype=getattr(torch, DTYPES[numeric]), device=place)
    return lambda: torch.nn.functional.linear(matrix, matrix)


def _best(device: Device, work: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest of the calls made in so much time; at least two, of which the first is not counted."""
    wait = _waiting(device)
    work()
    wait()
    best = float("inf")
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        wait()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return max(best, 1e-9)


def _waiting(device: Device) -> Callable[[], object]:
    """What waits until the device has done what it was asked."""
    import torch

    if device.kind in ("cuda", "rocm"):
        return torch.cuda.synchronize
    if device.kind == "xpu":
        return torch.xpu.synchronize
    return torch.mps.synchronize if device.kind == "mps" else (lambda: None)
