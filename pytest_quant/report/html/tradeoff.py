"""What quality costs: formats by what they lose, against the memory that they take and the speed that they gain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quant.gates.gate import LIMITS, MAIN
from pytest_quant.report.html.drawing import ALLOWED, BAD, SERIES, SHAPES, Plot, Table, values
from pytest_quant.report.html.view import number
from pytest_quant.report.naming import shown_metric

Record = Mapping[str, Any]
_QUALITY = ("perplexity_delta", "kl_divergence", "token_agreement", "task_accuracy", "generation_match")
"""What quality is shown by: the first of these that was measured."""
_MEGA, _GIGA = 1e6, 1e9
_SAME = 1e-6
"""How far, relatively, two perplexities of one reference lie apart: the rounding of JSON and of sums."""


@dataclass(frozen=True)
class Amount:
    """A number with its interval, an end of which is infinite where it is not bounded; an exact one has the value at
    both ends."""

    value: float
    low: float
    high: float
    at_least: bool = False
    """Whether the value itself is only a lower bound."""

    @property
    def shown(self) -> str:
        ends = f" [{number(self.low)}, {number(self.high)}]" if self.low != self.high and not self.at_least else ""
        return f"{'at least ' if self.at_least else ''}{number(self.value)}{ends}"

    @property
    def is_open(self) -> bool:
        return math.isinf(self.low) or math.isinf(self.high)


@dataclass(frozen=True)
class Point:
    """One format: what it costs and what it loses."""

    format: str
    x: Amount
    y: Amount
    broken: bool


@dataclass(frozen=True)
class Side:
    """One axis: what it is called, and where its limit lies."""

    title: str
    unit: str
    limits: tuple[float, ...]
    smaller_is_better: bool
    elsewhere: tuple[str, ...] = ()
    """Limits of the same gates on something that is no place on this axis, in words."""

    def shown(self, told: Amount | float) -> str:
        """A number with its unit, and its interval where it has one."""
        amount = told if isinstance(told, Amount) else Amount(told, told, told)
        unit = "x" if self.unit == "x" else f" {self.unit}".rstrip()
        value, bracket, ends = amount.shown.partition(" [")
        return f"{value}{unit}{bracket}{ends}"


def plots(measurements: Sequence[Record], broken: Sequence[bool]) -> list[Plot]:
    """For each model its first measured quality metric against weight memory and against each measured speed; none
    where either is missing. ``broken`` says of each record whether its gate broke."""
    found = []
    models = dict.fromkeys(str(record["model"]) for record in measurements)
    for model in models:
        mine = [(record, bad) for record, bad in zip(measurements, broken, strict=True) if record["model"] == model]
        records = [record for record, _ in mine]
        engines = {record["engine"] for record in records}
        records = [{**record, "format": _called(record, len(engines) > 1)} for record in records]
        if not (quality := _quality(records)):
            continue
        spoilt = {str(record["format"]) for record, (_, bad) in zip(records, mine, strict=True) if bad}
        for x_side, cost in _costs(records):
            points = _points(cost, quality[1], spoilt)
            if points:
                found.append(_plot(model if len(models) > 1 else "", x_side, quality[0], points))
    return found


def _called(record: Record, several: bool) -> str:
    """The format, with the engine that ran it where there are ``several``."""
    return f"{record['format']} on {record['engine']}" if several else str(record["format"])


def _quality(records: Sequence[Record]) -> tuple[Side, Mapping[str, Amount]] | None:
    for metric in _QUALITY:
        measured = [record for record in records if record["metric"] == metric and "value" in record]
        if not measured:
            continue
        name = shown_metric(measured[0])
        same = [record for record in measured if shown_metric(record) == name]
        unit = str(same[0]["unit"])
        word = {"perplexity_delta": "perplexity delta"}.get(metric, name)
        suffix = {"ppl": "ppl", "nats": "nats"}.get(unit, "")
        return Side(word, suffix, *_limits(same)), _amounts(same)
    return None


def _costs(records: Sequence[Record]) -> Iterable[tuple[Side, Mapping[str, Amount]]]:
    sizes = {
        str(record["format"]): float(record["proof"]["weight_bytes"])
        for record in records
        if "weight_bytes" in (record.get("proof") or {})
    }
    if sizes:
        unit, name = (_GIGA, "GB") if max(sizes.values()) >= _GIGA else (_MEGA, "MB")
        limits = sorted({limit / unit for record in records for limit in _memory_limits(record)})
        unknown = {_worded(r, n) for r in records if _is_of_weights(r) and "value" not in r for n in r["limit"]}
        exact = {format: Amount(*(3 * (size / unit,))) for format, size in sizes.items()}
        yield Side("weight memory", name, tuple(limits), True, () if limits else tuple(sorted(unknown))), exact
    speeds = [record for record in records if record["metric"] == "throughput_ratio" and "value" in record]
    for name in dict.fromkeys(map(shown_metric, speeds)):
        same = [record for record in speeds if shown_metric(record) == name]
        yield Side(f"{name} over the reference's", "x", *_limits(same)), _amounts(same)


def _memory_limits(record: Record) -> Iterable[float]:
    """The limits on weights, in bytes."""
    if not _is_of_weights(record):
        return
    for name, limit in record["limit"].items():
        kind = LIMITS["memory_budget"][name]
        if kind.quantity == "bytes":
            yield limit * kind.unit
        elif "reference_value" in record:
            yield limit * record["reference_value"]


def _is_of_weights(record: Record) -> bool:
    if record["metric"] != "memory_budget":
        return False
    return bool((record.get("parameters") or {}).get("of", "weights") == "weights")


def _limits(records: Sequence[Record]) -> tuple[tuple[float, ...], bool, tuple[str, ...]]:
    """The limits on the value itself, on which side of them the good one is, and those on anything else, in words.

    A limit on the ratio of perplexities is one on their difference where all were compared with the same reference
    perplexity: ``delta = (ratio - 1) * reference``.
    """
    metric = records[0]["metric"]
    kinds, main = LIMITS[metric], MAIN[metric]
    references = [float(r["reference_value"]) for r in records if "reference_value" in r]
    is_one = bool(references) and max(references) - min(references) <= _SAME * max(references)
    found, elsewhere = set(), set()
    for record in records:
        for name, value in record["limit"].items():
            if kinds[name].quantity == main or (kinds[name].quantity == "bound" and record.get("lower_bound")):
                found.add(float(value))
            elif (metric, name) == ("perplexity_delta", "max_ratio") and is_one:
                found.add((float(value) - 1.0) * references[0])
            else:
                elsewhere.add(_worded(record, name))
    smaller = next(kind.smaller_is_better(n) for n, kind in kinds.items() if kind.quantity == main)
    return tuple(sorted(found)), smaller, tuple(sorted(elsewhere))


def _worded(record: Record, name: str) -> str:
    return f"{shown_metric(record)} {LIMITS[record['metric']][name].shown(name, record['limit'][name])}"


def _amounts(records: Sequence[Record]) -> dict[str, Amount]:
    """By format; of several gates on one question the one that saw most."""
    return {
        str(r["format"]): _amount(r)
        for r in sorted(records, key=lambda r: (r.get("windows") or r.get("items") or {}).get("used", 0))
    }


def _amount(record: Record) -> Amount:
    if record.get("lower_bound"):
        return Amount(record["value"], record["value"], math.inf, at_least=True)
    return Amount(record["value"], record.get("low", -math.inf), record.get("high", math.inf))


def _points(xs: Mapping[str, Amount], ys: Mapping[str, Amount], spoilt: set[str]) -> list[Point]:
    return [Point(name, xs[name], ys[name], name in spoilt) for name in ys if name in xs]


def _plot(model: str, x: Side, y: Side, points: Sequence[Point]) -> Plot:
    title = f"{y.title[:1].upper()}{y.title[1:]} against {x.title}" + (f": {model}" if model else "")
    rows = tuple((p.format, p.x.shown, p.y.shown, "a gate broke" if p.broken else "hold") for p in points)
    headers = ("format", _with_unit(x), _with_unit(y), "gates")
    limits = "; ".join(_said(side) for side in (y, x) if side.limits)
    described = "; ".join(f"{p.format}: {x.shown(p.x)}, {y.shown(p.y)}" for p in points)
    elsewhere = ", ".join((*y.elsewhere, *x.elsewhere))
    told = f"{described}."
    if limits:
        told += f" Limits: {limits}."
    if elsewhere:
        told += f" Not drawn, since they are on something else: {elsewhere}. So no region is tinted."
    elif not limits:
        told += " No limit is set on either."
    elif _differ(x, y):
        told += " Tests and formats have limits of their own, so no region is tinted."
    if any(p.x.is_open or p.y.is_open for p in points):
        told += " An arrow at the edge stands for an end that is not bounded."
    return Plot(title, told, _chart(x, y, points), Table(title, headers, rows))


def _differ(x: Side, y: Side) -> bool:
    """Whether a side has several limits: then none of them need be one for every format."""
    return len(x.limits) > 1 or len(y.limits) > 1


def _said(side: Side) -> str:
    which = "at most" if side.smaller_is_better else "at least"
    return f"{side.title} {which} {' and '.join(side.shown(limit) for limit in side.limits)}"


def _with_unit(side: Side) -> str:
    return f"{side.title} ({side.unit})" if side.unit and side.unit != "x" else side.title


def _chart(x: Side, y: Side, points: Sequence[Point]) -> Any:
    import altair as alt

    x_domain = _domain(x, [p.x for p in points])
    y_domain = _domain(y, [p.y for p in points])
    x_scale, y_scale = (alt.Scale(domain=domain, nice=False) for domain in (x_domain, y_domain))
    x_axis = alt.X("x:Q", title=_with_unit(x), scale=x_scale, axis=alt.Axis(tickCount=5))
    y_axis = alt.Y("y:Q", title=_with_unit(y), scale=y_scale, axis=alt.Axis(tickCount=5))
    layers: list[Any] = [*_budget(alt, x, y, x_domain, y_domain)]
    names = [p.format for p in points]
    data = values(
        [
            {
                "format": p.format,
                "x": p.x.value,
                "y": p.y.value,
                "x_low": max(p.x.low, x_domain[0]),
                "x_high": min(p.x.high, x_domain[1]),
                "y_low": max(p.y.low, y_domain[0]),
                "y_high": min(p.y.high, y_domain[1]),
                "told": f"{p.format}: {_with_unit(x)} {p.x.shown}, {_with_unit(y)} {p.y.shown}"
                + (", a gate broke" if p.broken else ""),
                "shown": p.format + (" ✗" if p.broken else ""),
            }
            for p in points
        ]
    )
    base = alt.Chart(data)
    colour = alt.Color("format:N", scale=alt.Scale(domain=names, range=_cycle(SERIES, names)), legend=None)
    shape = alt.Shape("format:N", scale=alt.Scale(domain=names, range=_cycle(SHAPES, names)), legend=None)
    layers += [
        base.mark_rule(strokeWidth=2).encode(x=x_axis, y=alt.Y("y_low:Q", scale=y_scale), y2="y_high:Q", color=colour),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("x_low:Q", scale=x_scale), x2="x_high:Q", y=y_axis, color=colour),
        base.mark_point(filled=True, size=110, opacity=1).encode(
            x=x_axis, y=y_axis, color=colour, shape=shape, description="told:N"
        ),
        _labels(alt, base, x_axis, y_axis, x_domain),
    ]
    if ends := _open_ends(points, x_domain, y_domain):
        mark = alt.Chart(values(ends)).mark_text(fontSize=11, baseline="middle")
        layers.append(mark.encode(x=x_axis, y=y_axis, text="arrow:N", color=colour))
    return alt.layer(*layers).properties(width=310, height=210)


def _open_ends(
    points: Sequence[Point], x_domain: tuple[float, float], y_domain: tuple[float, float]
) -> list[dict[str, Any]]:
    """An arrow at the edge for each end that is not bounded."""
    found = []
    for p in points:
        for is_open, arrow, x, y in (
            (math.isinf(p.x.low), "◀", x_domain[0], p.y.value),
            (math.isinf(p.x.high), "▶", x_domain[1], p.y.value),
            (math.isinf(p.y.low), "▼", p.x.value, y_domain[0]),
            (math.isinf(p.y.high), "▲", p.x.value, y_domain[1]),
        ):
            if is_open:
                found.append({"format": p.format, "arrow": arrow, "x": x, "y": y})
    return found


def _labels(alt: Any, base: Any, x_axis: Any, y_axis: Any, x_domain: tuple[float, float]) -> Any:
    """Names beside the points, on the side where there is room."""
    middle = sum(x_domain) / 2
    return alt.layer(
        *(
            base.transform_filter(f"datum.x {sign} {middle!r}")
            .mark_text(align=align, dx=dx, dy=-9, fontWeight=600, limit=150)
            .encode(x=x_axis, y=y_axis, text="shown:N")
            for sign, align, dx in (("<=", "left", 8), (">", "right", -8))
        )
    )


def _cycle(choices: Sequence[str], names: Sequence[str]) -> list[str]:
    return [choices[place % len(choices)] for place in range(len(names))]


def _budget(alt: Any, x: Side, y: Side, x_domain: tuple[float, float], y_domain: tuple[float, float]) -> Iterable[Any]:
    """The region that keeps every limit, and a line for each of them."""
    if not x.limits and not y.limits:
        return
    left, right = _kept(x, x_domain)
    bottom, top = _kept(y, y_domain)
    box = values([{"x": left, "x2": right, "y": bottom, "y2": top}])
    if left < right and bottom < top and not (x.elsewhere or y.elsewhere or _differ(x, y)):
        yield alt.Chart(box).mark_rect(color=ALLOWED).encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q")
    for limit in x.limits:
        yield alt.Chart(values([{"x": limit}])).mark_rule(color=BAD, strokeDash=[5, 4]).encode(x="x:Q")
        yield _named(alt, x, limit, {"x": limit, "y": y_domain[0]}, limit > sum(x_domain) / 2, -8)
    crowded = any(limit > sum(x_domain) / 2 for limit in x.limits)  # there a line crosses the words
    for limit in y.limits:
        yield alt.Chart(values([{"y": limit}])).mark_rule(color=BAD, strokeDash=[5, 4]).encode(y="y:Q")
        yield _named(alt, y, limit, {"x": x_domain[0 if crowded else 1], "y": limit}, not crowded, -6)


def _named(alt: Any, side: Side, limit: float, at: Mapping[str, float], ends: bool, dy: int) -> Any:
    word = f"{'max' if side.smaller_is_better else 'min'} {side.shown(limit)}"
    data = values([{**at, "word": word}])
    mark = alt.Chart(data).mark_text(
        align="right" if ends else "left", dx=-4 if ends else 4, dy=dy, color=BAD, fontSize=11
    )
    return mark.encode(x="x:Q", y="y:Q", text="word:N")


def _kept(side: Side, domain: tuple[float, float]) -> tuple[float, float]:
    if not side.limits:
        return domain
    if side.smaller_is_better:
        return domain[0], min(min(side.limits), domain[1])
    return max(max(side.limits), domain[0]), domain[1]


def _domain(side: Side, amounts: Sequence[Amount]) -> tuple[float, float]:
    """What is drawn of an axis: from 0 (shares: from the lowest) to a little more than the highest that is shown."""
    ends = [end for a in amounts for end in (a.low, a.high, a.value) if abs(end) != float("inf")] + list(side.limits)
    low, high = min(ends), max(ends)
    if side.title.endswith("share") or (not side.smaller_is_better and side.unit != "x"):
        room = 0.15 * (high - low) or 0.05
        return low - room, high + room
    low = min(low, 0.0)
    room = 0.15 * (high - low) or 1.0
    return (low if low == 0.0 else low - room), high + room
