"""The gates of each test in the file of pytest-json-report, and what the run says besides."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_quant.run import Run

_ONLY_IN_THE_RUN_RECORD = ("scores", "reference_scores", "weights", "detail")
"""Lists of one number a window, item or layer."""


class JsonReport:
    """Adds to the report when the run has ended and its verdicts are final."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @pytest.hookimpl(optionalhook=True)
    def pytest_json_modifyreport(self, json_report: dict[str, Any]) -> None:
        run = self._run
        if not run.used or not (run.ledger.records or run.ledger.skipped or run.troubles):
            return
        record = run.record()
        gates: dict[str, list[dict[str, Any]]] = {}
        for measurement in record.pop("measurements"):
            told = {name: value for name, value in measurement.items() if name not in _ONLY_IN_THE_RUN_RECORD}
            gates.setdefault(measurement["test"], []).append(told)
        json_report["quantization"] = record
        for test in json_report.get("tests", ()):
            if test["nodeid"] in gates:
                test.setdefault("metadata", {})["quantization"] = gates[test["nodeid"]]
