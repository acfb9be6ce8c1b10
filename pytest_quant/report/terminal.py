"""The table at the end of a run: readable at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from pytest_quant.ledger import Ledger
from pytest_quant.model import FLATTERED, NO_RECORD, UNSURE
from pytest_quant.report.below import below
from pytest_quant.report.figures import shown_value
from pytest_quant.report.naming import shown_metric

_HEADERS = ("format", "metric", "value", "limit", "baseline", "verdict")
_COLOURS = {
    "passed": {"green": True},
    "improved": {"green": True, "bold": True},
    "new": {"cyan": True},
    "inconclusive": {"yellow": True},
    "not-measured": {"red": True, "bold": True},
    "missing": {"yellow": True, "bold": True},
    "incomparable": {"yellow": True, "bold": True},
    "regressed": {"red": True, "bold": True},
    "failed": {"red": True, "bold": True},
}
_LOUDEST = (
    "failed",
    "not-measured",
    "regressed",
    "missing",
    "incomparable",
    "inconclusive",
    "new",
    "improved",
    "passed",
)


def summarize(
    reporter: pytest.TerminalReporter, ledger: Ledger, messages: Sequence[str], troubles: Sequence[str]
) -> None:
    """Write the table, then what was written to files, then what keeps the run from being green."""
    reporter.section("quantization", sep="=")
    if ledger.hardware:
        reporter.write_line(f"on {ledger.hardware['name']} ({ledger.hardware['architecture']})")
    rows = [(_title(record), _row(record), below(record)) for record in ledger.records]
    widths = [max(len(cells[i]) for cells in (_HEADERS, *(row for _, row, _ in rows))) for i in range(len(_HEADERS))]
    for title in dict.fromkeys(title for title, _, _ in rows):
        reporter.write_line("")
        reporter.write_line(title)
        reporter.write_line(_line(_HEADERS, widths), light=True)
        for row, lines in dict.fromkeys((row, lines) for of, row, lines in rows if of == title):
            reporter.write(_line(row[:-1], widths[:-1], padded=True) + "  ")
            reporter.write_line(row[-1], **_COLOURS[row[-1]])
            for line in lines:
                reporter.write_line(f"  {line}", light=True)
    for colour, line in dict.fromkeys(line for record in ledger.records for line in _explanations(record)):
        reporter.write_line(line, **_COLOURS[colour])
    for name, said in dict.fromkeys((r["format"], r["engines"]) for r in ledger.records if "engines" in r):
        reporter.write_line(f"{name}: {said}", yellow=True)
    for line in _conditions(ledger.records):
        reporter.write_line(line, yellow=True)
    for name, recipe in dict.fromkeys(
        _recipe(record) for record in ledger.records if "recipe" in record.get("proof", {})
    ):
        reporter.write_line(f"{name}: {recipe}", yellow=any(note in recipe for note in (NO_RECORD, FLATTERED, UNSURE)))
    if ledger.skipped:
        reporter.write_line("")
        for skip in ledger.skipped.values():
            reporter.write_line(f"not measured: {skip['test']}: {skip['reason']}", yellow=True)
    for message in messages:
        reporter.write_line(message)
    for trouble in troubles:
        reporter.write_line(f"ERROR: {trouble}", red=True, bold=True)


def verdict(record: Mapping[str, Any]) -> str:
    """One word for the limit's verdict and the baseline's: the louder of the two."""
    found = record.get("baseline")
    words: list[str] = [record["verdict"], *([found["verdict"]] if found else [])]
    return min(words, key=_LOUDEST.index)


def _title(record: Mapping[str, Any]) -> str:
    """Test and model; the formats of one test stand below one title."""
    engine = "" if record["engine"] == "transformers" else f" on {record['engine']}"
    return f"{record['test'].partition('[')[0]}: {record['model']}{engine}"


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    found = record.get("baseline")
    return (
        record["format"],
        shown_metric(record),
        shown_value(record) if "value" in record else "-",
        record.get("limit_shown") or "-",
        (found.get("change") or "-") if found else "-",
        verdict(record),
    )


def _recipe(record: Mapping[str, Any]) -> tuple[str, str]:
    """The format, and how its checkpoint was made."""
    return record["format"], record["proof"]["recipe"]


def _explanations(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Verdict and line for what the table alone does not say; a broken gate has said it in its failure."""
    found = record.get("baseline") or {}
    if "note" in record:
        yield "inconclusive", f"{record['format']} {shown_metric(record)}: {record['note']}"
    if record["verdict"] == "inconclusive":
        yield "inconclusive", f"{record['format']} {shown_metric(record)}: {record['reason']}"
    told = found.get("verdict") == "regressed" or record["verdict"] == "failed"
    told = told or (found.get("verdict") == "missing" and "conditions" in record)
    if found.get("reason") and not told:
        yield found["verdict"], f"{record['format']} {shown_metric(record)}: {found['reason']}"


def _conditions(records: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """A line for each kind of disturbance: what was seen of it first, and in how many measurements."""
    seen: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        for condition in record.get("conditions", ()):
            seen.setdefault(condition["name"], []).append(
                (f"{record['format']} {shown_metric(record)}", condition["text"])
            )
    for name, found in seen.items():
        where, text = found[0]
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"{where}{others}: {text}; such numbers become no baselines (--quant-accept={name} if that is usual)"


def _line(cells: Iterable[str], widths: Sequence[int], *, padded: bool = False) -> str:
    line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return line if padded else line.rstrip()
