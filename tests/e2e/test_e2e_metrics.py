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


@pytest.mark.parametrize("phase, tokens", [("decode", 4), ("prefill", 32)])
def test_throughput_times_both_models_in_turn(project, monkeypatch, phase, tokens):
    from pytest_quant.engines import transformers

    ran = []
    clock = {"float32": 1.0, "bfloat16": 0.5}

    def seconds(self, *arguments):
        kind = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        ran.append(kind)
        return clock[kind]

    monkeypatch.setattr(transformers.TransformersModel, f"{phase}_seconds", seconds)
    project.test(SPEED.format(minimum=1.9, more=f'phase="{phase}", prompt_tokens=32, new_tokens=4'))
    result, record = project.record()
    assert result.ret == 0
    (speed,) = record["measurements"]
    assert (speed["value"], speed["low"], speed["high"], speed["confidence"]) == (2.0, 2.0, 2.0, 0.99)
    assert (speed["format_value"], speed["reference_value"]) == (2.0 * tokens, 1.0 * tokens)
    assert ran.count("float32") == ran.count("bfloat16") == 10
    rounds = [tuple(ran[place : place + 2]) for place in range(2, 20, 2)]
    assert {*rounds} == {("float32", "bfloat16"), ("bfloat16", "float32")}, "whichever went first goes second next"


@pytest.mark.parametrize("arguments, code", [([], 0), (["--quant-inconclusive=fail"], 1)])
def test_an_interval_that_contains_the_limit_is_inconclusive(project, monkeypatch, arguments, code):
    from itertools import cycle

    from pytest_quant.engines import transformers

    ticks = cycle([1.0, 0.2, 0.9, 2.0, 1.1])
    monkeypatch.setattr(transformers.TransformersModel, "decode_seconds", lambda self, *arguments: next(ticks))
    project.test(SPEED.format(minimum=1.0, more='phase="decode"'))
    result, record = project.record("--quant-baseline", *arguments)
    assert result.ret == code
    (speed,) = record["measurements"]
    assert speed["low"] < 1.0 < speed["high"]
    assert speed["verdict"] == "inconclusive"
    assert "does not decide the limit" in speed["reason"]
    assert project.baselines == {}, "what is not decided is not recorded"


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
