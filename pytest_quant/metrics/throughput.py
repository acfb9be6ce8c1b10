"""Throughput: speeds of the format and the reference, from rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Protocol

from pytest_quant.gates.measurement import Quantity
from pytest_quant.metrics.rounds import Rounds, Run
from pytest_quant.metrics.workload import Workload
from pytest_quant.stats.median import median_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOST_TURN, TURN = 0.03, 0.15
"""Seconds that one model decodes before it is the other's turn, on a CPU and on a device."""
_PERCENTILES = (50, 90, 99)


class Timed(Protocol):
    """What timing asks of an engine."""

    def prefill(self, prompt: NDArray[np.int64]) -> float: ...

    def first_token(self, prompt: NDArray[np.int64]) -> float: ...

    def start(self, prompt: NDArray[np.int64], new_tokens: int) -> None: ...

    def steps(self, count: int) -> list[float]: ...


class Player:
    """Runs a workload on one model, again and again."""

    def __init__(self, runner: Timed, work: Workload, prompts: NDArray[np.int64]) -> None:
        self._runner = runner
        self._work = work
        self._prompts = prompts
        self.step = 0.0
        """Seconds of a step of the last decode."""

    def whole(self) -> Run:
        """One run of it all."""
        if self._work.phase == "decode":
            return self.piece(0, self._work.new_tokens)
        timed = self._runner.prefill if self._work.phase == "prefill" else self._runner.first_token
        return Run(self._work.tokens, timed(self._prompts))

    def piece(self, first: int, count: int) -> Run:
        """``count`` steps of a decode, of which the one before made token ``first``; 0 reads the prompts before."""
        if first == 0:
            self._runner.start(self._prompts, self._work.new_tokens)
        steps = self._runner.steps(count)
        self.step = sum(steps) / count
        return Run(self._work.batch_size * count, sum(steps), tuple(steps))


def pieces(work: Workload, step: float, *, waits: bool) -> list[tuple[int, int]]:
    """First token and number of the steps of each piece that a run is cut into, so that the two models take turns in
    fractions of a second and see the same moments of a machine; ``step`` is what one takes, seconds. ``waits``: whether
    the host does the work itself; a device is given several steps, of which it begins one while the host still
    prepares the next."""
    count = min(work.new_tokens, max(1, round((HOST_TURN if waits else TURN) / step)))
    return [(first, min(count, work.new_tokens - first)) for first in range(0, work.new_tokens, count)]


def ratio(rounds: Rounds, alpha: float) -> Quantity:
    """The median over the rounds of the format's speed over the reference's, with an interval that holds at every round
    at once."""
    value, low, high = median_interval(rounds.ratios, alpha)
    return Quantity(value, max(low, 0.0), high, "x")


def figures(rounds: Rounds) -> Mapping[str, float]:
    """Speeds behind the ratio, tokens a second, and percentiles of the time between two tokens, milliseconds."""
    found = {
        "format_value": median(run.speed for run in rounds.ours),
        "reference_value": median(run.speed for run in rounds.theirs),
    }
    for name, runs in (("format", rounds.ours), ("reference", rounds.theirs)):
        found.update({f"{name}_{key}": value for key, value in _latencies(runs).items()})
    return found


def _latencies(runs: Iterable[Run]) -> Mapping[str, float]:
    """``inter_token_p50_ms`` and the like over all steps of all runs; nothing where steps were not timed."""
    import numpy as np

    steps = [step for run in runs for step in run.steps]
    if not steps:
        return {}
    values = np.percentile(steps, _PERCENTILES)
    return {f"inter_token_p{p}_ms": 1e3 * float(value) for p, value in zip(_PERCENTILES, values, strict=True)}
