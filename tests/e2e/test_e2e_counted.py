"""What pytest counts as failed, every report of a run counts as failed."""

from __future__ import annotations

import json

import pytest

SUBTESTS = """
import pytest

@pytest.mark.quant(formats=["int8"])
@pytest.mark.memory_budget(max_gb=1)
def test_spoilt(quant_model, subtests):
    with subtests.test("part"):
        assert 0

@pytest.mark.quant(formats=["int8"])
@pytest.mark.memory_budget(max_gb=1)
def test_sound(quant_model, subtests):
    with subtests.test("part"):
        pass
    with subtests.test("left out"):
        pytest.skip("not here")
"""
HOLDS = """
import pytest

@pytest.mark.quant(formats=["int8"])
@pytest.mark.memory_budget(max_gb=1)
def test_holds(quant_model): ...
"""
WORKERS = pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one-process", "workers"])
REPORTS = ("--quant-json=run.json", "--quant-markdown=run.md")


def reports(project):
    record = json.loads((project.path / "run.json").read_text(encoding="utf-8"))
    return record, (project.path / "run.md").read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="this pytest has no subtests")
@WORKERS
def test_a_failed_subtest_is_red_and_becomes_no_baseline(project, workers):
    if workers:
        pytest.importorskip("xdist")
    project.test(SUBTESTS)
    result = project.gate(*REPORTS, *workers)
    assert result.ret == 1
    record, headline = reports(project)
    assert record["failed"] == ["test_quant.py::test_spoilt[int8]"]
    assert record["skipped"] == []
    assert headline == "### ❌ Quantization: red"
    assert [entry["recorded"]["test"] for entry in project.entries] == ["test_quant.py::test_sound[int8]"]


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="this pytest has no subtests")
def test_a_subtest_that_fails_in_a_try_that_is_repeated_counts_as_little_as_the_try(project):
    pytest.importorskip("pytest_rerunfailures")
    project.test(
        SUBTESTS.replace("assert 0", "tries.append(1)\n        assert len(tries) > 1\n").replace(
            "import pytest\n", "import pytest\n\ntries = []\n", 1
        )
    )
    result = project.gate(*REPORTS, "--reruns=1")
    assert result.ret == 0
    record, headline = reports(project)
    assert record["failed"] == []
    assert headline == "### ✅ Quantization: green"
    assert len(project.entries) == 1  # two tests of one question


@pytest.mark.parametrize("arguments", [["--continue-on-collection-errors"], [], ["-n", "2"]])
def test_a_file_that_cannot_be_collected_is_red(project, arguments):
    if "-n" in arguments:
        pytest.importorskip("xdist")
    project.test(HOLDS)
    project.test("import no_such_module_anywhere", name="test_torn")
    result = project.run(*REPORTS, *arguments)
    assert result.ret != 0
    record, headline = reports(project)
    assert record["troubles"] == ["1 file could not be collected: test_torn.py"]
    assert headline == "### ❌ Quantization: red"
    assert len(record["measurements"]) == bool(arguments)  # xdist goes on by itself


def test_a_test_that_passes_against_a_strict_xfail_is_said_to(project):
    project.test(HOLDS.replace("def test_holds", "@pytest.mark.xfail(strict=True)\ndef test_holds"))
    result = project.run(*REPORTS)
    assert result.ret == 1
    record, headline = reports(project)
    assert record["unexpected"] == record["failed"] == ["test_quant.py::test_holds[int8]"]
    assert headline == "### ❌ Quantization: red"
    said = (project.path / "run.md").read_text(encoding="utf-8")
    assert "1 test passed against xfail(strict=True)." in said
    assert "outside" not in said


@pytest.mark.parametrize("other", ["--quant-markdown=./out/../run.json", "--quant-history=run.json"])
def test_two_outputs_of_one_place_are_refused_before_anything_runs(project, other):
    project.test(HOLDS)
    result = project.run("--quant-json=run.json", other)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *--quant-json writes there too; give each a place of its own"])
    assert not (project.path / "run.json").exists()


def test_a_run_that_collected_nothing_is_whole(project):
    project.test(HOLDS)
    result = project.run(*REPORTS, "-k", "no_such_test")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    record, headline = reports(project)
    assert "incomplete" not in record
    assert headline == "### ⚠️ Quantization: nothing measured"


def test_a_writer_that_crashes_is_said_and_the_others_write(project, monkeypatch):
    def crash(*_):
        raise KeyError("torn")

    monkeypatch.setattr("pytest_quant.report.json.write", crash)
    project.test(HOLDS)
    result = project.run(*REPORTS, "--junitxml=junit.xml")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "ERROR: --quant-json: *run.json was not written: KeyError: 'torn' (test_e2e_counted.py, line *"
            "This is a bug of pytest-quant*"
        ]
    )
    assert (project.path / "run.md").is_file()
    assert "quant.memory_budget" in (project.path / "junit.xml").read_text(encoding="utf-8")


def test_a_crash_at_the_end_keeps_no_other_report_from_being_written(project, monkeypatch):
    def crash(*_, **__):
        raise RuntimeError("torn")

    monkeypatch.setattr("pytest_quant.closing.close", crash)
    project.test(HOLDS)
    result = project.run(*REPORTS, "--junitxml=junit.xml")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(
        ["ERROR: the end of the run failed: RuntimeError: torn*bug of pytest-quant*", "*1 passed*"]
    )
    assert "quant.memory_budget" in (project.path / "junit.xml").read_text(encoding="utf-8")


def test_a_history_that_is_not_there_yet_is_no_error_of_the_page(project):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    pytest.importorskip("jinja2")
    project.test(HOLDS)
    result = project.run("-k", "no_such_test", "--quant-report=run.html", "--quant-history=kept")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "Nothing measured" in (project.path / "run.html").read_text(encoding="utf-8")
    assert not (project.path / "kept").exists()


def test_the_run_record_is_made_once(project, monkeypatch):
    from pytest_quant.report import json as made

    calls = []
    make = made.run_record
    monkeypatch.setattr(made, "run_record", lambda *a, **k: calls.append(k["own"]) or make(*a, **k))
    project.test(HOLDS)
    result = project.run(*REPORTS, "--junitxml=junit.xml")
    assert result.ret == 0
    assert len(calls) == 1
    assert {place.name for place in calls[0]} >= {"run.json", "run.md"}
