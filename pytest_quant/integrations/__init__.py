"""What other reports of a pytest run learn of its gates: JUnit, pytest-html, pytest-json-report.

Each adapter hears the process that keeps the ledger, so that nothing has to travel from the workers of xdist besides
what they send anyway. An adapter is there from the start, for a suite without gates too: it imports at the
first gate what it needs to speak of gates.
"""

from __future__ import annotations

import pytest

from pytest_quant.run import Run


def register(config: pytest.Config, run: Run) -> None:
    """Add an adapter for each report that was asked for. What has no such plugin is left alone."""
    plugins = config.pluginmanager
    if config.getoption("xmlpath", None):
        from pytest_quant.integrations.junit import JUnit

        plugins.register(JUnit(run), "quant-junit")
    if plugins.hasplugin("html") and config.getoption("htmlpath", None):
        from pytest_quant.integrations.html import Html

        plugins.register(Html(run), "quant-html")
    if config.getoption("json_report", None):
        from pytest_quant.integrations.json_report import JsonReport

        plugins.register(JsonReport(run), "quant-json-report")
