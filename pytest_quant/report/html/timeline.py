"""A picture for each measurement that was kept over several runs, with the commit that moved it marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pytest_quant.history.series import History, Point, Series
from pytest_quant.report.html.drawing import ACCENT, BAD, FAINT, Plot, Table, values
from pytest_quant.report.html.view import number
from pytest_quant.sizes import shown_bytes

SHORT = 7
_LEVELS = 4
"""Lines for the commits that are named above a picture."""
MOST = 24
"""Pictures of one page, at most: those that moved before the others."""


def plots(history: History) -> tuple[list[Plot], int]:
    """Pictures, those that moved first, and how many series are left out: those of a single run, and beyond
    :data:`MOST`."""
    told = [series for series in history.series if len(series.points) > 1]
    told.sort(key=lambda series: not any(point.moved for point in series.points))
    return [_plot(series) for series in told[:MOST]], len(history.series) - len(told[:MOST])


def _plot(series: Series) -> Plot:
    model = series.model.rsplit("/", 1)[-1]
    title = f"{series.format} {series.metric}: {model} on {series.hardware}"
    moved = [point for point in series.points if point.moved]
    said = [
        f"{point.moved.capitalize()} since commit {short(point)} of {_day(point)} ({point.change or 'no change told'})"
        f"{_since(point)}."
        for point in moved
    ]
    told = " ".join(said) or f"No run of {len(series.points)} moved it beyond noise."
    rows = tuple(
        (
            short(point),
            point.started.replace("T", " ").replace("Z", ""),
            _shown(point.value, series),
            *(("-" if end is None else _shown(end, series)) for end in (point.low, point.high)),
            point.verdict,
            " ".join(filter(None, (point.moved, point.change, point.event, point.reason))) or "-",
        )
        for point in series.points
    )
    headers = ("commit", "run", "value", "low", "high", "verdict", "change")
    return Plot(title, told, _chart(series), Table(title, headers, rows))


def short(point: Point) -> str:
    """The commit as people write it."""
    return point.commit[:SHORT] if point.commit else "no commit"


def _since(point: Point) -> str:
    """What else is known of a move: where a drift began, which commit was as before, from what to what."""
    said = [f"drifting since {point.began[:10]}"] if point.began else []
    said += [f"{point.before[:SHORT]} was as before"] if point.before else []
    said += [point.reason.removesuffix(".")] if point.reason else []
    return "".join(f"; {each}" for each in said)


def _day(point: Point) -> str:
    return point.started.partition("T")[0]


def _shown(value: float, series: Series) -> str:
    if series.unit == "bytes":
        return shown_bytes(round(value)) if math.isfinite(value) else number(value)
    return number(value, 4)


def _chart(series: Series) -> Any:
    import altair as alt

    scale = 1e6 if series.unit == "bytes" else 1.0
    unit = "MB" if series.unit == "bytes" else {"x": "times", "share": "share"}.get(series.unit, series.unit)
    rows = [
        {
            "place": place,
            "value": point.value / scale,
            "low": (point.value if point.low is None else point.low) / scale,
            "high": (point.value if point.high is None else point.high) / scale,
            "moved": point.moved or "no",
            "told": f"{short(point)}, {_day(point)}: {_shown(point.value, series)} {series.unit}".replace(" bytes", "")
            + (f", {point.moved} {point.change}".rstrip() if point.moved else ""),
            "word": f"{point.moved} {short(point)}" if point.moved else "",
        }
        for place, point in enumerate(series.points)
    ]
    limit = None if series.limit is None else series.limit / scale
    low, high = _domain(rows, limit)
    last = len(rows) - 1
    ends = [short(series.points[0]), short(series.points[-1])]
    x = alt.X(
        "place:Q",
        title=None,
        scale=alt.Scale(domain=[0, last], padding=10, nice=False),
        axis=alt.Axis(values=[0, last], labelExpr=f"datum.value == 0 ? {ends[0]!r} : {ends[1]!r}", grid=False),
    )
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    y = alt.Y(
        "value:Q",
        title=unit,
        scale=scale,
        axis=alt.Axis(tickCount=4),
    )
    base = alt.Chart(values(rows))
    moved = alt.Chart(values([row for row in rows if row["word"]]))
    colour = alt.condition("datum.moved == 'worse'", alt.value(BAD), alt.value(ACCENT))
    layers = [
        base.mark_line(color=FAINT, strokeWidth=1.5).encode(x=x, y=y),
        base.mark_rule(color=ACCENT, strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        base.mark_point(filled=True, size=42, opacity=1).encode(x=x, y=y, color=colour, description="told:N"),
    ]
    if any(row["word"] for row in rows):
        layers += [
            moved.mark_rule(strokeDash=[2, 3]).encode(x=x, color=colour),
            *_words(alt, rows, last, high),
        ]
    if limit is not None and low <= limit <= high:
        line = alt.Chart(values([{"limit": limit}]))
        layers.append(line.mark_rule(color=BAD, strokeDash=[5, 4]).encode(y="limit:Q"))
    return alt.layer(*layers).properties(width=270, height=120)


def _words(alt: Any, rows: Sequence[dict[str, Any]], last: int, high: float) -> list[Any]:
    """The commits that moved it, above their lines: one below the other, so that neighbours do not overlap."""
    moved = [{**row, "top": high} for row in rows if row["word"]]
    layers = []
    for level, row in enumerate(reversed(moved)):
        align = "right" if row["place"] > last / 2 else "left"
        mark = alt.Chart(values([row])).mark_text(align=align, dx=0, dy=-6 - 13 * (level % _LEVELS), fontSize=11)
        layers.append(mark.encode(x="place:Q", y="top:Q", text="word:N"))
    return layers


def _domain(rows: Sequence[dict[str, Any]], limit: float | None) -> tuple[float, float]:
    """Holds every interval; the limit too, unless that would flatten all the rest."""
    ends = [row[name] for row in rows for name in ("value", "low", "high") if math.isfinite(row[name])]
    low, high = min(ends), max(ends)
    if limit is not None and (not high > low or abs(limit - (low + high) / 2) < 4 * (high - low)):
        low, high = min(low, limit), max(high, limit)
    room = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room
