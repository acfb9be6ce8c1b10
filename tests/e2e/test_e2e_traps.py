"""The traps that well-known tools fall into, one test each: return code, outcomes, JUnit's counts, bytes on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

ONE = """
import pytest

@pytest.mark.memory_budget(max_gb=1)
def test_one(quant_model): ...
"""
TWO = (
    ONE
    + """
@pytest.mark.perplexity_delta(max_ratio=3.0)
def test_two(quant_model): ...
"""
)
GREEN, RED = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED


@dataclass
class State:
    """How a run ended."""

    result: pytest.RunResult
    junit: dict[str, int]
    files: dict[str, bytes]

    def is_(self, code: pytest.ExitCode, *, files: dict[str, bytes] | None = None, **outcomes: int) -> None:
        """Assert the return code, the outcomes, the same in JUnit and, if given, the bytes on disk."""
        assert self.result.ret == code
        self.result.assert_outcomes(**outcomes)
        failures, errors = outcomes.get("failed", 0), outcomes.get("errors", 0)
        assert (self.junit["failures"], self.junit["errors"]) == (failures, errors)
        assert self.junit["skipped"] == outcomes.get("skipped", 0) + outcomes.get("xfailed", 0)
        if files is not None:
            assert self.files == files


@pytest.fixture
def run(project):
    def state(*arguments: str) -> State:
        result, junit = project.junit(*arguments)
        return State(result, junit, project.baselines)

    return state


def worsen(data) -> None:
    """Make the baseline so good that the same code is a regression."""
    for entry in data["measurements"]:
        if "scores" in entry:
            entry["scores"] = [score - 0.1 for score in entry["scores"]]
        else:
            entry["value"] *= 0.5


def test_an_option_that_swallows_the_path_behind_it(project, run):
    project.test(ONE, name="test_a")
    project.test(ONE, name="test_b")
    for option in ("--quant-baseline", "--quant-plan"):
        result = project.run(option, "test_a.py")
        assert result.ret == GREEN
        result.stdout.fnmatch_lines(["*test_a*"])
        result.stdout.no_fnmatch_line("*test_b*")


def test_a_regression_that_is_raised_after_the_tests(project, run):
    """... prints a traceback, loses the count of the passed and is no failure in JUnit."""
    project.test(TWO)
    run().is_(GREEN, passed=2)
    project.change_baseline(lambda data: worsen({"measurements": data["measurements"][:1]}))
    before = project.baselines
    state = run()
    state.is_(RED, passed=1, failed=1, files=before)
    state.result.stdout.no_fnmatch_line("*Traceback*")
    state.result.stdout.fnmatch_lines(["*1 failed, 1 passed*"])


def test_a_regressed_run_that_is_saved_so_that_the_next_passes(project, run):
    project.test(TWO)
    run().is_(GREEN, passed=2)
    project.change_baseline(worsen)
    before = project.baselines
    for _ in range(3):
        run().is_(RED, failed=2, files=before)
    run("--quant-baseline-update=new").is_(RED, failed=2, files=before)
    run("--quant-baseline-update=prune").is_(RED, failed=2, files=before)


def test_a_test_that_fails_after_measuring_and_is_saved(project, run):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        @pytest.mark.perplexity_delta(max=0.0)
        def test_half(quant_model): ...

        def test_by_hand(quant_measure):
            assert quant_measure.memory_budget("nf4") > 0
            assert False
        """
    )
    run().is_(RED, failed=2, files={})
    run("--quant-baseline-update=all").is_(RED, failed=2, files={})


def test_a_subset_that_becomes_the_latest(project, run):
    project.test(TWO)
    run().is_(GREEN, passed=2)
    before = project.baselines
    run("-k", "one").is_(GREEN, passed=1, files=before)
    run("-k", "one", "--quant-baseline-update=all").is_(GREEN, passed=1, files=before)
    run("--quant-missing=fail").is_(GREEN, passed=2, files=before)


def test_a_test_that_is_absent_from_the_file_and_passes(project, run):
    project.test(TWO)
    run("-k", "one").is_(GREEN, passed=1)
    before = project.baselines
    state = run("--quant-missing=fail")
    state.is_(RED, passed=1, failed=1, files=before)
    state.result.stdout.fnmatch_lines(["int8 perplexity_delta missing: no baseline*", "FAILED *::test_two*"])


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_baseline_of_nan_that_passes(project, run, literal):
    project.test(ONE)
    run().is_(GREEN, passed=1)
    text = project.baseline_path.read_text()
    value = json.loads(text)["measurements"][0]["value"]
    project.baseline_path.write_text(text.replace(f'"value": {value}', f'"value": {literal}'))
    before = project.baselines
    assert before[next(iter(before))].decode() != text
    state = run()
    state.is_(RED, failed=1, files=before)
    run("--quant-baseline-update=all").is_(RED, failed=1, files=before)


def test_a_malformed_file_that_is_passed_over_for_an_older_one(project, run):
    project.test(ONE)
    run().is_(GREEN, passed=1)
    own = project.baseline_path
    other = own.parent.parent / "other-device" / own.name
    other.parent.mkdir()
    other.write_bytes(own.read_bytes())
    own.write_text(own.read_text()[:-40])
    before = project.baselines
    state = run()
    state.is_(RED, failed=1, files=before)
    state.result.stdout.no_fnmatch_line("*KeyError*")


def test_a_missing_key_that_is_a_raw_error(project, run):
    project.test(ONE)
    run().is_(GREEN, passed=1)
    project.change_baseline(lambda data: data["measurements"][0].pop("unit"))
    before = project.baselines
    state = run()
    state.is_(RED, failed=1, files=before)
    state.result.stdout.fnmatch_lines(["*measurements[[]0[]]*unit*"])
    state.result.stdout.no_fnmatch_line("*KeyError*")


def test_a_machine_that_is_another_by_the_jitter_of_its_clock(project, run):
    """The key is the device's name and count; what changes from run to run stays out of it."""
    project.test(ONE)
    run().is_(GREEN, passed=1)
    hardware = json.loads(project.baseline_path.read_text())["hardware"]
    assert set(hardware) == {"key", "name", "count", "architecture"}
    assert project.baseline_path.parent.name == hardware["key"]


def test_an_update_that_deletes_what_died_before_its_gate(project, run):
    project.test(TWO)
    run().is_(GREEN, passed=2)
    before = project.baselines
    project.test(TWO.replace("def test_two(quant_model): ...", "def test_two(quant_model): raise OSError"))
    run("--quant-baseline-update=prune").is_(RED, passed=1, failed=1, files=before)
    run("--quant-baseline-update=all").is_(RED, passed=1, failed=1, files=before)


def test_exit_codes_that_are_added_up(project, run):
    """A failing test, a format that was required and never measured, and a file that cannot be written: still 1."""
    in_the_way = "\n\ndef test_late(): __import__('pathlib').Path('quant-baselines').write_text('in the way')\n"
    project.test(TWO.replace("max_ratio=3.0", "max=0.0") + in_the_way)
    result = project.gate("--quant-require=fp4", "--quant-json=quant-baselines/run.json")
    assert result.ret == RED
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_nothing_measured_that_prints_ok(project, run):
    project.test(ONE.replace("@pytest.mark.memory", '@pytest.mark.quant(formats=["fp8"])\n@pytest.mark.memory'))
    run("--quant-missing=fail").is_(RED, skipped=1, files={})


def test_a_missing_baseline_that_is_a_skip(project, run):
    project.test(ONE)
    run("--quant-missing=fail").is_(RED, failed=1, files={})


def test_a_model_that_is_compared_with_itself(project, run, monkeypatch):
    """Both sides load the format: the difference is exactly zero, and that is an error, not the best of results."""
    from pytest_quant import models
    from pytest_quant.formats import registry

    load = models.Models._load
    monkeypatch.setattr(models.Models, "_load", lambda self, spec, format: load(self, spec, registry.get("int8")))
    project.test(TWO)
    state = run()
    state.is_(RED, passed=1, failed=1)
    state.result.stdout.fnmatch_lines(
        ["*int8 perplexity_delta not-measured: *have exactly the fp32 reference's scores*"]
    )


def test_checks_that_are_silently_off(project, run):
    project.test("import pytest\n\n@pytest.mark.skip(reason='flaky')" + ONE.replace("import pytest\n", ""))
    run().is_(GREEN, skipped=1, files={})
    state = run("--quant-require=int8")
    state.is_(RED, skipped=1, files={})
    state.result.stdout.fnmatch_lines(["ERROR: --quant-require: int8 was not measured (flaky)"])
