"""[tool.pytest-quant] in runs of pytest: what it decides, who wins over it, and when a mistake in it is said."""

from __future__ import annotations

import json

import pytest

TEST = """
import pytest

@pytest.mark.quant({quant})
@pytest.mark.memory_budget(max_gb=1)
def test_small(quant_model): ...
"""


@pytest.fixture
def table(project):
    """Writes the table of the project, which has no ini file then."""

    def write(*lines: str) -> None:
        (project.path / "pytest.ini").unlink(missing_ok=True)
        usual = [f'model = "{project.model}"', 'reference = "fp32"', 'protocol = "gptq-64"', 'corpus = "corpus.txt"']
        told = {line.partition(" ")[0] for line in lines}
        kept = [line for line in usual if line.partition(" ")[0] not in told]
        (project.path / "pyproject.toml").write_text("\n".join(["[tool.pytest-quant]", *kept, *lines, ""]))

    return write


def test_a_run_is_told_by_the_table(project, table):
    table('formats = ["int8", "nf4"]', "max-windows = 4")
    project.test(
        """
        import pytest

        @pytest.mark.perplexity_delta(max=1e6)
        def test_quality(quant_model): ...
        """
    )
    result, record = project.record()
    result.assert_outcomes(passed=2)
    assert {m["format"] for m in record["measurements"]} == {"int8", "nf4"}
    assert {m["reference"] for m in record["measurements"]} == {"fp32"}
    assert {m["windows"]["total"] for m in record["measurements"]} == {4}
    assert project.baselines == {}


def test_the_marker_wins_then_the_command_line_then_the_table(project, table):
    table('formats = ["int8"]', 'model = "nowhere"')
    (project.path / "model").symlink_to(project.model)
    project.test(TEST.format(quant=""))
    result, record = project.record("--quant-model=model", "--quant-formats=nf4")
    result.assert_outcomes(passed=1)
    assert [m["format"] for m in record["measurements"]] == ["nf4"]
    project.test(TEST.format(quant=f"model={str(project.model)!r}, formats=['bf16']"))
    result, record = project.record()
    result.assert_outcomes(passed=1)
    assert [m["format"] for m in record["measurements"]] == ["bf16"]


def test_a_folder_is_meant_from_the_file_wherever_pytest_is_started(project, table, monkeypatch):
    (project.path / "tests").mkdir()
    (project.path / "models").mkdir()
    (project.path / "models" / "tiny").symlink_to(project.model)
    table('formats = ["int8"]', 'model = "models/tiny"', 'baseline-path = "kept/here"')
    (project.path / "tests" / "test_quant.py").write_text(TEST.format(quant=""))
    monkeypatch.chdir(project.path / "tests")
    project.gate().assert_outcomes(passed=1)
    assert len(list((project.path / "kept" / "here").rglob("*.json"))) == 1


def test_the_defaults_of_ci_give_way_to_the_table(project, table, monkeypatch):
    monkeypatch.setenv("CI", "true")
    table('formats = ["int8"]')
    project.test(TEST.format(quant=""))
    assert project.gate().ret == pytest.ExitCode.TESTS_FAILED  # there is no baseline
    table('formats = ["int8"]', 'missing = "record"')
    assert project.gate().ret == 0


MISTAKES = ("price = 0", 'formats = ["int8"]', "prise = 1")


def test_every_mistake_is_said_before_anything_is_collected(project, table):
    table(*MISTAKES)
    project.test("raise SystemExit(3)  # nobody gets here")
    result = project.gate()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = [line for line in result.errlines if line]
    assert len(said) == 2
    assert said[0].startswith("ERROR: ")
    assert said[0].endswith("pyproject.toml: [tool.pytest-quant] prise: there is no such key; did you mean price?")
    assert said[1].endswith("pyproject.toml: [tool.pytest-quant] price = 0: must be a number above 0")


def test_an_override_of_the_ini_file_is_an_option_too(project, table):
    table()
    project.test("raise SystemExit(3)  # nobody gets here")
    result = project.run("-o", "quant_price=0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: -o quant_price=0: must be a number above 0"])


def test_a_mistake_is_said_at_the_first_test_where_no_option_is_given(project, table):
    table(*MISTAKES)
    project.test(TEST.format(quant=""))
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*test_quant.py::test_small: *prise: there is no such key*", "*price = 0: must be*"])
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")


def test_a_mistake_does_not_concern_a_run_without_quantization(project, table):
    table(*MISTAKES)
    project.test("def test_plain(): ...")
    project.run().assert_outcomes(passed=1)


def test_the_table_is_not_even_read_then(pytester):
    (pytester.path / "pyproject.toml").write_text("[tool.pytest-quant]\nprise = 1\n")
    pytester.makeconftest(
        """
        import json, pathlib, sys

        def pytest_unconfigure(config):
            names = [name for name in sys.modules if name.startswith("pytest_quant.")]
            pathlib.Path("found.json").write_text(json.dumps(names))
        """
    )
    pytester.makepyfile("def test_plain(): ...")
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
    found = json.loads((pytester.path / "found.json").read_text())
    assert "pytest_quant.plugin" in found
    assert not [name for name in found if name.startswith(("pytest_quant.configuration", "pytest_quant.options"))]


def test_said_in_both_files_ends_the_run(project, table):
    table('formats = ["int8"]')
    (project.path / "pytest.ini").write_text("[pytest]\nquant_formats = int8\n")
    project.test(TEST.format(quant=""))
    result = project.gate()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: quant_formats in *pytest.ini and formats in [[]tool.pytest-quant] of *pyproject.toml are one*"]
    )


def test_workers_are_told_the_same(project, table):
    pytest.importorskip("xdist")
    table('formats = ["int8", "nf4"]', "max-windows = 4")
    project.test(
        """
        def test_told(pytestconfig, worker_id):
            from pytest_quant import options

            told = options.read(pytestconfig)
            assert worker_id.startswith("gw")
            assert (told.formats, told.max_windows, told.reference) == (("int8", "nf4"), 3, "fp32")
        """
    )
    project.run("-n", "2", "-o", "quant_max_windows=3", "-c", "pyproject.toml").assert_outcomes(passed=1)


def test_a_mistake_is_said_under_workers_too(project, table):
    pytest.importorskip("xdist")
    table(*MISTAKES)
    project.test(TEST.format(quant=""))
    result = project.gate("-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *prise: there is no such key; did you mean price?", "", "ERROR: *price = 0*"])
