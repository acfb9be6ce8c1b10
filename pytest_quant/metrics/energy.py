"""Energy of a token, from a counter that is read around runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Protocol

from pytest_quant.errors import NotMeasured
from pytest_quant.gates.measurement import Quantity
from pytest_quant.metrics.rounds import Rounds, Run
from pytest_quant.stats.median import median_interval

PERIODS = 10
"""Updates of the counter that one run lasts at least: it is read too early or too late by one at most."""


class Counter(Protocol):
    """What :mod:`pytest_quant.hardware.energy` finds."""

    @property
    def period(self) -> float: ...

    def joules(self) -> float: ...


def counted(work: Callable[[], Run], counter: Counter) -> Run:
    """Run again and again until the counter has moved :data:`PERIODS` times; the joules of all of it over its tokens:
    waiting included and, where prompts are read anew for every run as with a static cache, reading them.

    :class:`NotMeasured` where the counter did not move.
    """
    runs: list[Run] = []
    start, begun = counter.joules(), time.perf_counter()
    while not runs or time.perf_counter() - begun < PERIODS * counter.period:
        runs.append(work())
    seconds, joules = time.perf_counter() - begun, counter.joules() - start
    if joules <= 0.0:
        raise NotMeasured(f"the energy counter did not move in {seconds:.1f} s")
    return Run(sum(run.tokens for run in runs), seconds, joules=joules)


def energy(rounds: Rounds, alpha: float) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Quantities ``ratio``, the format's joules a token over the reference's in the median of the rounds, and
    ``joules`` a token of the format; and the figures behind them."""
    ours = [_joules(run) for run in rounds.ours]
    theirs = [_joules(run) for run in rounds.theirs]
    value, low, high = median_interval([mine / other for mine, other in zip(ours, theirs, strict=True)], alpha)
    quantities = {"ratio": Quantity(value, max(low, 0.0), high, "x")}
    value, low, high = median_interval(ours, alpha)
    quantities["joules"] = Quantity(value, max(low, 0.0), high, "J/tok")
    watts = {
        f"{name}_watts": median(run.joules / run.seconds for run in runs if run.joules is not None)
        for name, runs in (("format", rounds.ours), ("reference", rounds.theirs))
    }
    figures = {"format_value": median(ours), "reference_value": median(theirs), **watts}
    return quantities, figures


def _joules(run: Run) -> float:
    if run.joules is None:
        raise ValueError("a run without an energy counter")
    return run.joules / run.tokens
