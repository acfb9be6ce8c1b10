"""A history as people and programs read it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from statistics import median
from textwrap import wrap
from typing import Any

from pytest_quant.counting import counted
from pytest_quant.history.changes import NOT_JUDGED, OUTLIER, YOUNG
from pytest_quant.history.series import Point, Series
from pytest_quant.report.columns import aligned
from pytest_quant.sizes import shown_bytes
from pytest_quant.visible import visible

_WIDTH = 80
_HEADERS = ("format", "metric", "runs", "first", "last", "trend", "state")
_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN = "_.-~=*#@"
_SHOWN = 12
"""Points of a trend: the last ones."""
_STATES = {"same": "as accepted", "": "-"}
"""States that are not their own words."""
_SPREAD = 1.0 / (0.6745 * math.sqrt(2.0))
"""A normal standard deviation over the median distance of neighbours."""


def can_draw(encoding: str | None) -> bool:
    """Whether a stream can show the blocks of a trend."""
    try:
        _BLOCKS.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def is_changed(series: Series) -> bool:
    """Whether anything is to be said of a series below its row."""
    return bool(series.behind) or next(_events(series, ""), None) is not None


def table(series: Sequence[Series], *, pictures: bool = True) -> list[str]:
    """A block for each hardware and model; below its rows what happened, and the command that shows more. Without
    ``pictures`` trends are of ASCII."""
    lines: list[str] = []
    told = [_seen(each) for each in series]
    for key, model, apart in dict.fromkeys((each.hardware, each.model, each.apart) for each in told):
        block = [each for each in told if (each.hardware, each.model, each.apart) == (key, model, apart)]
        name = next((each.hardware_name for each in block if each.hardware_name), "")
        rest = ": other branches, not judged" if apart else ""
        lines += ["", f"{model} on {f'{name} ({key})' if name else key}{rest}"]
        names = _names(block)
        ramp = _BLOCKS if pictures else _PLAIN
        lines += aligned([_HEADERS, *(_cells(each, name, ramp) for each, name in zip(block, names, strict=True))])
        for each, name in zip(block, names, strict=True):
            for event in _events(each, f"{each.format} {name}"):
                lines += _filled(event)
        for retired in (False, True):
            gone = [
                f"{each.format} {name}" + (f" ({counted(each.behind, 'commit')})" if each.behind > 1 else "")
                for each, name in zip(block, names, strict=True)
                if each.behind and (each.state == "retired") is retired
            ]
            words = (
                "retired, as the last commits on this hardware do not have it"
                if retired
                else "not in the last run of this hardware"
            )
            if gone:
                lines += _filled([f"{words}: {', '.join(gone)}"])
    return lines[1:]


def summary(series: Sequence[Series], runs: int, place: str, others: int = 0) -> str:
    """How many series there are, and what became of them. ``others`` are runs of other branches."""
    if not runs and others:
        return f"no runs in {place} of commits that lead to the one that is checked out"
    if not runs:
        return f"no runs in {place}: keep them with `pytest --quant-history={place}`"
    moves = Counter(point.moved for each in series for point in each.points if point.moved)
    states = Counter(each.state for each in series)
    judged = [each for each in series if not each.apart]
    ends = [f"{states['worse']} of {len(judged)} series now worse than accepted"] if states["worse"] else []
    ends += [f"{states[state]} {state}" for state in ("not measured", "retired") if states[state]]
    now = f"; {', '.join(ends)}" if ends else ""
    changed = ", ".join(f"{counted(moves[move], 'move')} to the {move}" for move in ("worse", "better") if moves[move])
    return f"{counted(runs, 'run')}, {len(judged)} series: {changed or 'nothing moved'}{now}"


def plain(series: Sequence[Series]) -> list[dict[str, Any]]:
    """The series as plain data; a field that there is not is absent."""
    return [
        {**_present(asdict(each), "points"), "points": [_present(asdict(point)) for point in each.points]}
        for each in series
    ]


def _present(data: dict[str, Any], *without: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in without and value not in (None, "")}


def _names(block: Sequence[Series]) -> list[str]:
    """What each metric is called; with its test where two of a format have one name."""
    counts = Counter((each.format, each.metric) for each in block)
    return [
        f"{each.metric} ({each.test.rpartition('::')[2].partition('[')[0]})"
        if counts[each.format, each.metric] > 1
        else each.metric
        for each in block
    ]


def _cells(series: Series, name: str, ramp: str) -> tuple[str, ...]:
    points = series.points
    return (
        series.format,
        name,
        str(len(points)),
        _value(points[0].value, series.unit),
        _value(points[-1].value, series.unit),
        _trend([point.value for point in points[-_SHOWN:]], ramp),
        _STATES.get(series.state, series.state),
    )


def _value(value: float, unit: str) -> str:
    if unit == "bytes":
        return shown_bytes(value)
    return f"{value:.3g}" + {"x": "x", "share": ""}.get(unit, f" {unit}")


def _trend(values: Sequence[float], ramp: str) -> str:
    """One character a value, from the smallest to the largest; differences that no figure shows stay level."""
    low, high = min(values), max(values)
    if high - low <= 1e-3 * max(abs(high), abs(low)):
        return ramp[0] * len(values)
    steps = len(ramp) - 1
    return "".join(ramp[round((value - low) / (high - low) * steps)] for value in values)


def _events(series: Series, head: str) -> Iterator[list[str]]:
    """What happened, a list of sentences each. Of single runs that are off, and of runs that could not be judged, only
    the last is told by itself."""
    for point in series.points:
        if point.moved:
            drifted = f", drifting since {point.began[:10]}" if point.began else ""
            yield [f"{head}: {point.moved} at {_named(point)}{drifted}", point.reason, *_next(point)]
        elif point.event.startswith("another"):
            yield [f"{head}: {point.event} at {_named(point)}", point.reason]
    last = series.points[-1]
    off = [point for point in series.points if point.event in (OUTLIER, YOUNG)]
    if last in off:
        yield [f"{head}: {last.event} at {_named(last)} ({last.change})"]
        off.remove(last)
    if off:
        single = "1 earlier run is" if len(off) == 1 else f"{len(off)} earlier runs are"
        noise = _noise(series)
        yield [f"{head}: {single} off by themselves" + ("" if noise is None else f"; usual noise between runs {noise}")]
    if last.event.startswith(NOT_JUDGED):
        yield [f"{head}: {last.event} at {_named(last)}"]
    if series.reason:
        yield [f"{head}: {series.state} {series.reason}"]


def _noise(series: Series) -> str | None:
    """By how much neighbours of one level usually differ, as a standard deviation; None where too few do."""
    steps = [
        abs(math.log(now.value / then.value))
        for then, now in pairwise(series.points)
        if now.level == then.level and now.value > 0.0 and then.value > 0.0
    ]
    return f"{math.expm1(_SPREAD * median(steps)):.1%}" if len(steps) > 3 else None


def _seen(series: Series) -> Series:
    """The series with texts of one line each, in which every character shows."""

    def cleaned(data: dict[str, Any]) -> dict[str, Any]:
        return {name: visible(" ".join(text.split())) for name, text in data.items() if isinstance(text, str)}

    points = tuple(replace(point, **cleaned(vars(point))) for point in series.points)
    return replace(series, points=points, **cleaned(vars(series)))


def _named(point: Point) -> str:
    """Commit, day and subject."""
    commit = point.commit[:7] if point.commit else "no commit"
    commit += "+changes" if point.dirty else ""
    day = point.started[:10]
    return f"{commit} ({day})" + (f" {point.subject}" if point.subject else "")


def _next(point: Point) -> list[str]:
    """What lies between, and the command that shows what was changed: a line of its own, to be copied."""
    if point.dirty:
        return ["its working tree held changes that no commit has"]
    if not point.commit:
        return []
    bad, good = point.commit[:7], point.before[:7]
    if not good or point.between == 1:
        return [f"git show {bad}"]
    among = f"{point.between} commits" if point.between else "commits that git does not know here"
    return [f"from {good}, which was as before, to it: {among}", f"git bisect start {bad} {good}"]


def _filled(sentences: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for number, text in enumerate(each for each in sentences if each):
        margin = "  " if number == 0 else "    "
        lines += wrap(
            text,
            _WIDTH,
            initial_indent=margin,
            subsequent_indent="    " if number == 0 else "      ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines
