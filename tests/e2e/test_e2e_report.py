"""The table at the end: readable at 80 columns, without colour, and quiet in a pipe."""

from __future__ import annotations

import re

import pytest

ALL = """
import pytest

@pytest.mark.quant(formats=["int8", "nf4"])
@pytest.mark.perplexity_delta(max_ratio=3.0)
@pytest.mark.memory_budget(max_ratio=1.5)
@pytest.mark.memory_budget(max_gb=1, of="peak")
@pytest.mark.throughput_ratio(min=0.01, prompt_tokens=8, new_tokens=2)
@pytest.mark.throughput_ratio(min=0.01, phase="prefill", prompt_tokens=8)
def test_all(quant_model): ...
"""
HEADER = re.compile(r"format  metric +value +limit +baseline +verdict")


def table(result: pytest.RunResult) -> list[str]:
    start = next(i for i, line in enumerate(result.outlines) if HEADER.fullmatch(line))
    rows = result.outlines[start:]
    return rows[: next(i for i, line in enumerate(rows) if not re.match(r"(format|int8|nf4) ", line))]


def test_one_table_in_80_columns_without_colour(project):
    project.test(ALL)
    project.gate()
    result = project.gate()
    rows = table(result)
    assert len(rows) == 1 + 10
    assert max(map(len, rows)) <= 80
    assert not any("\x1b" in line for line in result.outlines)
    words = {row.split()[-1] for row in rows[1:]}
    assert words <= {"passed", "improved", "inconclusive"}


def test_the_verdict_has_a_colour_and_is_a_word_all_the_same(project):
    project.test(ALL)
    result = project.gate("--color=yes")
    assert any(line.endswith("\x1b[36mnew\x1b[0m") for line in result.outlines)


def test_progress_stays_out_of_a_pipe(project):
    project.test(ALL)
    result = project.gate()
    assert not any("loading tiny-llama" in line or "windows" in line for line in result.outlines)


def test_progress_on_a_terminal(project, monkeypatch):
    """What is shown while models load and windows are scored, and that nothing of it stays."""
    from pytest_quant.report import progress

    shown = []

    class Listening(progress.TerminalProgress):
        def _line(self, text: str, first: bool) -> None:
            shown.append(text)
            super()._line(text, first)

    monkeypatch.setattr(progress, "_EVERY", 0.0)
    monkeypatch.setattr(
        progress, "for_config", lambda config: Listening(config.pluginmanager.getplugin("terminalreporter"), config)
    )
    project.test(ALL)
    result = project.gate()
    assert result.ret == 0
    assert "loading tiny-llama in nf4" in shown
    assert "int8: scoring tiny-llama 8/8 windows" in shown
    assert "nf4: timing decode against fp32 9/9 rounds" in shown
    assert shown[-1] == ""


def test_quiet_and_without_a_terminal_reporter(project):
    project.test(ALL)
    assert project.gate("-q").ret == 0
    assert project.gate("-p", "no:terminal").ret == 0


def test_the_run_record_has_no_null_and_no_nan(project):
    project.test(ALL + "\n@pytest.mark.memory_budget(max_gb=0.00001)\ndef test_broken(quant_model): ...\n")
    _, record = project.record("--quant-baseline")

    def walk(value):
        assert value is not None
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(inner)

    walk(record)
    assert record["schema"] == 1
    assert set(record) == {"schema", "environment", "measurements", "skipped"}
    assert len(record["measurements"]) == 11
    for measured in record["measurements"]:
        assert set(measured) >= {
            "test",
            "metric",
            "model",
            "format",
            "engine",
            "limit",
            "verdict",
            "baseline",
            "identity",
        }
