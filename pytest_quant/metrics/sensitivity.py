"""Which layers a format hurts: what each does by itself, summed by kind and depth, and how many to keep wide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import Any

from pytest_quant.engines.candidates import KINDS, TABLES, Layer
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotFinite, NotMeasured, UsageError
from pytest_quant.gates.measurement import Quantity
from pytest_quant.metrics.answer import Answer
from pytest_quant.metrics.evidence import perplexity
from pytest_quant.stats import sequence
from pytest_quant.stats.sequence import Estimate


@dataclass(frozen=True)
class Effect:
    """What a change of the model did in each window used: NLL in nats a token (or word) more than the reference's, and
    KL(reference || changed) in nats a token."""

    nats: tuple[float, ...]
    kl: tuple[float, ...]

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (*self.nats, *self.kl)))


@dataclass(frozen=True)
class Sampled:
    """The windows that a scan used, and what its intervals hold at. :class:`NotMeasured` where the reference's
    perplexity in them is no finite number."""

    nll: tuple[float, ...]
    """The reference's, of each window, nats a token (or word)."""
    weights: tuple[float, ...]
    """What each window's NLL counts: its predicted tokens, or words."""
    tokens: tuple[int, ...]
    alpha: float
    """Error rate of each interval."""
    text: int | None = None
    """Windows of the whole text, of which these are the first drawn."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.reference_perplexity):
            raise NotMeasured(
                f"the reference's perplexity in {self.used} windows is no finite number (mean NLL {self._mean:.4g} "
                f"nats): nothing can be compared with it"
            )

    @property
    def used(self) -> int:
        return len(self.nll)

    @property
    def total(self) -> int:
        """Windows asked for: all of them are used."""
        return self.used

    @property
    def reference_perplexity(self) -> float:
        """Of the windows used."""
        return perplexity(self._mean)

    @property
    def _mean(self) -> float:
        return math.fsum(map(mul, self.nll, self.weights)) / math.fsum(self.weights)

    def of_text(self, effect: Effect) -> tuple[Estimate, Estimate] | None:
        """Nats and KL over the whole text, each interval by itself at the error rate; None where these windows are all
        there is, or bound nothing."""
        if self.text is None or self.text <= self.used or not effect.finite:
            return None
        nats = sequence.mean(effect.nats, self.weights, self.text, self.alpha)
        kl = sequence.mean(effect.kl, [float(count) for count in self.tokens], self.text, self.alpha)
        return (nats, replace(kl, low=max(kl.low, 0.0))) if math.isfinite(nats.low) else None

    def estimates(self, effect: Effect) -> tuple[Estimate, Estimate]:
        """Nats and KL of these windows, exact; infinite where the changed model gave NaN or infinity."""
        if not effect.finite:
            broken = Estimate(math.inf, math.inf, math.inf)
            return broken, broken
        nats = sequence.mean(effect.nats, self.weights, self.used, self.alpha)
        return nats, sequence.mean(effect.kl, [float(count) for count in self.tokens], self.used, self.alpha)


@dataclass(frozen=True)
class Row:
    """One layer, and what putting it alone into the format does."""

    layer: Layer
    effect: Effect
    nats: Estimate
    kl: Estimate
    text: tuple[Estimate, Estimate] | None = None
    """Nats and KL over the whole text, as these windows tell; None where they do not."""

    @property
    def finite(self) -> bool:
        return self.effect.finite


@dataclass(frozen=True)
class Group:
    """The layers of one kind, or of one block, and the sum of what each does by itself."""

    name: str
    layers: int
    weights: int
    nats: float
    kl: float


@dataclass(frozen=True)
class Scan:
    """What a format does to a model, layer by layer."""

    model: str
    format: str
    """The format's name, or the rounding's."""
    reference: str
    of: str
    """``layer`` or ``block``."""
    rows: tuple[Row, ...]
    """The layer that hurts most, by KL, first."""
    whole: Row
    """All of the format at once, in a :class:`Layer` of its own: the format's own model or, for a rounding, all linear
    layers but tables."""
    sample: Sampled
    left_out: tuple[str, ...]
    """Matrices that a product uses and that are no module of their own, such as fused experts."""
    identity: Mapping[str, Any]
    """Of the protocol."""
    reused: bool
    """Whether the blocks before a layer were taken from the reference's run."""
    seconds: float
    source: ModelSource
    """The model as a command line names it."""
    complete: bool = True
    """Whether the rows are all layers that the format could have, or patterns of names chose some."""
    head: str | None = None
    """Full name of the output head."""
    group_size: int | None = None
    """Of a rounding with groups, as asked."""
    smaller_groups: tuple[int, ...] = ()
    """Group sizes in use where that one does not divide a layer's rows, the largest first."""

    @property
    def parts(self) -> tuple[Row, ...]:
        """The rows that formats can be told to leave wide: all but tables."""
        return tuple(row for row in self.rows if row.layer.kind not in TABLES)

    @property
    def kinds(self) -> tuple[Group, ...]:
        """By kind; the worst by KL first."""
        names = [kind for kind in (*KINDS, "block") if any(row.layer.kind == kind for row in self.rows)]
        groups = [_group(name, [row for row in self.rows if row.layer.kind == name]) for name in names]
        return tuple(sorted(groups, key=lambda group: -group.kl))

    @property
    def depths(self) -> tuple[Group, ...]:
        """By decoder block, from the input to the output."""
        depths = sorted({row.layer.depth for row in self.rows if row.layer.depth is not None})
        return tuple(_group(str(depth), [row for row in self.rows if row.layer.depth == depth]) for depth in depths)

    def record(self) -> dict[str, Any]:
        """Plain JSON: no NaN, no infinity; a number that there is not is absent."""
        found: dict[str, Any] = {
            "schema": 1,
            "model": self.model,
            "format": self.format,
            "reference": self.reference,
            "of": self.of,
            "windows": {"used": self.sample.used, "total": self.sample.total},
            "confidence": 1.0 - self.sample.alpha,
            "reference_perplexity": self.sample.reference_perplexity,
            "whole": {name: value for name, value in described(self.whole).items() if name in ("nats", "kl", "finite")},
            "layers": [described(row) for row in self.rows],
            "kinds": [_plain(group, "kind") for group in self.kinds],
            "depths": [_plain(group, "depth") for group in self.depths],
            "reused": self.reused,
            "seconds": round(self.seconds, 3),
            "identity": dict(self.identity),
        }
        if not self.complete:
            found["complete"] = False
        if self.left_out:
            found["left_out"] = list(self.left_out)
        if self.smaller_groups:
            found["smaller_groups"] = list(self.smaller_groups)
        return found


def scanned(layers: Sequence[Layer], effects: Sequence[Effect], sample: Sampled) -> tuple[Row, ...]:
    """The rows of a scan, the worst by KL first; what gave NaN or infinity before all."""
    rows = []
    for layer, effect in zip(layers, effects, strict=True):
        rows.append(Row(layer, effect, *sample.estimates(effect), sample.of_text(effect)))
    return tuple(sorted(rows, key=lambda row: (-row.kl.value, row.layer.depth or 0, row.layer.name)))


def answer(scan: Scan, main: str = "nats") -> Answer:
    """What a gate on the worst layer is told: quantities ``nats`` and ``kl`` of the layer with the highest, exact for
    the windows of the scan. Tables are no part of a format, and of none of it.

    The scores are those of the layer with the most of ``main``, which is ``nats`` or ``kl``. :class:`NotFinite` where a
    layer in the format gives NaN, :class:`NotMeasured` where only tables were scanned.
    """
    rows = scan.parts
    if not rows:
        raise NotMeasured(f"only tables of {scan.model} were scanned in {scan.format}, which are no part of a format")
    if broken := [row.layer.name for row in rows if not row.finite]:
        some = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise NotFinite(
            f"{scan.model} gives NaN or infinity with {len(broken)} of its {len(rows)} layers in {scan.format} by "
            f"themselves: {some}"
        )
    worst = {"nats": max(rows, key=lambda row: row.nats.value), "kl": max(rows, key=lambda row: row.kl.value)}
    figures = {
        "layers": float(len(rows)),
        "reference_value": scan.sample.reference_perplexity,
        "sum_nats": math.fsum(row.nats.value for row in rows),
        "sum_kl": math.fsum(row.kl.value for row in rows),
    }
    if scan.whole.finite:
        figures |= {"whole_nats": scan.whole.nats.value, "whole_kl": scan.whole.kl.value}
    weights = {"nats": scan.sample.weights, "kl": tuple(map(float, scan.sample.tokens))}
    return Answer(
        main,
        {name: _quantity(getattr(row, name)) for name, row in worst.items()},
        figures,
        list(getattr(worst[main].effect, main)),
        list(weights[main]),
    )


def _quantity(found: Estimate) -> Quantity:
    return Quantity(found.value, found.low, found.high, "nats", found.detectable)


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
            found |= {"nats": _interval(self.nats), "kl": _interval(self.kl)}
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


def described(row: Row) -> dict[str, Any]:
    """A row as plain JSON."""
    found: dict[str, Any] = {"name": row.layer.name, "kind": row.layer.kind, "weights": row.layer.weights}
    if row.layer.depth is not None:
        found["depth"] = row.layer.depth
    if row.layer.bytes_saved is not None:
        found["bytes_saved"] = row.layer.bytes_saved
    if not row.finite:
        return {**found, "finite": False}
    found |= {"nats": _interval(row.nats), "kl": _interval(row.kl)}
    if row.text is not None:
        found["text"] = {"nats": _interval(row.text[0]), "kl": _interval(row.text[1])}
    return found


def _interval(estimate: Estimate) -> dict[str, float]:
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: end for name, end in ends.items() if math.isfinite(end)}


def _group(name: str, rows: Sequence[Row]) -> Group:
    return Group(
        name=name,
        layers=len(rows),
        weights=sum(row.layer.weights for row in rows),
        nats=math.fsum(row.nats.value for row in rows),
        kl=math.fsum(row.kl.value for row in rows),
    )


def _plain(group: Group, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {what: int(group.name) if what == "depth" else group.name, "layers": group.layers}
    found["weights"] = group.weights
    return found | {name: sum_ for name, sum_ in (("nats", group.nats), ("kl", group.kl)) if math.isfinite(sum_)}
