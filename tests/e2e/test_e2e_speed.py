"""Speed gates in a run: what is marked, refused, shared and recorded."""

from __future__ import annotations

import pytest

from pytest_quant.hardware import conditions
from pytest_quant.hardware.condition import Condition, Conditions

SPEED = """
import pytest

@pytest.mark.quant(formats=["bf16"])
@pytest.mark.throughput_ratio(min={minimum}, prompt_tokens=16, new_tokens=4)
def test_speed(quant_model): ...
"""
OTHERS = Condition("other-process", "2 other processes hold 3.0 GB of the GPU")


@pytest.fixture
def disturbed(monkeypatch):
    """Somebody else is on the device."""
    monkeypatch.setattr(conditions.Watch, "stop", lambda watch: Conditions((OTHERS,), {"other_processes": 2.0}))


def test_what_was_disturbed_is_marked_and_never_becomes_a_baseline(project, disturbed):
    project.test(SPEED.format(minimum=1e-6))
    result, record = project.record("--quant-baseline")
    assert result.ret == 0
    (speed,) = record["measurements"]
    assert speed["conditions"] == [{"name": "other-process", "text": OTHERS.text}]
    assert speed["other_processes"] == 2.0
    assert (speed["verdict"], speed["baseline"]["verdict"]) == ("passed", "missing")
    assert project.baselines == {}
    line = f"bf16 decode speed*: {OTHERS.text}; such numbers become no baselines (--quant-accept=other-process if *)"
    result.stdout.fnmatch_lines([line])


@pytest.mark.parametrize("arguments", [["--quant-baseline-update=new"], ["--quant-baseline-update=all"]])
def test_not_even_when_it_is_asked_for(project, disturbed, arguments):
    project.test(SPEED.format(minimum=1e-6))
    project.gate(*arguments)
    assert project.baselines == {}


def test_where_a_baseline_is_required_it_is_missing(project, disturbed):
    project.test(SPEED.format(minimum=1e-6))
    result = project.gate("--quant-missing=fail")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*bf16 throughput_ratio missing: *record one with --quant-baseline-update=new*"])


def test_what_is_usual_on_a_runner_is_recorded(project, disturbed):
    project.test(SPEED.format(minimum=1e-6))
    result, record = project.record("--quant-baseline", "--quant-accept=other-process,cpu-load,cpu-quota")
    assert result.ret == 0
    assert "conditions" not in record["measurements"][0]
    assert len(project.entries) == 1


def test_a_regression_beside_others_breaks_nothing(project, monkeypatch):
    project.test(SPEED.format(minimum=1e-6))
    project.gate()
    project.change_baseline(lambda data: data["measurements"][0].update(value=1e6, low=1e6, high=1e6))
    assert project.gate().ret == pytest.ExitCode.TESTS_FAILED
    monkeypatch.setattr(conditions.Watch, "stop", lambda watch: Conditions((OTHERS,), {}))
    result, record = project.record("--quant-baseline")
    assert result.ret == 0
    assert record["measurements"][0]["baseline"]["verdict"] == "inconclusive"
    assert f"not judged: {OTHERS.text}" in record["measurements"][0]["baseline"]["reason"]


def test_a_limit_beside_others_still_breaks(project, disturbed):
    project.test(SPEED.format(minimum=1000).replace('"bf16"', '"nf4"'))
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_an_impossible_limit_is_refused_with_the_arithmetic(project):
    project.test(SPEED.format(minimum=1e9))
    result, record = project.record()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert not any("value" in measured for measured in record["measurements"])
    result.stdout.fnmatch_lines(["*throughput_ratio(min=1e+09) asks for more than the hardware allows: fp32 makes*"])
    assert not any("Traceback" in line for line in result.outlines)


def test_a_grid_makes_a_gate_of_each_combination(project):
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["bf16"])
        @pytest.mark.throughput_ratio(min=1e-6, batch_size=[1, 2], prompt_tokens=[8, 16], new_tokens=2)
        def test_grid(quant_model): ...
        """
    )
    result, record = project.record("--quant-baseline")
    assert result.ret == 0
    cells = [(m["parameters"]["batch_size"], m["parameters"]["prompt_tokens"]) for m in record["measurements"]]
    assert cells == [(1, 8), (1, 16), (2, 8), (2, 16)]
    assert len(project.entries) == 4


def test_options_of_a_workload_are_its_identity(project):
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["bf16"])
        @pytest.mark.throughput_ratio(min=1e-6, prompt_tokens=8, new_tokens=2)
        @pytest.mark.throughput_ratio(min=1e-6, prompt_tokens=8, new_tokens=2, cache="static")
        @pytest.mark.throughput_ratio(min=1e-6, prompt_tokens=8, phase="ttft")
        def test_options(quant_model): ...
        """
    )
    _, record = project.record("--quant-baseline")
    first, second, third = (measured["identity"]["metric"] for measured in record["measurements"])
    told = {(metric["phase"], metric["cache"], metric["compile"]) for metric in (first, second, third)}
    assert told == {("ttft", "dynamic", False), ("decode", "static", False), ("decode", "dynamic", False)}
    forced = {metric.get("min_new_tokens") for metric in (first, second, third) if metric["phase"] == "decode"}
    assert forced == {2}, "every text is as long"
    assert len(project.entries) == 3


def test_cost_from_an_ini_price(project):
    project.ini(f"quant_model = {project.model}", "quant_price = 2.5")
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["bf16"])
        @pytest.mark.cost_ratio(max=1000, max_usd=1e9, prompt_tokens=8, new_tokens=2)
        def test_cost(quant_model): ...
        """
    )
    result, record = project.record()
    assert result.ret == 0
    (cost,) = record["measurements"]
    assert cost["identity"]["metric"]["price"] == 2.5
    assert cost["statistics"]["usd"]["unit"] == "$/Mtok"
    speed = cost["format_value"]
    assert cost["statistics"]["usd"]["value"] == pytest.approx(2.5 / 3600 / speed * 1e6)


def test_energy_that_nothing_counts_is_a_skip(project, monkeypatch):
    from pytest_quant.errors import Unsupported
    from pytest_quant.hardware import energy

    def none(device):
        raise Unsupported("the energy that the CPU takes", "no counter", "one")

    monkeypatch.setattr(energy, "counter", none)
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["bf16"])
        @pytest.mark.energy_ratio(max=1)
        def test_energy(quant_model): ...
        """
    )
    result, record = project.record()
    result.assert_outcomes(skipped=1)
    assert "asked: the energy that the CPU takes; found: no counter; needed: one" in record["skipped"][0]["reason"]


def test_workers_beside_each_other_are_a_condition(project):
    project.test(SPEED.format(minimum=1e-6))
    result = project.pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-n2", "--dist=loadfile", "--quant-baseline", "--quant-json=run.json"
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["bf16 decode speed*: beside 1 other pytest worker*; such numbers become no baselines*"]
    )
    assert project.baselines == {}
