"""What made a measurement untrue: the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NAMES = (
    "other-process",
    "thermal-throttling",
    "power-throttling",
    "clocks",
    "mig",
    "vgpu",
    "cpu-load",
    "cpu-quota",
    "workers",
)
"""Every name that a condition can have; users name those that are usual on a runner."""


@dataclass(frozen=True)
class Condition:
    """One of :data:`NAMES`, and one clause with its figures, e.g. "others took 30% of the 2 CPUs"."""

    name: str
    text: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"a condition must be one of {', '.join(NAMES)}; found {self.name!r}")


@dataclass(frozen=True)
class Conditions:
    """What was found, in the order of :data:`NAMES`, and the figures behind it; what could not be asked is absent."""

    found: tuple[Condition, ...] = ()
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", tuple(sorted(self.found, key=lambda condition: NAMES.index(condition.name))))
