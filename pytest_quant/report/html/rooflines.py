"""The roofline of the device, with the speeds that were measured under it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quant.report.html.drawing import FAINT, SERIES, SHAPES, Plot, Table, values
from pytest_quant.report.html.view import number
from pytest_quant.report.naming import shown_metric
from pytest_quant.roofline.bound import scaled

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One measured speed."""

    model: str
    name: str
    """The format, with the engine that ran it where there are several."""
    phase: str
    numeric: str
    intensity: float
    """Operations a byte."""
    reached: float
    """Operations a second."""
    share: float
    regime: str
    bandwidth: float | None
    """Bytes a second."""
    peak: float | None
    """Operations a second of the units."""
    rates: str

    @property
    def told(self) -> str:
        return (
            f"{self.name}, {self.phase}: {scaled(self.reached, 'operations/s')} at {number(self.intensity)} operations "
            f"a byte, {self.share:.1%} of what {self.regime} allows"
        )


def plots(measurements: Sequence[Record], hardware: str) -> tuple[list[Plot], list[str]]:
    """A picture for each model, and sentences on what is not known; neither where no speed was measured."""
    timed = [record for record in measurements if record["metric"] == "throughput_ratio" and "value" in record]
    if not timed:
        return [], []
    found = points(timed)
    unknown = []
    drawn = {(point.model, point.name, point.phase) for point in found}
    several = _has_several_engines(timed)
    if lacking := [r for r in timed if (str(r["model"]), _called(r, "format", several), shown_metric(r)) not in drawn]:
        some = ", ".join(dict.fromkeys(f"{r['format']} {shown_metric(r)}" for r in lacking))
        unknown.append(f"No roofline of {some}: the record does not hold the rates of {hardware or 'the device'}.")
    models = dict.fromkeys(point.model for point in found)
    of = f"Roofline of {hardware or 'the device'}"
    return [
        _plot([p for p in found if p.model == model], f"{of}: {model}" if len(models) > 1 else of) for model in models
    ], unknown


def points(timed: Sequence[Record]) -> list[Point]:
    """The speeds whose bound and rates are in the record; a reference that several formats were compared with once."""
    found: dict[tuple[str, str, str], Point] = {}
    several = _has_several_engines(timed)
    for record in timed:
        for which, told in sorted((record.get("bounds") or {}).items()):
            if which not in ("format", "reference") or not {"operations", "seconds"} <= told.keys():
                continue
            if "bandwidth" not in told and "peak_operations" not in told:
                continue
            point = Point(
                model=str(record["model"]),
                name=_called(record, which, several),
                phase=shown_metric(record),
                numeric=str(told["numeric"]),
                intensity=float(told["intensity"]),
                reached=float(told["share"]) * float(told["operations"]) / float(told["seconds"]),
                share=float(told["share"]),
                regime=str(told["regime"]),
                bandwidth=told.get("bandwidth"),
                peak=told.get("peak_operations"),
                rates=str(told.get("rates", "")),
            )
            found.setdefault((point.model, point.name, point.phase), point)
    return list(found.values())


def _has_several_engines(records: Sequence[Record]) -> bool:
    return len({record["engine"] for record in records}) > 1


def _called(record: Record, which: str, several: bool) -> str:
    return f"{record[which]} on {record['engine']}" if several else str(record[which])


def _plot(found: Sequence[Point], title: str) -> Plot:
    best = max(found, key=lambda point: point.share)
    source = " and ".join(sorted({point.rates for point in found if point.rates}))
    told = (
        f"Slanted: what the memory's bandwidth allows; flat: what the units allow ({source} rates). "
        f"Closest to its bound: {best.told}."
    )
    rows = tuple(
        (
            p.name,
            p.phase,
            number(p.intensity),
            scaled(p.reached, "operations/s"),
            f"{p.share:.1%}",
            p.regime,
            "-" if p.bandwidth is None else scaled(p.bandwidth, "B/s"),
            "-" if p.peak is None else f"{scaled(p.peak, 'operations/s')} in {p.numeric}",
        )
        for p in found
    )
    headers = ("format", "phase", "operations a byte", "reached", "of its bound", "limited by", "bandwidth", "units")
    return Plot(title, told, _chart(found), Table(title, headers, rows), wide=True)


def _chart(found: Sequence[Point]) -> Any:
    import altair as alt

    intensities = [p.intensity for p in found]
    bandwidth = max((p.bandwidth for p in found if p.bandwidth), default=None)
    peaks: dict[str, float] = {}
    for p in found:
        if p.peak:
            peaks[p.numeric] = max(p.peak, peaks.get(p.numeric, 0.0))
    ridges = [peak / bandwidth for peak in peaks.values()] if bandwidth else []
    left, right = 0.5 * min(intensities), 3.0 * max([*intensities, *ridges])
    tops = [*peaks.values(), *([] if bandwidth is None else [bandwidth * left])]
    bottom, top = (
        0.3 * min([p.reached for p in found] + tops),
        3.0 * max([*peaks.values(), *(p.reached for p in found)]),
    )
    if not peaks and bandwidth:
        top = 2.0 * bandwidth * right
    roofs = []
    for numeric, peak in peaks.items():
        ridge = peak / bandwidth if bandwidth else left
        if bandwidth and ridge > left:
            roofs.append({"x": left, "y": bandwidth * left, "roof": numeric})
        roofs += [{"x": max(ridge, left), "y": peak, "roof": numeric}, {"x": right, "y": peak, "roof": numeric}]
    if not peaks and bandwidth:
        roofs = [{"x": end, "y": bandwidth * end, "roof": "bandwidth"} for end in (left, right)]
    numbers = "datum.value >= 1e12 ? datum.value / 1e12 + ' T' : datum.value >= 1e9 ? datum.value / 1e9 + ' G' : "
    numbers += "datum.value >= 1e6 ? datum.value / 1e6 + ' M' : datum.value"
    x = alt.X(
        "x:Q",
        title="operations a byte",
        scale=alt.Scale(type="log", domain=[left, right], nice=False),
        axis=alt.Axis(values=_decades(left, right), format="~g"),
    )
    y = alt.Y(
        "y:Q",
        title="operations a second",
        scale=alt.Scale(type="log", domain=[bottom, top], nice=False),
        axis=alt.Axis(values=_decades(bottom, top), labelExpr=numbers),
    )
    names = list(dict.fromkeys(p.name for p in found))
    data = [
        {
            "x": p.intensity,
            "y": p.reached,
            "name": p.name,
            "phase": p.phase,
            "told": p.told,
            "best": p.reached / p.share,
        }
        for p in found
    ]
    palette = [SERIES[place % len(SERIES)] for place in range(len(names))]
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(names))]
    ends = [{"x": right, "y": peak, "word": f"{numeric} units"} for numeric, peak in peaks.items()]
    base = alt.Chart(values(data))
    colour = alt.Color("name:N", scale=alt.Scale(domain=names, range=palette), legend=alt.Legend(title=None))
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=shapes), legend=alt.Legend(title=None))
    layers = [
        alt.Chart(values(roofs)).mark_line(color=FAINT, strokeWidth=2).encode(x=x, y=y, detail="roof:N", order="x:Q"),
        base.mark_rule(strokeDash=[2, 3], strokeWidth=1.5).encode(x=x, y=y, y2="best:Q", color=colour),
        base.mark_point(filled=True, size=110, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, description="told:N"
        ),
        alt.Chart(values(ends))
        .mark_text(align="right", dy=-8, color=FAINT, fontSize=11)
        .encode(x=x, y=y, text="word:N"),
    ]
    return alt.layer(*layers).properties(width=820, height=300)


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers."""
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
