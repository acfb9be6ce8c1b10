"""Properties in JUnit's XML: of each quantization test its gates, of the suite what they were measured on.

Both families write the properties of a test case. Names and values are of the run record (docs/run-record.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from pytest_quant.run import Run

_NO_XML = re.compile("[^\t\n\r -~\x80-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML can hold; pytest itself sees to the values, and not to the names."""


def properties(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name and value of each number and verdict of one test, such as ``quant.perplexity_delta[nf4].value``. Numbers
    are written so that reading them gives the same number again."""
    found = []
    seen: Counter[str] = Counter()
    for record in records:
        name = _name(record)
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name}#{seen[name]}"
        found += [(_NO_XML.sub("\ufffd", f"{name}.{what}"), str(value)) for what, value in _told(record)]
    return found


def _name(record: Mapping[str, Any]) -> str:
    """Metric and format; of a metric with parameters what the table calls it besides."""
    from pytest_quant.report.naming import shown_metric

    called = f" {shown_metric(record)}" if record.get("parameters") else ""
    return f"quant.{record['metric']}[{record['format']}{called}]"


def _told(record: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    from pytest_quant.report.margins import margins

    yield from ((name, record[name]) for name in ("value", "low", "high", "unit") if name in record)
    yield from ((f"limit.{name}", limit) for name, limit in sorted(record["limit"].items()))
    for margin in margins(record):
        yield f"margin.{margin.name}", margin.room
        if margin.used is not None:
            yield f"used.{margin.name}", margin.used
    yield "verdict", record["verdict"]
    if "reason" in record:
        yield "reason", record["reason"]
    if found := record.get("baseline"):
        yield from ((f"baseline.{name}", found[name]) for name in ("verdict", "value", "change") if name in found)


class JUnit:
    """Adds the properties to what pytest itself writes."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # JUnit takes them from the last report of a case, which is a failed call where the teardown fails, too.
        if self._run.used and (report.when == "teardown" or (report.when == "call" and report.failed)):
            report.user_properties += properties(self._run.ledger.records_of(report.nodeid))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        run = self._run
        if not run.used or not run.ledger.records:
            return
        from _pytest.junitxml import xml_key  # as the fixture record_testsuite_property, which no plugin can ask for

        if (xml := session.config.stash.get(xml_key, None)) is None:
            return
        record = run.record()
        surroundings = record["environment"]
        told = {
            "quant.model": ", ".join(dict.fromkeys(each["model"] for each in record["measurements"])),
            "quant.hardware": surroundings["hardware"].get("name"),
            "quant.hardware.key": surroundings["hardware"].get("key"),
            "quant.commit": surroundings.get("commit"),
        }
        for name, value in told.items():
            if value is not None:
                xml.add_global_property(name, value)
