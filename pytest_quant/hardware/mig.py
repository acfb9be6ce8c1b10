"""Slices of an NVIDIA GPU (MIG): what one of them holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pytest_quant.hardware.specs import Spec


@dataclass(frozen=True)
class Slice:
    """A MIG device: its profile (``MIG 1g.10gb``), its memory in bytes, and its share of the board's bandwidth."""

    partition: str
    memory_bytes: int | None
    share: float | None


def describe(nvml: Any, handle: Any, total: int | None, spec: Spec | None) -> Slice:
    """What NVML says about a MIG handle. ``total`` is the board's memory in bytes, if the caller may know it.

    The profile's name is computed as NVIDIA's go-nvlib does: memory is cut into eighths, of which a little is kept
    back, so the share is rounded up to an eighth and the name says that share of the board's GiB. What NVML refuses is
    ``None``; raises nothing.
    """
    if total is None and spec is not None:
        total = spec.memory_bytes
    memory = _memory(nvml, handle)
    try:
        attributes = nvml.nvmlDeviceGetAttributes_v2(handle)
    except (nvml.NVMLError, AttributeError):
        return Slice("MIG", memory, None if memory is None or total is None else _share(memory, total))
    held = int(attributes.memorySizeMB) << 20
    gpu, compute = int(attributes.gpuInstanceSliceCount), int(attributes.computeInstanceSliceCount)
    slices = f"{gpu}g" if gpu == compute else f"{compute}c.{gpu}g"
    if total is None:
        return Slice(f"MIG {slices}", memory or held, None)
    share = _share(held, total)
    gb = math.floor(share * math.ceil(total / 2**30) + 0.5)
    return Slice(f"MIG {slices}.{gb}gb", memory or held, share)


def _memory(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        return None


def _share(held: int, total: int) -> float:
    return min(8, math.ceil(8 * held / total)) / 8
