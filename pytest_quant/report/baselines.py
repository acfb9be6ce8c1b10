"""Baselines as people and programs read them: what is there, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pytest_quant.baseline.joining import Conflict, date
from pytest_quant.baseline.schema import Entry, File, identity_hash
from pytest_quant.gates.gate import NOUNS
from pytest_quant.report.columns import aligned
from pytest_quant.report.figures import shown_value
from pytest_quant.report.naming import shown_metric

_HEADERS = ("format", "metric", "value", "recorded", "commit")
_SHORT = 9  # digits of a commit


def table(files: Sequence[tuple[Path, File]]) -> list[str]:
    """A block for each hardware and model, with a row for each measurement."""
    lines: list[str] = []
    for _, file in sorted(files, key=lambda pair: (str(pair[1].hardware["key"]), pair[1].model)):
        rows = [_row(entry) for entry in _ordered(file.entries)]
        lines += ["", f"{file.model} on {_hardware(file)}", *aligned([_HEADERS, *rows])]
    return lines[1:]


def listed(files: Sequence[tuple[Path, File]]) -> list[dict[str, Any]]:
    """The same as plain data; a field that an entry lacks is absent."""
    return [
        {
            "file": path.as_posix(),
            "hardware": file.hardware,
            "model": file.model,
            **_plain(entry),
        }
        for path, file in files
        for entry in _ordered(file.entries)
    ]


def value(entry: Entry) -> str:
    """The value with its unit, its interval unless it is exact, and how many windows it is of."""
    ends = {name: getattr(entry, name) for name in ("low", "high") if getattr(entry, name) is not None}
    shape: dict[str, Any] = {"value": entry.value, "unit": entry.unit, "limit": {}, **ends}
    if not ends:
        shape |= {"low": entry.value, "high": entry.value}
    if entry.scores:
        shape[NOUNS.get(entry.metric, "windows")] = {"used": len(entry.scores), "total": len(entry.scores)}
    return shown_value(shape)


def name(entry: Entry) -> str:
    """The metric with its parameters, as the summary of a run names it."""
    metric = entry.identity.get("metric")
    return shown_metric({"metric": entry.metric, "parameters": metric if isinstance(metric, dict) else {}})


def conflict(found: Conflict) -> str:
    """A line that says which values there are and which was taken, if that is decided."""
    hardware, model = found.place
    part, entry = found.taken
    others = [f"{value(each)} of {where}{_dated(each)}" for where, each in found.found if each is not entry]
    said = f"{value(entry)} of {part}{_dated(entry)}"
    if not found.decided:
        return (
            f"conflict: {hardware}, {model}: {entry.format} {name(entry)}: {said}, or {', '.join(others)}: "
            "which one is newer cannot be told. Prune those that are wrong from their parts."
        )
    return f"conflict: {hardware}, {model}: {entry.format} {name(entry)}: {said}, not {', '.join(others)}"


def line(hardware: str, model: str, entry: Entry) -> str:
    """One measurement in one line."""
    return f"{hardware}, {model}: {entry.format} {name(entry)} {value(entry)}{_dated(entry)}"


def _ordered(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.format, entry.metric, entry.key))


def _hardware(file: File) -> str:
    key, called = str(file.hardware["key"]), str(file.hardware["name"])
    return f"{called} ({key})"


def _row(entry: Entry) -> tuple[str, ...]:
    commit = entry.recorded.get("commit")
    day = date(entry).partition("T")[0]
    shown = commit[:_SHORT] if isinstance(commit, str) else ""
    return entry.format, name(entry), value(entry), day or "-", shown or "-"


def _dated(entry: Entry) -> str:
    return f" ({date(entry)})" if date(entry) else ""


def _plain(entry: Entry) -> dict[str, Any]:
    ends = {end: getattr(entry, end) for end in ("low", "high") if getattr(entry, end) is not None}
    counted = {NOUNS.get(entry.metric, "windows"): len(entry.scores)} if entry.scores else {}
    metric = entry.identity.get("metric")
    parameters = {key: told for key, told in metric.items() if key != "name"} if isinstance(metric, dict) else {}
    return {
        "metric": entry.metric,
        "parameters": parameters,
        "format": entry.format,
        "value": entry.value,
        **ends,
        "unit": entry.unit,
        **counted,
        "identity": identity_hash(entry.identity),
        "recorded": dict(entry.recorded),
    }
