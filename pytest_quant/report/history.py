"""A history as people and programs read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from pytest_quant.counting import counted
from pytest_quant.history.series import Point, Series
from pytest_quant.report.columns import aligned
from pytest_quant.sizes import shown_bytes

_WIDTH = 80
_HEADERS = ("format", "metric", "runs", "first", "last", "trend", "state")
_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN = "_.-~=*#@"
_SHOWN = 12
"""Points of a trend: the last ones."""
_STATES = {"worse": "worse", "better": "better", "same": "as accepted", "open": "open", "": "-"}


def can_draw(encoding: str | None) -> bool:
    """Whether a stream can show the blocks of a trend."""
    try:
        _BLOCKS.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def is_changed(series: Series) -> bool:
    """Whether anything is to be said of a series."""
    return series.state in ("worse", "open") or any(point.moved or point.event for point in series.points)


def table(series: Sequence[Series], *, pictures: bool = True) -> list[str]:
    """A block for each hardware and model; below its rows what happened, and the command that shows more. Without
    ``pictures`` trends are of ASCII."""
    lines: list[str] = []
    for key, model in dict.fromkeys((each.hardware, each.model) for each in series):
        block = [each for each in series if (each.hardware, each.model) == (key, model)]
        name = next((each.hardware_name for each in block if each.hardware_name), "")
        lines += ["", f"{model} on {f'{name} ({key})' if name else key}"]
        names = _names(block)
        ramp = _BLOCKS if pictures else _PLAIN
        lines += aligned([_HEADERS, *(_cells(each, name, ramp) for each, name in zip(block, names, strict=True))])
        for each, name in zip(block, names, strict=True):
            for event in _events(each, f"{each.format} {name}"):
                lines += _filled(event)
        behind = [f"{each.format} {name}" for each, name in zip(block, names, strict=True) if each.behind]
        if behind:
            lines += _filled([f"not in the last run of this hardware: {', '.join(behind)}"])
    return lines[1:]


def summary(series: Sequence[Series], runs: int, place: str) -> str:
    """How many series there are, and what became of them."""
    if not runs:
        return f"no runs in {place}: keep them with `pytest --quant-history={place}`"
    moves = Counter(point.moved for each in series for point in each.points if point.moved)
    states = Counter(each.state for each in series)
    now = f"; {states['worse']} of {len(series)} series now worse than accepted" if states["worse"] else ""
    changed = ", ".join(f"{counted(moves[move], 'move')} to the {move}" for move in ("worse", "better") if moves[move])
    return f"{counted(runs, 'run')}, {len(series)} series: {changed or 'nothing moved'}{now}"


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
        _STATES[series.state],
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
    """What happened, a list of sentences each."""
    for point in series.points:
        if point.moved:
            drifted = f", drifting since {point.began[:10]}" if point.began else ""
            yield [f"{head}: {point.moved} at {_named(point)}{drifted}", point.reason, *_next(point)]
        elif point.event and not point.event.startswith("not judged"):
            by = f" ({point.change})" if point.change else ""
            yield [f"{head}: {point.event} at {_named(point)}{by}", *([point.reason] if point.reason else [])]
    if series.state == "open" and series.points[-1].event.startswith("not judged"):
        yield [f"{head}: {series.points[-1].event}"]


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
