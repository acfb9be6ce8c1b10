"""Which layers a format hurts: what each does by itself, summed by kind and depth, and how many to keep wide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_quant.engines.candidates import KINDS, TABLES, Layer
from pytest_quant.errors import NotFinite, UsageError
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
    """The windows that a scan used, the first of those it was asked for, and what its intervals hold at."""

    nll: tuple[float, ...]
    """The reference's, of each window, nats a token (or word)."""
    weights: tuple[float, ...]
    """What each window's NLL counts: its predicted tokens, or words."""
    tokens: tuple[int, ...]
    total: int
    """Windows asked for: the finite population."""
    alpha: float
    """Error rate of all intervals together."""
    text: int | None = None
    """Windows of the whole text, of which these are the first drawn."""

    @property
    def used(self) -> int:
        return len(self.nll)

    @property
    def reference_perplexity(self) -> float:
        """Of the windows used."""
        return perplexity(sequence.mean(self.nll, self.weights, self.total, 0.5).value)

    def of_text(self, effect: Effect) -> tuple[Estimate, Estimate] | None:
        """Nats and KL over the whole text, each interval by itself at the error rate; None where these windows are all
        there is, or bound nothing."""
        if self.text is None or self.text <= self.used or not effect.finite:
            return None
        nats = sequence.mean(effect.nats, self.weights, self.text, self.alpha)
        kl = sequence.mean(effect.kl, [float(count) for count in self.tokens], self.text, self.alpha)
        return (nats, replace(kl, low=max(kl.low, 0.0))) if math.isfinite(nats.low) else None

    def estimates(self, effect: Effect, questions: int) -> tuple[Estimate, Estimate]:
        """Nats and KL over all windows asked for, each at its share of the error; infinite where the changed model gave
        NaN or infinity."""
        if not effect.finite:
            broken = Estimate(math.inf, math.inf, math.inf)
            return broken, broken
        alpha = self.alpha / questions
        nats = sequence.mean(effect.nats, self.weights, self.total, alpha)
        kl = sequence.mean(effect.kl, [float(count) for count in self.tokens], self.total, alpha)
        return nats, replace(kl, low=max(kl.low, 0.0))


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

    @property
    def questions(self) -> int:
        """Quantities that are bounded at once: nats and KL of each row."""
        return 2 * len(self.rows)

    def detail(self, top: int = 5) -> list[dict[str, Any]]:
        """The worst layers for people and for JSON."""
        return [described(row) for row in self.rows[:top]]

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
        if self.left_out:
            found["left_out"] = list(self.left_out)
        return found


def scanned(layers: Sequence[Layer], effects: Sequence[Effect], sample: Sampled) -> tuple[Row, ...]:
    """The rows of a scan, the worst by KL first; what gave NaN or infinity before all."""
    rows = []
    for layer, effect in zip(layers, effects, strict=True):
        nats, kl = sample.estimates(effect, 2 * len(layers))
        rows.append(Row(layer, effect, nats, kl, sample.of_text(effect)))
    return tuple(sorted(rows, key=lambda row: (-row.kl.value, row.layer.depth or 0, row.layer.name)))


def answer(scan: Scan) -> Answer:
    """What a gate on the worst layer is told: quantities ``nats`` and ``kl`` of the layer with the highest. Their
    intervals hold for all layers at once: the highest is at least the highest lower end, at most the highest upper one.

    The scores are the windows' of the layer with most nats. :class:`NotFinite` where a layer in the format gives NaN.
    """
    if broken := [row.layer.name for row in scan.rows if not row.finite]:
        some = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise NotFinite(
            f"{scan.model} gives NaN or infinity with {len(broken)} of its {len(scan.rows)} layers in {scan.format} by "
            f"themselves: {some}"
        )
    worst = max(scan.rows, key=lambda row: row.nats.value)
    figures = {
        "layers": float(len(scan.rows)),
        "reference_value": scan.sample.reference_perplexity,
        "sum_nats": math.fsum(row.nats.value for row in scan.rows),
        "sum_kl": math.fsum(row.kl.value for row in scan.rows),
    }
    if scan.whole.finite:
        figures |= {"whole_nats": scan.whole.nats.value, "whole_kl": scan.whole.kl.value}
    return Answer(
        "nats",
        {"nats": _highest([row.nats for row in scan.rows]), "kl": _highest([row.kl for row in scan.rows])},
        figures,
        list(worst.effect.nats),
        list(scan.sample.weights),
    )


def _highest(found: Sequence[Estimate]) -> Quantity:
    worst = max(found, key=lambda estimate: estimate.value)
    low, high = (max(getattr(estimate, end) for estimate in found) for end in ("low", "high"))
    return Quantity(worst.value, low, high, "nats", worst.detectable)


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
class Kept:
    """The answer to a budget: which layers stay wide, and what was measured of the mix."""

    budget: Budget
    limit: float
    """The budget in nats."""
    rows: tuple[Row, ...]
    """What is kept, the worst first; none where the whole format holds."""
    holds: bool
    """Whether the mix keeps the budget; False: not even with every layer of the scan kept."""
    guess: int
    """How many the sums of the rows would have kept."""
    nats: Estimate
    kl: Estimate
    """Of the mix, as it was measured on the scan's windows."""
    perplexity: float
    bytes_back: int | None
    """What keeping them costs; None where it is not known."""
    tried: tuple[tuple[int, float], ...]
    """How many were kept in each mix that was measured, and its nats."""

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        found: dict[str, Any] = {
            "budget": str(self.budget),
            "limit_nats": self.limit,
            "holds": self.holds,
            "layers": [row.layer.name for row in self.rows],
            "modules": [name for row in self.rows for name in row.layer.modules],
            "guess": self.guess,
            "perplexity": self.perplexity,
            "tried": [{"kept": count, "nats": nats} for count, nats in self.tried if math.isfinite(nats)],
        }
        if math.isfinite(self.nats.value):
            found |= {"nats": _interval(self.nats), "kl": _interval(self.kl)}
        if self.bytes_back is not None:
            found["bytes_back"] = self.bytes_back
        return {name: value for name, value in found.items() if value == value and value not in (math.inf, -math.inf)}


def keep(scan: Scan, budget: Budget, measure: Callable[[Sequence[Row]], Effect]) -> Kept:
    """The fewest of the worst layers (by KL) that must stay wide for the rest to keep the budget.

    The sums of the rows, scaled to what the whole format does, give the first guess; ``measure``, which is given the
    layers that stay wide, says what the mix really does in the scan's windows, and the number is corrected by that
    until it holds and one fewer does not.
    """
    limit, rows = budget.nats(scan.sample.reference_perplexity), scan.parts
    found: dict[int, Effect] = {0: scan.whole.effect}

    def effect(count: int) -> Effect:
        if count not in found:
            found[count] = measure(rows[:count])
        return found[count]

    def value(count: int) -> float:
        return scan.sample.estimates(effect(count), 2)[0].value

    guess = first_guess([row.nats.value for row in rows], scan.whole.nats.value, limit)
    count = fewest(len(rows), guess, lambda kept: value(kept) <= limit)
    kept = rows if count is None else rows[:count]
    nats, kl = scan.sample.estimates(effect(len(kept)), 2)
    base = math.log(scan.sample.reference_perplexity)
    saved = [row.layer.bytes_saved for row in kept]
    return Kept(
        budget=budget,
        limit=limit,
        rows=tuple(kept),
        holds=count is not None,
        guess=guess,
        nats=nats,
        kl=kl,
        perplexity=perplexity(base + nats.value) if math.isfinite(nats.value) else math.inf,
        bytes_back=None if None in saved else sum(size or 0 for size in saved),
        tried=tuple((number, value(number)) for number in sorted(found)),
    )


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
