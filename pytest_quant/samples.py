"""What a gate draws from when it is not windows of text: items of a task, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_quant.metrics.answer import Answer

FIRST_LOOK = 16
"""Units before the first look: a bounded value's interval says nothing sooner."""


class Sample(Protocol):
    """Units of a finite population in a fixed random order, answered by a format and its reference."""

    noun: str
    """What a unit is, in the plural: ``items``, ``prompts``."""

    @property
    def total(self) -> int:
        """Units of the whole population."""

    @property
    def drawn(self) -> int:
        """Units that both models have answered, the first of the order."""

    @property
    def telling(self) -> bool:
        """Whether what was drawn says anything: not while neither model has anything right."""

    @property
    def reference_stored(self) -> int:
        """Of the units drawn, those for which the reference's answer came from the disk."""

    def extend(self, count: int) -> None:
        """Have both models answer up to ``count`` more."""

    def answer(self, alpha: float) -> Answer:
        """What the units drawn so far say, with intervals of the error rate ``alpha`` that hold at every look."""

    def identity(self) -> Mapping[str, Any]:
        """What the population is; two measurements are compared only where it is the same."""

    def detail(self) -> Mapping[str, Any]:
        """For people: which units changed, and how. Plain data."""


def next_look(drawn: int) -> int:
    """Units after which to look again: an eighth more, eight at least."""
    return drawn + max(8, drawn // 8)
