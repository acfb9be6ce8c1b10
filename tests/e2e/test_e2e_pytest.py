"""A gate behaves as any assertion does: -k, -x, --lf, xfail, reruns, xdist, Ctrl-C."""

from __future__ import annotations

import json

import pytest

THREE = """
import pytest

@pytest.mark.memory_budget(max_gb=1)
def test_a(quant_model): ...

@pytest.mark.memory_budget(max_gb=0.0001)
def test_b(quant_model): ...

@pytest.mark.perplexity_delta(max_ratio=3.0)
def test_c(quant_model): ...
"""


def test_gates_fail_inside_their_test(project):
    project.test(THREE)
    result, counts = project.junit()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    assert counts == {"tests": 3, "failures": 1, "errors": 0, "skipped": 0}
    result.stdout.fnmatch_lines(["FAILED test_quant.py::test_b[[]int8[]] - int8 memory_budget failed: *"])
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")
    assert [entry["metric"] for entry in project.entries] == ["perplexity_delta"], (
        "a value that breaks a limit stays out"
    )


def test_every_broken_gate_is_in_the_one_failure(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=0.0001)
        @pytest.mark.perplexity_delta(max=0.0)
        def test_both(quant_model): ...
        """
    )
    result, counts = project.junit()
    assert counts["failures"] == 1
    result.stdout.fnmatch_lines(["2 gates are broken*", "  int8 perplexity_delta*", "  int8 memory_budget*"])


def test_the_body_comes_first_and_its_failure_is_the_tests(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        def test_body(quant_model):
            assert 1 == 2
        """
    )
    result = project.gate()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])
    assert project.baselines == {}


def test_k_leaves_the_other_entries_alone(project):
    project.test(THREE.replace("0.0001", "1.0"))
    assert project.gate().ret == 0
    before = {json.dumps(entry, sort_keys=True) for entry in project.entries}
    assert project.gate("-k", "test_a", "--quant-baseline-update=all").ret == 0
    assert {json.dumps(entry, sort_keys=True) for entry in project.entries} == before


def test_x_stops_after_the_broken_gate(project):
    project.test(THREE)
    result = project.gate("-x")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)


def test_lf_runs_the_broken_gate_again(project):
    project.test(THREE)
    pytester = project.pytester
    assert pytester.runpytest_inprocess("--quant-baseline").ret == pytest.ExitCode.TESTS_FAILED
    result = pytester.runpytest_inprocess("--quant-baseline", "--lf")
    result.assert_outcomes(failed=1, passed=0)


def test_xfail_expects_a_broken_gate_and_records_nothing_of_it(project):
    project.test(
        """
        import pytest

        @pytest.mark.xfail(raises=AssertionError, strict=True)
        @pytest.mark.memory_budget(max_gb=0.0001)
        def test_known(quant_model): ...

        @pytest.mark.xfail(strict=True)
        @pytest.mark.memory_budget(max_gb=1)
        def test_mended(quant_model): ...
        """
    )
    result, counts = project.junit()
    result.assert_outcomes(xfailed=1, failed=1)
    assert counts == {"tests": 2, "failures": 1, "errors": 0, "skipped": 1}
    assert project.baselines == {}


def test_reruns_measure_once_and_fail_the_same(project):
    pytest.importorskip("pytest_rerunfailures")
    project.test(THREE)
    result = project.gate("--reruns=2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    assert result.parseoutcomes()["rerun"] == 2


def test_a_rerun_that_passes_is_recorded(project):
    pytest.importorskip("pytest_rerunfailures")
    project.test(
        """
        import pytest
        tries = []

        @pytest.mark.memory_budget(max_gb=1)
        def test_flaky(quant_model):
            tries.append(1)
            assert len(tries) == 2
        """
    )
    result = project.gate("--reruns=1")
    assert result.ret == 0
    assert len(project.entries) == 1


def test_a_failing_teardown_keeps_the_value_out(project):
    project.test(
        """
        import pytest

        @pytest.fixture
        def breaks():
            yield
            raise RuntimeError("late")

        @pytest.mark.memory_budget(max_gb=1)
        def test_late(breaks, quant_model): ...
        """
    )
    result = project.gate()
    result.assert_outcomes(passed=1, errors=1)
    assert project.baselines == {}


def test_ctrl_c_between_two_tests_keeps_what_was_measured(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        def test_first(quant_model): ...

        def test_stop():
            raise KeyboardInterrupt

        @pytest.mark.perplexity_delta(max_ratio=3.0)
        def test_never(quant_model): ...
        """
    )
    result = project.pytester.runpytest_subprocess("--quant-baseline-update=prune", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")
    assert [entry["metric"] for entry in project.entries] == ["memory_budget"]


def test_with_xdist_workers_measure_and_one_process_writes(project):
    pytest.importorskip("xdist")
    project.test(THREE)
    result = project.pytester.runpytest_subprocess("--quant-baseline", "-n2", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["int8 *memory weights*", "1 measurement recorded in *"])
    assert [entry["metric"] for entry in project.entries] == ["perplexity_delta"]
    assert len(project.baselines) == 1


def test_with_xdist_and_no_option_at_all_the_table_is_there(project):
    pytest.importorskip("xdist")
    project.test(THREE)
    result = project.pytester.runpytest_subprocess("-n1", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*= quantization =*", "int8 *memory weights*failed"])


def test_models_are_loaded_once_and_tests_ordered_for_it(project):
    project.conftest(
        """
        from transformers import AutoModelForCausalLM

        load = AutoModelForCausalLM.from_pretrained

        def counted(*args, **kwargs):
            with open("loads.txt", "a") as stream:
                stream.write("int8\\n" if "quantization_config" in kwargs else f"{kwargs['dtype']}\\n")
            return load(*args, **kwargs)

        AutoModelForCausalLM.from_pretrained = counted

        def pytest_unconfigure():
            AutoModelForCausalLM.from_pretrained = load
        """
    )
    project.test(
        """
        import pytest

        @pytest.mark.parametrize("n", [1, 2])
        @pytest.mark.quant(formats=["int8", "bf16"])
        @pytest.mark.perplexity_delta(max_ratio=3.0)
        def test_one(quant_model, n): ...

        def test_plain(): ...

        @pytest.mark.quant(formats=["bf16", "int8"])
        @pytest.mark.memory_budget(max_gb=1)
        def test_two(quant_model): ...
        """
    )
    result = project.gate("-v")
    assert result.ret == 0
    loads = (project.path / "loads.txt").read_text().split()
    assert sorted(loads) == ["int8", "torch.bfloat16", "torch.float32"]


def test_quant_formats_deselects_what_it_does_not_name(project):
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["int8", "bf16"])
        @pytest.mark.memory_budget(max_gb=1)
        def test_marked(quant_model): ...

        def test_other(): ...
        """
    )
    result = project.gate("--quant-formats=bf16", "-v")
    assert result.ret == 0
    result.assert_outcomes(passed=2, deselected=1)
    result.stdout.fnmatch_lines(["*test_marked[[]bf16[]] PASSED*"])


def test_no_option_swallows_the_path_behind_it(project):
    project.test("def test_x(): ...", name="test_x")
    project.test("def test_y(): ...", name="test_y")
    result = project.run("--quant-baseline", "test_x.py")
    result.assert_outcomes(passed=1)
