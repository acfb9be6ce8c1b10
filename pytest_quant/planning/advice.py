"""Which format to choose for a goal: a decision over predictions. Pure; it says only what bounds can say.

The flow: what cannot run or does not fit is out, and so is what misses a need even at best. Of the rest, quality takes
the most bits, latency the fewest bytes while decoding is bound by bandwidth, throughput what is native once it is bound
by compute, memory the fewest bytes; and what is as good within :data:`CLOSE` is decided by quality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_quant.planning import reasons
from pytest_quant.planning.grades import grade
from pytest_quant.planning.need import Need, misses, untold
from pytest_quant.planning.predict import Prediction
from pytest_quant.planning.reasons import per_sequence, per_step

CLOSE = 1.1
"""Bounds that differ by less than this factor do not tell two formats apart: kernels do."""


@dataclass(frozen=True)
class Advice:
    """The choice with its reasons, or why there is none."""

    chosen: Prediction | None
    reasons: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]
    """Formats that can run but are out, each with the arithmetic."""
    open: tuple[tuple[str, str], ...] = ()
    """Formats of which it cannot be told whether they meet the need."""

    @property
    def judged(self) -> bool:
        """Whether "none" is certain: bounds are optimistic, so that what misses a need at best, misses it."""
        return self.chosen is not None or not self.open


def advise(rows: Sequence[Prediction], need: Need, baseline: str = "fp16") -> Advice:
    """The format of ``rows`` for the need; ``baseline`` names the unquantized one that gains are counted against."""
    broken, unknown, candidates = [], [], []
    for row in rows:
        if miss := misses(row, need):
            broken.append((row.name, miss))
        elif doubt := untold(row, need):
            unknown.append((row.name, doubt))
        else:
            candidates.append(row)
    if not candidates:
        return Advice(None, tuple(reasons.for_none(rows, need)), tuple(broken), tuple(unknown))
    chosen = _choose(candidates, need.goal, baseline)
    cheaper = _cheaper(chosen, candidates, baseline) if need.goal == "quality" else None
    said = reasons.for_choice(chosen, candidates, rows, need, baseline, cheaper)
    return Advice(chosen, tuple(said), tuple(broken), tuple(unknown))


def _choose(candidates: Sequence[Prediction], goal: str, baseline: str) -> Prediction:
    if goal == "quality":
        best = min(grade(row.format).rank for row in candidates)
        candidates = [row for row in candidates if grade(row.format).rank == best]
        return _preferred(_nearest(candidates, per_step), baseline)
    by: dict[str, Callable[[Prediction], float]] = {
        "latency": per_step,
        "throughput": per_sequence,
        "memory": lambda row: float(row.memory.total),
    }
    near = _nearest(candidates, by[goal])
    best = min(grade(row.format).rank for row in near)
    return _preferred([row for row in near if grade(row.format).rank == best], baseline)


def _cheaper(chosen: Prediction, candidates: Sequence[Prediction], baseline: str) -> Prediction | None:
    """What the next grade of quality that is faster offers; ``None`` where none is."""
    below = [row for row in candidates if grade(row.format).rank > grade(chosen.format).rank]
    for rank in sorted({grade(row.format).rank for row in below}):
        found = _preferred(_nearest([row for row in below if grade(row.format).rank == rank], per_step), baseline)
        if per_step(found) < per_step(chosen):
            return found
    return None


def _nearest(rows: Sequence[Prediction], cost: Callable[[Prediction], float]) -> list[Prediction]:
    least = min(map(cost, rows))
    return [row for row in rows if cost(row) <= least * CLOSE or cost(row) == least]


def _preferred(rows: Sequence[Prediction], baseline: str) -> Prediction:
    """Of equals: the reference's own type, then what the units multiply in, floating point first (its range takes
    outliers), then the registry's order."""

    def order(row: Prediction) -> tuple[bool, bool, bool]:
        native = row.support.status == "native"
        narrow_float = native and row.format.weights.type == "float"
        return (not (native and row.name == baseline), not native, not narrow_float)

    return min(rows, key=order)
