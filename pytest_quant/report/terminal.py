"""The table at the end of a run: readable at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from pytest_quant.ledger import Ledger
from pytest_quant.report.below import below
from pytest_quant.report.rows import HEADERS, cells, remarks, title

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


def summarize(
    reporter: pytest.TerminalReporter, ledger: Ledger, messages: Sequence[str], troubles: Sequence[str]
) -> None:
    """Write the table, then what was written to files, then what keeps the run from being green."""
    reporter.section("quantization", sep="=")
    if ledger.hardware:
        reporter.write_line(f"on {ledger.hardware['name']} ({ledger.hardware['architecture']})")
    rows = [(title(record), cells(record), below(record)) for record in ledger.records]
    widths = [max(len(line[i]) for line in (HEADERS, *(row for _, row, _ in rows))) for i in range(len(HEADERS))]
    for test in dict.fromkeys(of for of, _, _ in rows):
        reporter.write_line("")
        reporter.write_line(test)
        reporter.write_line(_line(HEADERS, widths), light=True)
        for row, lines in dict.fromkeys((row, lines) for of, row, lines in rows if of == test):
            reporter.write(_line(row[:-1], widths[:-1], padded=True) + "  ")
            reporter.write_line(row[-1], **_COLOURS[row[-1]])
            for line in lines:
                reporter.write_line(f"  {line}", light=True)
    for word, line in remarks(ledger.records):
        reporter.write_line(line, **({} if word == "passed" else _COLOURS[word]))
    if ledger.skipped:
        reporter.write_line("")
        for skip in ledger.skipped.values():
            reporter.write_line(f"not measured: {skip['test']}: {skip['reason']}", yellow=True)
    for message in messages:
        reporter.write_line(message)
    for trouble in troubles:
        reporter.write_line(f"ERROR: {trouble}", red=True, bold=True)


def _line(cells: Iterable[str], widths: Sequence[int], *, padded: bool = False) -> str:
    line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return line if padded else line.rstrip()
