"""``quant_benchmark`` end to end: pytest-benchmark's tables, files and comparisons, with a model's speed in them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("pytest_benchmark")

BENCHMARKS = """
import pytest

@pytest.mark.quant(formats=["int8", "nf4"], reference="fp32")
@pytest.mark.benchmark(group="decode")
def test_decode(quant_model, quant_benchmark):
    quant_benchmark(quant_model, prompt_tokens=16, new_tokens=4, batch_size=2, rounds=3)
"""


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch):
    """pytest-benchmark measures nothing in a worker of xdist, as which these tests may run."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def benched(project):
    """A project with a benchmark of decode in two formats."""
    project.test(BENCHMARKS)
    return project


def saved(project, *arguments):
    """A run, and what pytest-benchmark wrote of it, by test."""
    result = project.run("--benchmark-json=bench.json", *arguments)
    found = json.loads((project.path / "bench.json").read_text())["benchmarks"]
    return result, {one["name"]: one for one in found}


def test_speeds_are_in_the_json_beside_the_times_that_they_come_from(benched):
    result, found = saved(benched)
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    assert set(found) == {"test_decode[int8]", "test_decode[nf4]"}
    for name, one in found.items():
        format, info, stats = name[12:-1], one["extra_info"], one["stats"]
        assert (one["group"], one["params"]) == ("decode", {"quant_format": format})
        assert (stats["rounds"], stats["iterations"]) == (3, 1)
        assert info["tokens_per_second"] == pytest.approx(2 * 4 / stats["median"])
        assert info["share_of_bound"] == pytest.approx(info["tokens_per_second"] / info["bound_tokens_per_second"])
        assert info["regime"] in ("bandwidth", "compute")
        named = {key: info[key] for key in ("format", "phase", "batch_size", "prompt_tokens", "new_tokens")}
        assert named == {
            "format": format,
            "phase": "decode",
            "batch_size": 2,
            "prompt_tokens": 16,
            "new_tokens": 4,
        }
        assert info["model"] == benched.model.name
    assert (
        found["test_decode[nf4]"]["extra_info"]["weight_bytes"]
        < found["test_decode[int8]"]["extra_info"]["weight_bytes"]
    )
    for format in ("nf4", "int8"):  # the table has the faster one first, whichever that was
        result.stdout.fnmatch_lines(["*benchmark 'decode': 2 tests*", f"*test_decode?{format}?*"])


@pytest.mark.parametrize(
    "arguments, tokens",
    [
        ("phase='prefill', prompt_tokens=16, batch_size=2", 32),
        ("phase='ttft', prompt_tokens=16, batch_size=2", 2),
        ("prompt_tokens=16, new_tokens=4, cache='static'", 4),
    ],
)
def test_each_phase_counts_its_own_tokens(project, arguments, tokens):
    project.test(f"def test_it(quant_model, quant_benchmark): quant_benchmark(quant_model, rounds=1, {arguments})")
    result, found = saved(project, "--quant-formats=nf4")
    assert result.ret == 0
    one = found["test_it[nf4]"]
    assert one["extra_info"]["tokens_per_second"] == pytest.approx(tokens / one["stats"]["median"])


def test_a_round_is_the_asked_number_of_steps_after_a_prompt_that_is_not_timed(project):
    project.test(
        """
        def test_it(reference_model, quant_benchmark, benchmark, monkeypatch):
            forwards, rounds, model = [], [], reference_model.model
            hook = model.register_forward_pre_hook(lambda _, args: forwards.append(tuple(args[0].shape)))
            pedantic = benchmark.pedantic

            def watched(target, *, setup, **rest):
                def ready():
                    setup()
                    rounds.append(len(forwards))

                def timed():
                    before = len(forwards)
                    target()
                    assert forwards[before:] == [(2, 1)] * 5

                return pedantic(timed, setup=ready, **rest)

            monkeypatch.setattr(benchmark, "pedantic", watched)
            quant_benchmark(reference_model, prompt_tokens=16, new_tokens=5, batch_size=2, rounds=2, warmup_rounds=1)
            hook.remove()
            assert len(rounds) == 3
            assert forwards[0] == (2, 16)
        """
    )
    project.run().assert_outcomes(passed=1)


def test_two_runs_are_compared(benched):
    first = benched.run("--benchmark-save=before", "--quant-formats=nf4")
    assert first.ret == 0
    second = benched.run("--benchmark-compare=0001", "--quant-formats=nf4")
    assert second.ret == 0
    second.stderr.fnmatch_lines(["Comparing against benchmarks from: *0001_before.json"])
    second.stdout.fnmatch_lines_random(["test_decode?nf4? (NOW) *", "test_decode?nf4? (0001_before) *"])
    broken = benched.run(
        "--benchmark-compare=0001", "--benchmark-compare-fail=mean:0.000000000001", "--quant-formats=nf4"
    )
    slower = "Performance has regressed" in broken.stdout.str() + broken.stderr.str()
    assert slower == (broken.ret != 0), "red if and only if it was slower this time"


@pytest.mark.parametrize("arguments", [["--benchmark-disable"], ["-n", "1"]], ids=["disabled", "xdist"])
def test_where_benchmarks_are_disabled_the_model_runs_once_and_no_speed_is_told(project, arguments):
    if "-n" in arguments:
        pytest.importorskip("xdist")
    project.test(
        """
        from pytest_quant.engines.timing import Runner

        def test_it(quant_model, quant_benchmark, monkeypatch):
            steps, runs = Runner.steps, []
            monkeypatch.setattr(Runner, "steps", lambda *given: runs.append(1) or steps(*given))
            told = quant_benchmark(quant_model, prompt_tokens=8, new_tokens=2)
            assert runs == [1]
            assert told["format"] == "nf4" and "bound_tokens_per_second" in told
            assert "tokens_per_second" not in told and "share_of_bound" not in told
        """
    )
    result = project.run("--quant-formats=nf4", *arguments)
    assert result.ret == 0
    result.assert_outcomes(passed=1)


def test_benchmark_only_and_skip_know_it_from_other_tests(benched):
    body = BENCHMARKS + "\n\n@pytest.mark.memory_budget(max_gb=1)\ndef test_gate(nf4_model): ...\n"
    benched.test(body)
    only = benched.run("--benchmark-only")
    only.assert_outcomes(passed=2, skipped=1)
    skip = benched.run("--benchmark-skip")
    skip.assert_outcomes(passed=1, skipped=2)


def test_gates_and_a_benchmark_in_one_test(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=0.000001)
        def test_it(quant_model, quant_benchmark):
            quant_benchmark(quant_model, prompt_tokens=8, new_tokens=2, rounds=1)
        """
    )
    result, found = saved(project, "--quant-formats=nf4")
    assert result.ret == 1, "the gate broke"
    result.assert_outcomes(failed=1)
    assert found["test_it[nf4]"]["extra_info"]["format"] == "nf4"


def test_a_missing_plugin_is_said_with_its_install(benched):
    result = benched.run("-p", "no:benchmark", "-W", "ignore::pytest.PytestUnknownMarkWarning")
    assert result.ret == 1
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["quant_benchmark runs models through pytest-benchmark, which is not active: *"])
    result.stdout.fnmatch_lines(["*pip install 'pytest-quant?benchmark?'*"])


@pytest.mark.parametrize(
    "call, said",
    [
        ("quant_model, batch_size=0", "quant_benchmark(batch_size=0): must be a whole number of 1 or more"),
        ("quant_model, phase='train'", "quant_benchmark(phase='train'): must be one of 'decode', 'prefill', 'ttft'"),
        ("quant_model, compile=True, cache='dynamic'", 'quant_benchmark(compile=True) needs cache="static"'),
        ("quant_model, rounds=0", "quant_benchmark(rounds=0): must be a whole number of 1 or more"),
        ("quant_model, warmup_rounds=-1", "quant_benchmark(warmup_rounds=-1): must be a whole number of 0 or more"),
        ("quant_model, prompt_tokens=4096", "decode of 4128 tokens does not fit the model's 512 positions"),
        ("quant_model.model", "quant_benchmark times a model fixture such as quant_model, not LlamaForCausalLM"),
        ("quant_model, speed=1", "unexpected keyword argument 'speed'"),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_what_is_right(project, call, said):
    project.test(f"def test_it(quant_model, quant_benchmark): quant_benchmark({call})")
    result = project.run("--quant-formats=nf4")
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    assert said in result.stdout.str()


def test_the_plugin_starts_without_pytest_benchmark(pytester):
    pytester.makeconftest(
        """
        import pathlib, sys

        def pytest_unconfigure(config):
            found = [name for name in sys.modules if name.startswith("pytest_benchmark")]
            pathlib.Path("found.txt").write_text(" ".join(found))
        """
    )
    pytester.makepyfile("def test_plain(): ...")
    pytester.runpytest_subprocess("-p", "no:benchmark").assert_outcomes(passed=1)
    assert (pytester.path / "found.txt").read_text() == ""
