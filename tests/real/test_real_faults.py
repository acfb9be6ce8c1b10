"""Faults planted in the real model: each turns the run red, with the right verdict."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.real

GATES = """
import pytest

@pytest.mark.quant(formats=["nf4"], reference="fp32")
@pytest.mark.perplexity_delta(max_ratio=1.5)
@pytest.mark.memory_budget(max_gb=0.2)
def test_nf4(quant_model): ...
"""

PLANT = """
import time
import pytest, torch
from transformers import AutoModelForCausalLM

load = AutoModelForCausalLM.from_pretrained
forward = None

@pytest.fixture(autouse=True, scope="session")
def planted():
    AutoModelForCausalLM.from_pretrained = faulty
    yield
    AutoModelForCausalLM.from_pretrained = load

def faulty(*args, **kwargs):
    if "quantization_config" not in kwargs:
        return load(*args, **kwargs)
{fault}
"""


@pytest.fixture
def gated(real_project):
    real_project.ini(f"quant_model = {real_project.model}", "quant_max_windows = 6")
    real_project.test(GATES)
    return real_project


def plant(project, *lines: str) -> None:
    project.conftest(PLANT.format(fault="\n".join("    " + line for line in lines)))


def verdicts(record) -> dict[str, str]:
    return {measured["metric"]: measured["verdict"] for measured in record["measurements"]}


def test_the_real_model_passes_and_again_with_a_difference_of_zero(gated):
    assert gated.gate().ret == 0
    result, record = gated.record("--quant-baseline", "--quant-missing=fail")
    assert result.ret == 0
    perplexity = next(m for m in record["measurements"] if m["metric"] == "perplexity_delta")
    assert perplexity["baseline"] == {"verdict": "passed", "value": perplexity["value"], "change": "+0.0000 nats"}
    assert perplexity["proof"]["quantized_weight_share"] == 1.0
    assert 4.1 < perplexity["proof"]["bits_per_weight"] < 4.2
    assert perplexity["value"] > 1.0


def test_one_layers_scale_doubled(gated):
    assert gated.gate().ret == 0
    plant(
        gated,
        "model, loading = load(*args, **kwargs)",
        "state = model.model.layers[12].mlp.down_proj.weight.quant_state",
        "state.state2.absmax.mul_(2)",
        "state.offset.mul_(2)",
        "return model, loading",
    )
    result, record = gated.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    perplexity = next(m for m in record["measurements"] if m["metric"] == "perplexity_delta")
    assert perplexity["verdict"] == "passed", "the limit is too loose to see it"
    assert perplexity["baseline"]["verdict"] == "regressed"
    result.stdout.fnmatch_lines(["*nf4 perplexity_delta regressed: +*"])


def test_the_format_silently_not_applied(gated):
    plant(gated, "kwargs.pop('quantization_config')", "return load(*args, **kwargs)")
    result, record = gated.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(record) == {"perplexity_delta": "not-measured", "memory_budget": "not-measured"}
    result.stdout.fnmatch_lines(
        ["*not in nf4: 0.0% of the eligible weights are*32.00 bits a weight*538,0*Linear x210*"]
    )
    assert gated.baselines == {}


def test_half_of_the_layers_left_out(gated):
    plant(
        gated,
        "kept = [f'model.layers.{n}.mlp' for n in range(15)] + ['lm_head']",
        "kwargs['quantization_config'].llm_int8_skip_modules = kept",
        "return load(*args, **kwargs)",
    )
    result, record = gated.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(record) == {"perplexity_delta": "not-measured", "memory_budget": "not-measured"}
    result.stdout.fnmatch_lines(["*not in nf4: 62.5% of the eligible weights are*45 of 210 weights left out*"])


def test_other_parameters_than_asked(gated):
    plant(
        gated,
        "kwargs['quantization_config'].bnb_4bit_use_double_quant = False",
        "return load(*args, **kwargs)",
    )
    result = gated.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*loaded as nf4, but with other parameters: bnb_4bit_use_double_quant is False*"])


def test_nan_in_one_layer(gated):
    plant(
        gated,
        "model, loading = load(*args, **kwargs)",
        "model.model.layers[7].input_layernorm.weight.data[0] = float('nan')",
        "return model, loading",
    )
    result, record = gated.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(record)["perplexity_delta"] == "failed"
    result.stdout.fnmatch_lines(["*the nf4 model gave no finite perplexity: 6 of 6 windows are NaN or infinite*"])
    assert gated.baselines == {}


def test_the_reference_swapped_for_the_format(gated, monkeypatch):
    """Both models are the format's: the proof of the bytes holds, so only the answers tell."""
    from pytest_quant import models
    from pytest_quant.formats import registry

    nf4 = registry.get("nf4")
    load = models.Models._load
    monkeypatch.setattr(models.Models, "_load", lambda self, spec, format: load(self, spec, nf4))
    result, record = gated.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdicts(record)["perplexity_delta"] == "not-measured"
    result.stdout.fnmatch_lines(["*all 6 windows of nf4 have exactly the fp32 reference's scores*"])
    assert gated.baselines == {}


def test_a_larger_model(gated):
    assert gated.gate().ret == 0
    plant(
        gated,
        "model, loading = load(*args, **kwargs)",
        "model.register_buffer('ballast', torch.zeros(4_000_000))",
        "return model, loading",
    )
    result, record = gated.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    memory = next(m for m in record["measurements"] if m["metric"] == "memory_budget")
    assert memory["value"] == 168_385_528 + 16_000_000
    assert memory["baseline"]["verdict"] == "regressed"
    result.stdout.fnmatch_lines(["*nf4 memory_budget regressed: 184,385,528 bytes now, 168,385,528 before*"])


SPEED = """
import pytest

@pytest.mark.quant(formats=["nf4"], reference="fp32")
@pytest.mark.throughput_ratio(min={minimum}, new_tokens=4)
def test_speed(quant_model): ...
"""


def slow_down(project) -> None:
    """Half a second a token more: many times what a step takes, however busy the machine is."""
    plant(
        project,
        "model, loading = load(*args, **kwargs)",
        "model.register_forward_pre_hook(lambda *a: time.sleep(0.5))",
        "return model, loading",
    )


def test_a_slower_decode(gated):
    gated.test(SPEED.format(minimum=0.5))
    slow_down(gated)
    result, record = gated.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (speed,) = record["measurements"]
    assert speed["verdict"] == "failed"
    assert gated.baselines == {}
    result.stdout.fnmatch_lines(["*nf4 throughput_ratio failed: * x is below the limit (at least 0.5 x)*"])


def test_a_decode_slower_than_before(gated):
    """With a limit that is too loose to see it."""
    gated.test(SPEED.format(minimum=0.001))
    assert gated.gate().ret == 0
    # as this model does on an idle machine
    gated.change_baseline(lambda data: data["measurements"][0].update(value=1.8, low=1.7, high=1.9))
    before = gated.baselines
    slow_down(gated)
    result, record = gated.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (speed,) = record["measurements"]
    assert (speed["verdict"], speed["baseline"]["verdict"]) == ("passed", "regressed")
    assert gated.baselines == before
    result.stdout.fnmatch_lines(["*nf4 throughput_ratio regressed: *"])
