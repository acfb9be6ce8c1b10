"""The device: what was detected, as one immutable record."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One kind of device, as the driver or the operating system reports it.

    ``memory_bytes`` and ``bandwidth`` (bytes a second) are those of one device (of the
    slice, when it is partitioned); ``None`` means unknown, never zero.
    """

    kind: str
    """``cuda``, ``rocm``, ``xpu``, ``mps`` or ``cpu``."""
    vendor: str
    """``nvidia``, ``amd``, ``intel``, ``apple``, ``arm`` or ``unknown``."""
    name: str
    """As reported, e.g. ``NVIDIA A100-SXM4-80GB``."""
    architecture: str
    """``sm_80``, ``gfx942``, ``xe-hpc``, ``apple``, ``x86_64``, ``aarch64``."""
    count: int = 1
    """How many devices of this name are visible."""
    compute_capability: tuple[int, int] | None = None
    """NVIDIA only; HIP's pretended capability is never put here."""
    features: frozenset[str] = frozenset()
    """Instruction sets of a CPU: ``avx2 avx512 avx512_vnni avx_vnni avx512_bf16 avx_ne_convert amx_int8
    amx_bf16 amx_fp16 amx_fp8 dotprod i8mm bf16 sve``."""
    memory_bytes: int | None = None
    bandwidth: float | None = None
    bandwidth_source: str | None = None
    driver: str | None = None
    partition: str | None = None
    """``MIG 1g.10gb``, ``vGPU`` or ``None`` for a whole device."""
    notes: tuple[str, ...] = ()
    """Plain sentences about what could not be found out, and why."""

    @property
    def key(self) -> str:
        """The short hardware key of baselines: name, partition and count, never a driver or a host."""
        words = self.name if self.partition is None else f"{self.name} {self.partition}"
        words = re.sub(r"\((r|tm|c)\)", " ", words.lower())
        slug = re.sub(r"[^a-z0-9.]+", "-", words).strip("-.") or "unknown"
        return slug if self.count == 1 else f"{slug}-x{self.count}"

    def __str__(self) -> str:
        many = "" if self.count == 1 else f"{self.count} x "
        part = "" if self.partition is None else f" ({self.partition})"
        return f"{many}{self.name}{part} [{self.architecture}]"
