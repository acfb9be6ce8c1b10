"""Which layers a format hurts: what each does by itself, summed by kind and depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import Any

from pytest_quant.engines.candidates import KINDS, TABLES, Layer
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotFinite, NotMeasured
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


def described(row: Row) -> dict[str, Any]:
    """A row as plain JSON."""
    found: dict[str, Any] = {"name": row.layer.name, "kind": row.layer.kind, "weights": row.layer.weights}
    if row.layer.depth is not None:
        found["depth"] = row.layer.depth
    if row.layer.bytes_saved is not None:
        found["bytes_saved"] = row.layer.bytes_saved
    if not row.finite:
        return {**found, "finite": False}
    found |= {"nats": interval(row.nats), "kl": interval(row.kl)}
    if row.text is not None:
        found["text"] = {"nats": interval(row.text[0]), "kl": interval(row.text[1])}
    return found


def interval(estimate: Estimate) -> dict[str, float]:
    """An estimate as plain JSON; an end that is not bounded is absent."""
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
