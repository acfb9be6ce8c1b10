"""Two columns in the table of pytest-html: the verdict on a test's gates, and the margin of the one that is nearest to
its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pytest

from pytest_quant.run import CARRIED, Run

_PLACE = 2
"""Behind the result and the test."""


def columns(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Verdict and margin of one test, as text; both are empty where it has no gate."""
    if not records:
        return "", ""
    from pytest_quant.report.room import tightest, tightness
    from pytest_quant.report.rows import LOUDEST, verdict
    from pytest_quant.report.standing import named

    worst = min(records, key=lambda record: LOUDEST.index(verdict(record)))
    nearest = max(records, key=tightness)
    said = verdict(worst)
    of = f" ({named(worst)})" if said != "passed" else ""
    margin = tightest(nearest)
    return said + of, f"{named(nearest)}: {margin}" if margin else ""


class Html:
    """pytest-html's hooks; it makes rows from reports, in the process that writes its file."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_header(self, cells: list[str]) -> None:
        cells[_PLACE:_PLACE] = [
            '<th class="sortable" data-column-type="quantization">Quantization</th>',
            "<th>Margin</th>",
        ]

    @pytest.hookimpl(optionalhook=True, trylast=True)
    def pytest_html_results_table_row(self, report: pytest.TestReport, cells: list[str]) -> None:
        if not cells:  # another plugin does not want this row
            return
        carried = getattr(report, CARRIED, None)
        told = columns([payload["record"] for payload in carried["outcomes"]] if carried else [])
        shown = (escape(" ".join(text.split())) for text in told)
        cells[_PLACE:_PLACE] = [
            f'<td class="col-{name}">{text}</td>' for name, text in zip(("quantization", "margin"), shown, strict=True)
        ]

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        run = self._run
        if run.used and (run.ledger.records or run.ledger.skipped or run.troubles):
            from pytest_quant.report.standing import standing

            found = standing(run.record())
            prefix.append(f"<p>Quantization: {found.said}: {escape(found.text)}</p>")
