"""Every metric through its marker: what is measured, under which name and with which parameters."""

from __future__ import annotations

import pytest

SPEED = """
import pytest

@pytest.mark.quant(formats=["bf16"])
@pytest.mark.throughput_ratio(min={minimum}, {more})
def test_speed(quant_model): ...
"""


def by_parameters(record):
    return {
        measured["parameters"].get("of") or measured["parameters"].get("phase"): measured
        for measured in record["measurements"]
    }


def test_memory_of_weights_peak_and_kv_cache(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        @pytest.mark.memory_budget(max_gib=1, of="peak", context=256)
        @pytest.mark.memory_budget(max_ratio=1.5, of="kv_cache", batch_size=2, context=100)
        def test_memory(quant_model): ...
        """
    )
    result, record = project.record("--quant-baseline")
    assert result.ret == 0
    found = by_parameters(record)
    assert found["weights"]["value"] == found["weights"]["proof"]["weight_bytes"]
    assert found["peak"]["value"] >= found["weights"]["value"]
    layers, heads, width, floats = 2, 1, 32, 4
    assert found["kv_cache"]["value"] == 2 * layers * heads * width * floats * 100 * 2
    assert found["kv_cache"]["ratio"] == 1.0
    assert found["kv_cache"]["parameters"] == {"of": "kv_cache", "batch_size": 2, "context": 100}
    assert len(project.entries) == 3


def timed_by(monkeypatch, clock) -> list[str]:
    """Let each model take what ``clock`` says of its type: for a step, or a prefill. Returns who ran, in turn."""
    from pytest_quant.engines import timing

    ran: list[str] = []

    def ticks(runner) -> float:
        ran.append(str(next(runner._model.model.parameters()).dtype).removeprefix("torch."))
        return clock(ran[-1])

    monkeypatch.setattr(timing.Runner, "start", lambda self, *arguments: None)
    monkeypatch.setattr(timing.Runner, "steps", lambda self, count: [ticks(self)] * count)
    monkeypatch.setattr(timing.Runner, "prefill", lambda self, *arguments: ticks(self))
    monkeypatch.setattr(timing.Runner, "first_token", lambda self, *arguments: ticks(self))
    return ran


@pytest.mark.parametrize("phase, tokens", [("decode", 1), ("prefill", 32), ("ttft", 1)])
def test_throughput_times_both_models_in_each_round(project, monkeypatch, phase, tokens):
    clock = {"float32": 1.0, "bfloat16": 0.5}
    ran = timed_by(monkeypatch, clock.__getitem__)
    project.test(SPEED.format(minimum=1.9, more=f'phase="{phase}", prompt_tokens=32, new_tokens=4'))
    result, record = project.record()
    assert result.ret == 0
    (speed,) = record["measurements"]
    assert (speed["value"], speed["low"], speed["high"], speed["confidence"]) == (2.0, 2.0, 2.0, 0.99)
    assert (speed["format_value"], speed["reference_value"]) == (2.0 * tokens, 1.0 * tokens)
    assert speed["rounds"] == {"played": 10, "budget_spent": False}, "as many as bound an interval"
    rounds = ran[-20:]
    assert all({*rounds[place : place + 2]} == {*clock} for place in range(0, 20, 2))
    assert ran.count("float32") == ran.count("bfloat16")
    if phase == "decode":
        assert (speed["format_inter_token_p50_ms"], speed["reference_inter_token_p99_ms"]) == (500.0, 1000.0)
    else:
        assert not any("inter_token" in name for name in speed)


def test_gates_on_one_workload_share_its_rounds(project, monkeypatch):
    ran = timed_by(monkeypatch, {"float32": 1.0, "bfloat16": 0.5}.__getitem__)
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["bf16"])
        @pytest.mark.throughput_ratio(min=1.9, phase="prefill", prompt_tokens=36)
        @pytest.mark.cost_ratio(max=0.55, max_usd=20, price=3.6, phase="prefill", prompt_tokens=36)
        def test_one(quant_model): ...

        @pytest.mark.quant(formats=["bf16"])
        @pytest.mark.throughput_ratio(min=1.8, phase="prefill", prompt_tokens=36)
        def test_two(quant_model): ...
        """
    )
    result, record = project.record()
    assert result.ret == 0
    found = {(measured["test"].partition("::")[2], measured["metric"]): measured for measured in record["measurements"]}
    cost = found["test_one[bf16]", "cost_ratio"]
    assert (cost["value"], cost["low"], cost["high"]) == (0.5, 0.5, 0.5)
    # a thousandth of a dollar a second buys 72 tokens
    assert cost["statistics"]["usd"]["value"] == pytest.approx(1000 / 72)
    assert found["test_two[bf16]", "throughput_ratio"]["value"] == 2.0
    assert [measured["rounds"]["played"] for measured in record["measurements"]] == [11] * 3, (
        "the cost asks two questions"
    )
    assert len(ran) == 2 * (1 + 11), "each was warmed up once, and timed once"


def test_a_grid_is_a_measurement_of_each_cell(project, monkeypatch):
    timed_by(monkeypatch, {"float32": 1.0, "bfloat16": 0.5}.__getitem__)
    project.test(SPEED.format(minimum=1.9, more="batch_size=[1, 4], prompt_tokens=[8, 16], new_tokens=2"))
    result, record = project.record("--quant-baseline", "--quant-accept=cpu-load,cpu-quota")
    assert result.ret == 0
    cells = {(m["parameters"]["batch_size"], m["parameters"]["prompt_tokens"]) for m in record["measurements"]}
    assert cells == {(1, 8), (1, 16), (4, 8), (4, 16)}
    assert len(project.entries) == 4
    for measured in record["measurements"]:
        assert measured["format_value"] == 2.0 * measured["parameters"]["batch_size"]


@pytest.mark.parametrize("arguments, code", [([], 0), (["--quant-inconclusive=fail"], 1)])
def test_an_interval_that_contains_the_limit_is_inconclusive(project, monkeypatch, arguments, code):
    from itertools import cycle

    ticks = cycle([0.5, 2.0])
    timed_by(monkeypatch, lambda kind: next(ticks) if kind == "bfloat16" else 1.0)
    project.test(SPEED.format(minimum=1.0, more='phase="prefill", prompt_tokens=8'))
    result, record = project.record("--quant-baseline", "--quant-speed-budget=0.3", *arguments)
    assert result.ret == code
    (speed,) = record["measurements"]
    assert (speed["low"], speed["high"]) == (0.5, 2.0)
    assert speed["verdict"] == "inconclusive"
    assert speed["rounds"]["budget_spent"] is True
    assert "does not decide the limit" in speed["reason"]
    assert project.baselines == {}, "what is not decided is not recorded"


def test_a_slower_commit_regresses_and_a_faster_one_improves(project, monkeypatch):
    speeds = {"float32": 1.0, "bfloat16": 0.5}
    timed_by(monkeypatch, lambda kind: speeds[kind])
    project.test(SPEED.format(minimum=0.1, more='phase="prefill", prompt_tokens=8'))
    accept = "--quant-accept=cpu-load,cpu-quota"
    verdicts = []
    for seconds in (0.5, 0.5, 0.53, 0.7, 0.4):
        speeds["bfloat16"] = seconds
        result, record = project.record("--quant-baseline", accept)
        verdicts.append((record["measurements"][0]["baseline"]["verdict"], int(result.ret)))
    assert verdicts == [("new", 0), ("passed", 0), ("passed", 0), ("regressed", 1), ("improved", 0)]


def test_the_real_clock_gives_speeds_with_their_bounds(project):
    project.test(SPEED.format(minimum=0.001, more="prompt_tokens=8, new_tokens=4"))
    result, record = project.record()
    assert result.ret == 0
    (speed,) = record["measurements"]
    assert 0.0 < speed["low"] <= speed["value"] <= speed["high"]
    assert set(speed["bounds"]) == {"format", "reference"}
    for which, bound in speed["bounds"].items():
        assert bound["share"] == pytest.approx(speed[f"{which}_value"] / bound["tokens_per_second"])
        assert bound["regime"] in ("bandwidth", "compute")
        assert bound["regime"] in bound["arithmetic"]
    assert speed["identity"]["metric"]["min_new_tokens"] == 4


def test_energy_without_a_counter_is_a_skip_that_says_what_is_needed(project, monkeypatch):
    from pytest_quant.errors import Unsupported
    from pytest_quant.hardware import energy

    def none(device):
        raise Unsupported("the energy that it takes", "no counter", "one that counts")

    monkeypatch.setattr(energy, "counter", none)
    project.test(SPEED.replace("throughput_ratio(min", "energy_ratio(max").format(minimum=2.0, more=""))
    result, record = project.record()
    result.assert_outcomes(skipped=1)
    (skipped,) = record["skipped"]
    assert "asked: the energy that it takes; found: no counter; needed: one that counts" in skipped["reason"]


def test_energy_by_a_counter(project, monkeypatch):
    """The reference takes 40 W and the format 10 W, for as long as they run."""
    from pytest_quant.hardware import energy

    taken = [0.0]
    watts = {"float32": 40.0, "bfloat16": 10.0}

    def ticks(kind: str) -> float:
        taken[0] += watts[kind]
        return 1.0

    class Counter:
        source, period = "a counter", 0.0

        def joules(self) -> float:
            return taken[0]

    timed_by(monkeypatch, ticks)
    monkeypatch.setattr(energy, "counter", lambda device: Counter())
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["bf16"])
        @pytest.mark.energy_ratio(max=0.26, max_joules=5.1, phase="prefill", prompt_tokens=2)
        def test_energy(quant_model): ...
        """
    )
    result, record = project.record("--quant-baseline", "--quant-accept=cpu-load,cpu-quota")
    assert result.ret == 0
    (found,) = record["measurements"]
    assert (found["value"], found["low"], found["high"]) == (0.25, 0.25, 0.25)
    assert found["statistics"]["joules"] == {"value": 5.0, "low": 5.0, "high": 5.0, "unit": "J/tok"}
    assert (found["format_value"], found["reference_value"]) == (5.0, 20.0)
    assert found["identity"]["metric"]["counter"] == "a counter"
    assert len(project.entries) == 1


def test_a_counter_that_stands_still_is_no_number(project, monkeypatch):
    from pytest_quant.hardware import energy

    class Counter:
        source, period = "a counter", 0.0

        def joules(self) -> float:
            return 7.0

    timed_by(monkeypatch, lambda kind: 1.0)
    monkeypatch.setattr(energy, "counter", lambda device: Counter())
    project.test(SPEED.replace("throughput_ratio(min", "energy_ratio(max").format(minimum=2.0, more=""))
    result, record = project.record()
    result.assert_outcomes(failed=1)
    (found,) = record["measurements"]
    assert found["verdict"] == "not-measured"
    assert "the energy counter did not move" in found["reason"]


def test_ci_fails_on_what_is_inconclusive(project, monkeypatch):
    from pytest_quant import options

    monkeypatch.setenv("CI", "1")
    project.test("def test_options(pytestconfig):\n    from pytest_quant import options\n"
                 "    assert options.read(pytestconfig).inconclusive == 'fail'\n"
                 "    assert options.read(pytestconfig).missing == 'fail'\n")  # fmt: skip
    assert project.run().ret == 0
    assert options  # imported before the run, so that the run's module is the same


def test_perplexity_by_both_protocols_and_a_subset(project):
    project.test(
        """
        import pytest

        @pytest.mark.perplexity_delta(max=100)
        def test_quality(quant_model): ...
        """
    )
    windows = {}
    for arguments in (["--quant-protocol=gptq-64"], ["--quant-protocol=hf-strided-64-32"], ["--quant-max-windows=3"]):
        result, record = project.record(*arguments, "--quant-full")
        assert result.ret == 0
        (measured,) = record["measurements"]
        windows[arguments[0]] = measured["windows"]
        assert measured["value"] == pytest.approx(measured["format_value"] - measured["reference_value"])
    assert windows == {
        "--quant-protocol=gptq-64": {"used": 8, "total": 8},
        "--quant-protocol=hf-strided-64-32": {"used": 16, "total": 16},
        "--quant-max-windows=3": {"used": 3, "total": 3},
    }


def test_gates_that_ask_the_same_share_one_measurement(project, monkeypatch):
    from pytest_quant.engines import transformers

    scored = []
    predict = transformers.TransformersModel.predict
    monkeypatch.setattr(
        transformers.TransformersModel,
        "predict",
        lambda self, tokens, scored_from=1: scored.append(1) or predict(self, tokens, scored_from),
    )
    project.test(
        """
        import pytest

        @pytest.mark.perplexity_delta(max=100)
        def test_one(quant_model): ...

        @pytest.mark.perplexity_delta(max_ratio=2)
        def test_two(quant_model): ...
        """
    )
    assert project.run().ret == 0
    assert len(scored) == 2 * 8 + 2, "and one short forward of each when it is loaded"


def test_the_hardware_has_its_bandwidth(project):
    project.test(
        """
        def test_hardware(quant_hardware):
            assert quant_hardware.bandwidth > 1e8
            assert quant_hardware.memory_bytes > 1e8
        """
    )
    assert project.run().ret == 0
