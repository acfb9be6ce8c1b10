"""SOURCE_DATE_EPOCH replaces the clock, so that the same run writes the same bytes."""

from __future__ import annotations

import pytest

from pytest_quant import environment
from pytest_quant.errors import UsageError

GATED = """
import pytest

@pytest.mark.quant(formats=["int8"])
@pytest.mark.memory_budget(max_gb=1)
def test_gate(): ...
"""


def test_it_is_the_clock_where_it_is_set(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert environment.clock() > 1.7e9
    assert environment.clock(5.0) == 5.0
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1735689600")
    assert environment.clock() == environment.clock(5.0) == 1735689600.0
    assert environment.for_people({})["date"] == "2025-01-01T00:00:00Z"


@pytest.mark.parametrize("text", ["", "soon", "-1", "1e9", "1735689600.5", " 1", "9" * 12, "١٢"])
def test_what_is_no_number_of_seconds_is_a_mistake(monkeypatch, text):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError, match=r"SOURCE_DATE_EPOCH is .* must be a whole number of seconds since 1970"):
        environment.clock()


def test_baselines_and_run_records_have_its_date(project, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1735689600")
    project.test(GATED)
    result, record = project.record("--quant-baseline")
    assert result.ret == 0
    assert record["environment"]["started"] == "2025-01-01T00:00:00Z"
    (entry,) = project.entries
    assert entry["recorded"]["date"] == "2025-01-01T00:00:00Z"


def test_a_mistake_in_it_is_said_before_anything_runs_and_only_where_it_counts(project, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    project.test(GATED)
    result = project.gate()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: the environment variable SOURCE_DATE_EPOCH is 'soon': it must be *"])
    assert project.baselines == {}
    project.test("def test_plain(): ...")
    assert project.run().ret == 0
