"""Which of a scan's layers must stay wide for a budget: guessed from what each does by itself, and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quant.errors import UsageError
from pytest_quant.metrics.evidence import perplexity
from pytest_quant.metrics.sensitivity import Effect, Row, Scan, interval
from pytest_quant.stats import sequence
from pytest_quant.stats.sequence import Estimate


@dataclass(frozen=True)
class Budget:
    """What a mix may cost: exactly one of these."""

    max_nats: float | None = None
    """NLL a token (or word) above the reference's."""
    max_delta: float | None = None
    """Perplexity above the reference's."""
    max_ratio: float | None = None
    """Perplexity over the reference's."""

    def __post_init__(self) -> None:
        told = [limit for limit in (self.max_nats, self.max_delta, self.max_ratio) if limit is not None]
        if len(told) != 1:
            raise UsageError("a budget is one of nats, a perplexity delta and a perplexity ratio")
        if isinstance(told[0], bool) or not isinstance(told[0], (int, float)):
            raise UsageError(f"a budget of {told[0]!r} is no number")
        if not math.isfinite(told[0]) or (self.max_ratio is not None and self.max_ratio <= 0):
            raise UsageError(f"a budget of {told[0]:g} cannot be kept or broken: give a finite number, a ratio above 0")

    def nats(self, reference_perplexity: float) -> float:
        """The same in nats; minus infinity where no perplexity above 0 keeps it."""
        if self.max_nats is not None:
            return self.max_nats
        ratio = self.max_ratio
        if self.max_delta is not None:
            ratio = 1.0 + self.max_delta / reference_perplexity
        assert ratio is not None
        return math.log(ratio) if ratio > 0 else -math.inf

    def __str__(self) -> str:
        if self.max_nats is not None:
            return f"{self.max_nats:g} nats"
        return f"{self.max_delta:+g} ppl" if self.max_delta is not None else f"{self.max_ratio:g}x"


@dataclass(frozen=True)
class Tried:
    """A mix that was measured."""

    order: str
    """``kl`` or ``nats``: what the layers were sorted by."""
    kept: int
    """How many of the first stayed wide."""
    nats: float


@dataclass(frozen=True)
class Kept:
    """The answer to a budget: which layers stay wide, and what was measured of the mix."""

    budget: Budget
    limit: float
    """The budget in nats."""
    rows: tuple[Row, ...]
    """What is kept, the worst first; none where the whole format holds."""
    holds: bool
    """Whether the mix keeps the budget; False: not even with every layer of the scan kept."""
    order: str
    """``kl`` or ``nats``: what the layers were sorted by, of which these are the first."""
    guess: int
    """How many the sums of the rows would have kept."""
    nats: Estimate
    kl: Estimate
    """Of the mix, as it was measured on the scan's windows, exact for these."""
    perplexity: float
    bytes_back: int | None
    """What keeping them costs; None where it is not known."""
    tried: tuple[Tried, ...]

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        found: dict[str, Any] = {
            "budget": str(self.budget),
            "limit_nats": self.limit,
            "holds": self.holds,
            "layers": [row.layer.name for row in self.rows],
            "modules": [name for row in self.rows for name in row.layer.modules],
            "order": self.order,
            "guess": self.guess,
            "perplexity": self.perplexity,
            "tried": [dict(vars(each)) for each in self.tried if math.isfinite(each.nats)],
        }
        if math.isfinite(self.nats.value):
            found |= {"nats": interval(self.nats), "kl": interval(self.kl)}
        if self.bytes_back is not None:
            found["bytes_back"] = self.bytes_back
        return {name: value for name, value in found.items() if value == value and value not in (math.inf, -math.inf)}


def keep(scan: Scan, budget: Budget, measure: Callable[[Sequence[Row]], Effect]) -> Kept:
    """The fewest layers that must stay wide for the rest to keep the budget, of those sorted by KL or of those sorted
    by nats, the worst first; by KL where both need as many, and by KL alone where the scan had fewer than 8 windows: in
    so few the order by nats is mostly chance, and what it chose does not hold in others.

    The sums of the rows, scaled to what the whole format does, give the first guess; ``measure``, which is given the
    layers that stay wide, says what the mix really does in the scan's windows, and the number is corrected by that
    until it holds and one fewer does not. A mix of the same layers is measured once.
    """
    limit = budget.nats(scan.sample.reference_perplexity)
    mixes = _Mixes(scan, measure)
    by_kl = _search(mixes, "kl", scan.parts, limit, len(scan.parts))
    found = by_kl
    if scan.sample.used >= sequence.MIN_WINDOWS and (by_kl.count is None or by_kl.count > 1):
        rows = tuple(sorted(scan.parts, key=lambda row: -row.nats.value))
        by_nats = _search(mixes, "nats", rows, limit, len(rows) if by_kl.count is None else by_kl.count - 1)
        found = by_nats if by_nats.count is not None else by_kl
    kept = found.rows if found.count is None else found.rows[: found.count]
    nats, kl = scan.sample.estimates(mixes.effect(kept))
    base = math.log(scan.sample.reference_perplexity)
    saved = [row.layer.bytes_saved for row in kept]
    return Kept(
        budget=budget,
        limit=limit,
        rows=kept,
        holds=found.count is not None,
        order=found.order,
        guess=found.guess,
        nats=nats,
        kl=kl,
        perplexity=perplexity(base + nats.value) if math.isfinite(nats.value) else math.inf,
        bytes_back=None if None in saved else sum(size or 0 for size in saved),
        tried=tuple(mixes.tried),
    )


class _Mixes:
    """What was measured of mixes, each once, by the layers that stay wide."""

    def __init__(self, scan: Scan, measure: Callable[[Sequence[Row]], Effect]) -> None:
        self._sample = scan.sample
        self._measure = measure
        self._found: dict[frozenset[str], Effect] = {frozenset(): scan.whole.effect}
        self.tried: list[Tried] = []

    def effect(self, kept: Sequence[Row]) -> Effect:
        key = frozenset(row.layer.name for row in kept)
        if key not in self._found:
            self._found[key] = self._measure(kept)
        return self._found[key]

    def nats(self, order: str, kept: Sequence[Row]) -> float:
        value = self._sample.estimates(self.effect(kept))[0].value
        self.tried.append(Tried(order, len(kept), value))
        return value

    @property
    def whole(self) -> float:
        return self._sample.estimates(self.effect(()))[0].value


@dataclass(frozen=True)
class _Found:
    """How many of the first rows must stay wide; None: not even all of them suffice."""

    order: str
    rows: tuple[Row, ...]
    count: int | None
    guess: int


def _search(mixes: _Mixes, order: str, rows: tuple[Row, ...], limit: float, most: int) -> _Found:
    guess = first_guess([row.nats.value for row in rows], mixes.whole, limit)
    count = fewest(most, guess, lambda kept: mixes.nats(order, rows[:kept]) <= limit)
    return _Found(order, rows, count, guess)


def first_guess(nats: Sequence[float], whole: float, limit: float) -> int:
    """How many of the first rows to keep if each did in company what it does by itself, times what all of them do
    together over their sum."""
    total = math.fsum(nats)
    if not math.isfinite(whole) or not math.isfinite(total):
        return sum(not math.isfinite(value) for value in nats)
    scale = whole / total if total > 0 and whole > 0 else 1.0
    return next((count for count in range(len(nats)) if scale * math.fsum(nats[count:]) <= limit), len(nats))


def fewest(most: int, guess: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number from 0 to ``most`` that holds, where more never hurts; None if none does. Begins at the guess
    and widens from there, so that a good guess costs two tries."""
    low, high, at, step = -1, most + 1, min(max(guess, 0), most), 1
    while high - low > 1:
        if holds(at):
            high = at
        else:
            low = at
        if low < 0:
            at = max(high - step, 0)
        elif high > most:
            at = min(low + step, most)
        else:
            at = (low + high) // 2
        step *= 2
    return None if high > most else high
