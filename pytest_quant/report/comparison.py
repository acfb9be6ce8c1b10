"""A comparison as people and programs read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quant.comparing.judging import Row
from pytest_quant.comparing.sides import Item
from pytest_quant.gates.verdict import Verdict
from pytest_quant.report.baselines import value
from pytest_quant.report.columns import aligned
from pytest_quant.report.naming import shown_metric
from pytest_quant.report.wrapping import filled

SCHEMA = 1
_HEADERS = ("format", "metric", "old", "new", "change", "verdict")


def table(rows: Sequence[Row], hardware: Mapping[str, str]) -> list[str]:
    """A block for each hardware and model; below its rows the reasons of those that have one. ``hardware`` names keys
    for people."""
    lines: list[str] = []
    for key, model in dict.fromkeys((row.hardware, row.model) for row in rows):
        block = [row for row in rows if (row.hardware, row.model) == (key, model)]
        title = f"{model} on {hardware[key]} ({key})" if key in hardware else f"{model} on {key or 'unknown hardware'}"
        lines += ["", title, *aligned([_HEADERS, *map(_cells, block)])]
        for row in block:
            if row.reason:
                lines += filled(f"{row.format} {_name(row)}: {row.reason}", "  ", "    ")
    return lines[1:]


def summary(rows: Sequence[Row], beyond: int = 0) -> str:
    """How many measurements there are of each verdict, and how many lie ``beyond`` what the new side speaks for."""
    counts = Counter(row.verdict for row in rows)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]) or "none"
    others = f"; {beyond} of other hardware or models not looked at" if beyond else ""
    return f"{len(rows)} measurements: {said}{others}" if len(rows) != 1 else f"1 measurement: {said}{others}"


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain data; a field that a row lacks is absent."""
    return [_plain(row) for row in rows]


def _cells(row: Row) -> tuple[str, ...]:
    old, new = ("-" if item is None else _value(item) for item in (row.old, row.new))
    return row.format, _name(row), old, new, row.change or "-", str(row.verdict)


def _value(item: Item) -> str:
    """As a baseline's, but that a run may have scored a part of the windows."""
    shown, windows = value(item.entry), item.measurement.windows
    if windows is None or windows[0] == windows[1] or not item.entry.scores:
        return shown
    return f"{shown.rpartition('/')[0]}/{windows[1]}"


def _name(row: Row) -> str:
    return shown_metric({"metric": row.metric, "parameters": row.parameters})


def _plain(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {
        "hardware": row.hardware,
        "model": row.model,
        "metric": row.metric,
        "parameters": dict(row.parameters),
        "format": row.format,
        "verdict": str(row.verdict),
    }
    for side, item in (("old", row.old), ("new", row.new)):
        if item is None:
            continue
        entry = item.entry
        ends = {end: getattr(entry, end) for end in ("low", "high") if getattr(entry, end) is not None}
        told = {name: entry.recorded[name] for name in ("date", "commit", "test") if name in entry.recorded}
        found[side] = {"hardware": item.hardware, "value": entry.value, "unit": entry.unit, **ends, **told}
    found |= {name: text for name, text in (("change", row.change), ("reason", row.reason)) if text}
    return found
