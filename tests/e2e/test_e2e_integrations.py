"""What JUnit, pytest-html, pytest-json-report, a Markdown file and GitHub's step summary hear of a run."""

from __future__ import annotations

import html
import json
import re
from xml.etree import ElementTree

import pytest

SUITE = """
import pytest

def test_plain(): ...

@pytest.mark.quant(formats=["int8", "bf16"])
@pytest.mark.perplexity_delta(max_ratio=3.0)
@pytest.mark.memory_budget(max_gb=1)
@pytest.mark.memory_budget(max_gb=1, of="peak")
def test_holds(quant_model): ...

@pytest.mark.quant(formats=["bf16"])
@pytest.mark.memory_budget(max_gb=0.0000001)
def test_breaks(quant_model): ...

@pytest.mark.quant(formats=["bf16"])
@pytest.mark.memory_budget(max_gb=0.0000001)
@pytest.mark.xfail(reason="known")
def test_known(quant_model): ...

@pytest.mark.quant(formats=["nvfp4"])
@pytest.mark.memory_budget(max_gb=1)
def test_skipped(quant_model): ...
"""
WORKERS = pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one-process", "workers"])


def cases(path):
    """Properties of each test case, by its name, and those of the suite."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    found = {
        case.attrib["name"]: {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        for case in suite.findall("testcase")
    }
    return found, {each.attrib["name"]: each.attrib["value"] for each in suite.findall("properties/property")}


@WORKERS
def test_junit_has_the_gates_of_each_test_and_the_hardware_of_the_suite(project, workers):
    pytest.importorskip("xdist")
    project.test(SUITE)
    _, record = project.record("--quant-baseline", "--junitxml=junit.xml", *workers)
    found, suite = cases(project.path / "junit.xml")
    assert found["test_plain"] == {}
    assert found["test_skipped[nvfp4]"] == {}
    of = {
        (each["test"].partition("::")[2], each["metric"], each["limit_shown"]): each for each in record["measurements"]
    }
    holds = of["test_holds[int8]", "perplexity_delta", "max 3x"]
    told = found["test_holds[int8]"]
    name = "quant.perplexity_delta[int8]"
    assert {what: float(told[f"{name}.{what}"]) for what in ("value", "low", "high")} == {
        what: holds[what] for what in ("value", "low", "high")
    }
    assert (told[f"{name}.unit"], told[f"{name}.limit.max_ratio"]) == ("ppl", "3.0")
    ratio = holds["statistics"]["ratio"]["value"]
    assert float(told[f"{name}.margin.max_ratio"]) == pytest.approx(3.0 - ratio)
    assert float(told[f"{name}.used.max_ratio"]) == pytest.approx((ratio - 1.0) / 2.0)
    assert (told[f"{name}.verdict"], told[f"{name}.baseline.verdict"]) == ("passed", "new")
    memory = {each for each in told if each.startswith("quant.memory_budget") and each.endswith(".value")}
    assert memory == {
        "quant.memory_budget[int8 memory weights].value",
        "quant.memory_budget[int8 memory peak].value",
    }
    broken = found["test_breaks[bf16]"]
    assert broken["quant.memory_budget[bf16 memory weights].verdict"] == "failed"
    assert "above the limit" in broken["quant.memory_budget[bf16 memory weights].reason"]
    assert float(broken["quant.memory_budget[bf16 memory weights].margin.max_gb"]) < 0
    assert suite["quant.model"] == record["measurements"][0]["model"]
    assert suite["quant.hardware"] == record["environment"]["hardware"]["name"]


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
def test_both_families_have_them(project, family):
    project.test(
        """
        import pytest

        @pytest.fixture
        def late():
            yield
            raise RuntimeError("late")

        @pytest.mark.memory_budget(max_gb=0.0000001)
        def test_breaks_twice(quant_model, late): ...
        """
    )
    result = project.gate("--junitxml=junit.xml", "-o", f"junit_family={family}")
    result.assert_outcomes(failed=1, errors=1)
    suite = ElementTree.parse(project.path / "junit.xml").getroot().find("testsuite")
    first = suite.findall("testcase")[0]
    assert first.find("failure") is not None
    told = {each.attrib["name"]: each.attrib["value"] for each in first.iter("property")}
    assert told["quant.memory_budget[int8 memory weights].verdict"] == "failed"


def test_a_rerun_tells_each_number_once(project):
    pytest.importorskip("pytest_rerunfailures")
    project.test(
        """
        import pytest

        tries = []

        @pytest.fixture
        def late():
            yield
            tries.append(None)

        @pytest.mark.memory_budget(max_gb=1)
        @pytest.mark.flaky(reruns=2)
        def test_flaky(quant_model, late):
            assert len(tries) == 1
        """
    )
    result = project.gate("--junitxml=junit.xml")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    suite = ElementTree.parse(project.path / "junit.xml").getroot().find("testsuite")
    names = [each.attrib["name"] for each in suite.iter("property") if each.attrib["name"].endswith(".value")]
    assert names.count("quant.memory_budget[int8 memory weights].value") == 1


def test_a_suite_without_gates_has_no_properties(project):
    project.test("def test_plain(): ...")
    result = project.run("--junitxml=junit.xml", "--quant-json=run.json")
    assert result.ret == 0
    assert "propert" not in (project.path / "junit.xml").read_text()


@WORKERS
def test_the_json_report_has_the_records_of_each_test(project, workers):
    pytest.importorskip("pytest_jsonreport")
    project.test(SUITE)
    project.run("--json-report", "--quant-json=run.json", *workers)
    report = json.loads((project.path / ".report.json").read_text())
    record = json.loads((project.path / "run.json").read_text())
    tests = {test["nodeid"].partition("::")[2]: test.get("metadata", {}) for test in report["tests"]}
    assert tests["test_plain"] == tests["test_skipped[nvfp4]"] == {}
    told = tests["test_holds[int8]"]["quantization"]
    expected = [each for each in record["measurements"] if each["test"].endswith("test_holds[int8]")]
    assert len(told) == 3
    dropped = ("scores", "reference_scores", "weights", "detail")
    assert told == [{name: each[name] for name in each if name not in dropped} for each in expected]
    assert any("scores" in each for each in expected), "and that is what was left out"
    assert report["quantization"] == {name: record[name] for name in record if name != "measurements"}
    assert report["quantization"]["failed"] == ["test_quant.py::test_breaks[bf16]"]


def test_the_json_report_hears_of_what_else_makes_the_run_red(project):
    pytest.importorskip("pytest_jsonreport")
    project.test("import pytest\n@pytest.mark.memory_budget(max_gb=1)\ndef test_it(quant_model): ...")
    result = project.run("--json-report", "--json-report-summary", "--quant-require=nf4")
    report = json.loads((project.path / ".report.json").read_text())
    assert result.ret == 1
    assert report["exitcode"] == 1
    assert report["quantization"]["troubles"] == [
        "--quant-require: nf4 was not measured (no test that ran asked for it)"
    ]


@WORKERS
def test_the_html_table_has_two_columns_more(project, workers):
    pytest.importorskip("pytest_html")
    project.test(SUITE)
    project.run("--html=report.html", "--self-contained-html", *workers)
    page = (project.path / "report.html").read_text()
    headers = re.findall(r"<th[^>]*>([^<]*)</th>", page)
    assert headers[:6] == ["Result", "Test", "Quantization", "Margin", "Duration", "Links"]
    data = json.loads(html.unescape(re.search(r'data-jsonblob="([^"]*)"', page).group(1)))
    rows = {
        test.partition("::")[2]: [re.sub("<[^>]*>", "", html.unescape(cell)) for cell in each["resultsTableRow"]]
        for test, tries in data["tests"].items()
        for each in tries
    }
    assert all(len(row) == 6 for row in rows.values())
    assert rows["test_plain"][2:4] == rows["test_skipped[nvfp4]"][2:4] == ["", ""]
    assert rows["test_holds[int8]"][2] == "passed"
    assert re.fullmatch(r"int8 .*: .* left, \d+% used", rows["test_holds[int8]"][3])
    assert rows["test_breaks[bf16]"][2] == "failed (bf16 memory weights)"
    assert rows["test_breaks[bf16]"][3].endswith("x the budget")
    assert "Quantization: red: 1 of 8 gates broken: bf16 memory weights failed" in page
    assert "above the limit" in data["tests"]["test_quant.py::test_breaks[bf16]"][0]["log"]


def test_without_these_plugins_nothing_of_ours_is_imported_for_them(pytester):
    pytester.makeconftest(
        """
        import json, pathlib, sys

        def pytest_unconfigure(config):
            found = [name for name in sys.modules if name.startswith("pytest_quant.integrations")]
            pathlib.Path("found.json").write_text(json.dumps(found))
        """
    )
    pytester.makepyfile("def test_plain(): ...")
    for arguments in ((), ("-p", "no:html", "-p", "no:pytest_jsonreport")):
        result = pytester.runpytest_subprocess("-p", "no:benchmark", "-p", "no:xdist", *arguments)
        result.assert_outcomes(passed=1)
        assert json.loads((pytester.path / "found.json").read_text()) == []


@WORKERS
def test_markdown_and_the_step_summary(project, workers, monkeypatch):
    summary = project.path / "summary.md"
    summary.write_text("# Written by an earlier command")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    project.test(SUITE)
    result = project.gate("--quant-markdown=out/pull-request.md", *workers)
    assert result.ret == 1
    shown = (project.path / "out" / "pull-request.md").read_text()
    assert shown.startswith("### ❌ Quantization: red\n\n1 of 8 gates broken: bf16 memory weights failed.\n")
    assert summary.read_text() == "# Written by an earlier command\n\n" + shown
    assert [path.name for path in (project.path / "out").iterdir()] == ["pull-request.md"]
    assert shown.count("| ❌ failed |") == 2, "the expected failure among them"
    assert "1 test skipped" in shown


def test_a_plain_run_writes_no_step_summary(project, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    project.test("def test_plain(): ...")
    assert project.run().ret == 0
    assert project.run("--quant-baseline").ret == 0
    assert not (project.path / "summary.md").exists()


@pytest.mark.parametrize("looking", ["--collect-only", "--quant-plan"])
def test_who_only_looks_writes_nothing(project, monkeypatch, looking):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    project.test(SUITE)
    project.run(looking, "--quant-markdown=out.md")
    assert not (project.path / "summary.md").exists()
    assert not (project.path / "out.md").exists()


def test_a_step_summary_that_cannot_be_written_is_a_line_and_markdown_an_error(project, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path))
    project.test("import pytest\n@pytest.mark.memory_budget(max_gb=1)\ndef test_it(quant_model): ...")
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["GITHUB_STEP_SUMMARY: * cannot be written: Is a directory"])
    result = project.run(f"--quant-markdown={project.path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--quant-markdown=*: this is a folder; name a file in it"])


def test_a_body_that_fails_is_red_though_no_gate_is_broken(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        def test_good(quant_model): ...

        @pytest.mark.memory_budget(max_gb=1)
        def test_body(quant_model):
            assert False
        """
    )
    result, record = project.record("--quant-markdown=out.md")
    assert result.ret == 1
    assert record["failed"] == ["test_quant.py::test_body[int8]"]
    shown = (project.path / "out.md").read_text()
    assert shown.startswith("### ❌ Quantization: red\n\n1 test failed outside its gates.\n")
    assert "❌ `test_quant.py::test_body[int8]` failed outside its gates" in shown


def test_a_run_that_was_interrupted_is_not_green(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        def test_good(quant_model): ...

        @pytest.mark.memory_budget(max_gb=1)
        def test_stop(quant_model):
            raise KeyboardInterrupt
        """
    )
    result = project.pytester.runpytest_subprocess("-p", "no:cacheprovider", "--quant-markdown=out.md")
    assert result.ret == 2
    shown = (project.path / "out.md").read_text()
    assert shown.startswith("### ⚠️ Quantization: interrupted\n\nThe run did not get to its end; until then 1 passed.\n")
