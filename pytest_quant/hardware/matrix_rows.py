"""What a support matrix is made of: an answer, a choice of devices, and rows that pair the two. Pure, no file is read.

``compute_capability`` is a pair such as ``(8, 9)`` and is only ever looked at on a device of kind ``cuda``: HIP
reports a gfx version in the same place, so that MI250 would pass for 9.0 and RDNA3 for 11.0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pytest_quant.hardware.device import Device

STATUSES = ("native", "dequantized", "unsupported", "unknown")
NUMERICS = (
    "fp32",
    "tf32",
    "fp16",
    "bf16",
    "fp8",
    "fp8_e5m2",
    "int8",
    "int4",
    "nf4",
    "fp4",
    "mxfp8",
    "mxfp4",
    "nvfp4",
)
"""Numeric types of the units table; ``fp8`` is e4m3, ``nf4`` and ``fp4`` are those of bitsandbytes."""
KINDS = ("cuda", "rocm", "xpu", "mps", "cpu")

_COMPARE: dict[str, Callable[[tuple[int, int], tuple[int, int]], bool]] = {
    "==": operator.eq,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Support:
    """One answer, with its reason.

    ``status`` of a numeric type on a device's units:

    * ``native``: the device multiplies in this type, on its matrix units where it has any for it. A dot-product
      instruction on the vector units of a GPU (dp4a, dot4, dot8) does not count;
    * ``dequantized``: emulated, the product runs in a wider type;
    * ``unsupported``: the type does not exist there, not even as storage;
    * ``unknown``: nobody has verified it. Never counts as native.

    Of a backend the same words say what its kernels do with the type: multiply in it, or unpack it first.
    """

    status: str
    reason: str
    source: str
    """Where the answer comes from: an experiment, a document, or a package's file and line."""
    needed: str = ""
    """What would be needed for a better answer; empty when there is none to want."""
    packages: tuple[str, ...] = ()
    """Requirements of a backend, as ``name>=version``; empty for units."""

    @property
    def runs(self) -> bool:
        return self.status in ("native", "dequantized")


@dataclass(frozen=True)
class Bound:
    """One condition on a compute capability: ``sign`` is ``== >= <= > <``."""

    sign: str
    version: tuple[int, int]

    def holds(self, version: tuple[int, int]) -> bool:
        return _COMPARE[self.sign](version, self.version)


@dataclass(frozen=True)
class Choice:
    """Which devices a row speaks of. Every condition that is not empty must hold.

    ``compute_capability`` is a list of alternatives, each of conditions that hold together; ``architecture`` and
    ``name`` are lists of alternative patterns (``gfx11??``), compared without regard to case; ``any_feature`` holds
    when the device has one of these instruction sets.
    """

    kinds: frozenset[str]
    compute_capability: tuple[tuple[Bound, ...], ...] = ()
    architecture: tuple[str, ...] = ()
    vendor: tuple[str, ...] = ()
    name: tuple[str, ...] = ()
    any_feature: frozenset[str] = frozenset()

    def matches(self, device: Device) -> bool:
        if device.kind not in self.kinds:
            return False
        if self.compute_capability and not self._capable(device):
            return False
        if self.any_feature and not self.any_feature & device.features:
            return False
        # ROCm writes gfx90a:sramecc+:xnack-
        architecture = device.architecture.partition(":")[0]
        return all(
            not patterns or any(fnmatchcase(found.lower(), pattern.lower()) for pattern in patterns)
            for patterns, found in (
                (self.architecture, architecture),
                (self.vendor, device.vendor),
                (self.name, device.name),
            )
        )

    def _capable(self, device: Device) -> bool:
        version = device.compute_capability
        if device.kind != "cuda" or version is None:
            return False
        return any(all(bound.holds(version) for bound in bounds) for bounds in self.compute_capability)


@dataclass(frozen=True)
class UnitsRow:
    """What some devices' units do with some numeric types."""

    devices: Choice
    cells: Mapping[str, Support]
    origin: str
    """The name of the matrix that the row was written for."""


@dataclass(frozen=True)
class BackendRow:
    """What a backend can run on some devices."""

    backend: str
    capabilities: tuple[str, ...]
    devices: Choice
    support: Support
    origin: str
