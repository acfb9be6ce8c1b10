"""Measures what no driver tells: the CPU's memory bandwidth. Never called by ``detect``."""

from __future__ import annotations

import time

SIZE = 256 * 2**20
"""Bytes of each of the two arrays: larger than the caches of all but a few servers."""


def measure_bandwidth(seconds: float = 0.2, size: int = SIZE) -> float:
    """Bytes a second that one thread moves when it copies memory to memory; the best of the copies made in ``seconds``.

    Counts every byte twice, as read and as written (a store's read-for-ownership, if the CPU does one, is not
    counted). One thread reaches less than the socket does, so this is a floor. Needs ``2 * size`` bytes of free memory
    and makes at least one copy, however short ``seconds`` is. Imports numpy. Raises ``MemoryError`` and, for a
    ``size`` below 8, ``ValueError``.
    """
    import numpy

    if size < 8:
        raise ValueError(f"size must be at least 8 bytes, found {size}")
    source = numpy.ones(size // 8)
    target = numpy.zeros(size // 8)
    target[:] = source  # touches every page once, unmeasured
    best = float("inf")
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        target[:] = source
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return 2.0 * source.nbytes / max(best, 1e-9)
