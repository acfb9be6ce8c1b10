"""Rounds: a run of the format and one of the reference, or a piece of each, side by side in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import SystemRandom

from pytest_quant.errors import NotMeasured

_COIN = SystemRandom()
BLOCK = 6
"""Runs of one model before the other is loaded, where both do not fit: together they are one run of a round."""


@dataclass(frozen=True)
class Run:
    """One timed run: seconds, of which each step took ``steps``, and joules where they were counted."""

    tokens: int
    seconds: float
    steps: tuple[float, ...] = ()
    joules: float | None = None

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


@dataclass
class Rounds:
    """Pairs of runs, of the format and of the reference; it only grows."""

    ours: list[Run] = field(default_factory=list)
    theirs: list[Run] = field(default_factory=list)
    spent: float = 0.0
    """Seconds that they took; where both models do not fit together, with loading and warming up."""

    def __len__(self) -> int:
        return len(self.ours)

    @property
    def ratios(self) -> list[float]:
        """The format's speed over the reference's, in each round."""
        return [ours.speed / theirs.speed for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def add(self, ours: Run, theirs: Run) -> None:
        """:class:`NotMeasured` where the clock saw no time pass."""
        if ours.seconds <= 0.0 or theirs.seconds <= 0.0:
            raise NotMeasured("the clock saw no time pass in a run; ask for more tokens")
        self.ours.append(ours)
        self.theirs.append(theirs)


def play(rounds: Rounds, ours: Callable[[], Run], theirs: Callable[[], Run]) -> None:
    """One round, the two in an order that a coin decides: for two models of the same speed either is then as likely to
    be the faster one, whatever the machine does meanwhile."""
    if _COIN.random() < 0.5:
        first = ours()
        rounds.add(first, theirs())
    else:
        second = theirs()
        rounds.add(ours(), second)


def block(load: Callable[[], Callable[[], Run]]) -> Run:
    """:data:`BLOCK` runs of a model that is loaded for them, as one. How fast a model is may depend on how it came to
    lie in memory, so that runs of one load are no independent runs."""
    run = load()
    runs = [run() for _ in range(BLOCK)]
    steps = tuple(step for each in runs for step in each.steps)
    joules = [each.joules for each in runs if each.joules is not None]
    return Run(
        sum(each.tokens for each in runs),
        sum(each.seconds for each in runs),
        steps,
        sum(joules) if len(joules) == BLOCK else None,
    )
