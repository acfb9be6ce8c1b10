"""--quant-report in runs of a user's project."""

from __future__ import annotations

import pytest

from pytest_quant.report.html import libraries, narrowing

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")

GATES = """
import pytest

@pytest.mark.quant(formats=["int8"])
@pytest.mark.perplexity_delta(max=50.0, max_ratio=40.0)
@pytest.mark.kl_divergence(max=9.0)
@pytest.mark.token_agreement(min=0.01)
def test_close(quant_model): ...
"""
BROKEN = """
import pytest

@pytest.mark.quant(formats=["int8"])
@pytest.mark.kl_divergence(max=1e-9)
def test_close(quant_model): ...
"""


def test_a_run_writes_its_page_and_its_last_looks_are_its_intervals(project):
    project.test(GATES)
    result, record = project.record("--quant-report=report.html")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["report: *report.html"])
    text = (project.path / "report.html").read_text(encoding="utf-8")
    assert "Of 3 gates none is broken" in text
    told, untold = narrowing.stories(record["measurements"])
    assert untold == []
    assert len(told) == 4
    for measurement in record["measurements"]:
        used = measurement["windows"]["used"]
        quantity = {"perplexity_delta": "delta", "kl_divergence": "mean", "token_agreement": "share"}
        last = narrowing.looks(measurement, quantity[measurement["metric"]])[-1]
        assert last.used == used
        assert (last.low, last.high) == pytest.approx((measurement["low"], measurement["high"]), abs=1e-9)


def test_a_reference_that_is_known_beforehand_gives_the_same_last_look(project):
    """Its mean enters the interval of the perplexity then; the second run reads it from the store."""
    project.test(GATES)
    project.run("--quant-full", f"--quant-cache-dir={project.path / 'cache'}")
    result, record = project.record(f"--quant-cache-dir={project.path / 'cache'}")
    assert result.ret == 0
    (measured,) = (each for each in record["measurements"] if each["metric"] == "perplexity_delta")
    last = narrowing.looks(measured, "delta")[-1]
    assert (last.low, last.high) == pytest.approx((measured["low"], measured["high"]), abs=1e-9)


def test_a_broken_gate_is_on_top(project):
    project.test(BROKEN)
    result = project.run("--quant-report=report.html")
    assert result.ret == 1
    text = (project.path / "report.html").read_text(encoding="utf-8")
    assert "<h1>Red</h1>" in text
    assert text.index('id="broken"') < text.index('id="verdicts"')


def test_a_run_that_skips_everything_says_so(project):
    project.test("import pytest\n@pytest.mark.quant(formats=['fp8'])\ndef test_it(quant_model): ...\n")
    project.run("--quant-report=report.html")
    assert "Nothing measured" in (project.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "place, said", [("report.txt", "name it .html"), ("folder.html", "this is a folder; name a file in it")]
)
def test_a_place_that_is_no_place_ends_the_run_before_it_begins(project, place, said):
    (project.path / "folder.html").mkdir()
    project.test(GATES)
    result = project.run(f"--quant-report={place}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--quant-report={place}*{said}*"])


def test_missing_libraries_end_the_run_before_it_begins(project, monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    project.test(GATES)
    result = project.run("--quant-report=report.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--quant-report=*: an HTML report needs *pip install 'pytest-quant[[]report]'*"])


def test_a_page_that_cannot_be_written_is_red_and_spares_the_record(project):
    project.test(f"{GATES}\n\ndef test_in_the_way():\n    open('file', 'w').close()\n")
    result, record = project.record("--quant-report=file/report.html")
    assert result.ret != 0
    assert len(record["measurements"]) == 3
    result.stdout.fnmatch_lines(["ERROR: --quant-report: *cannot be written*"])
