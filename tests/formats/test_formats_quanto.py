"""optimum-quanto's formats are what its tensors hold, never what a config says."""

from __future__ import annotations

import pytest
import torch

from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed
from pytest_quant.formats import registry, variant
from pytest_quant.formats.backends.quanto import BACKEND
from pytest_quant.formats.proof import prove
from pytest_quant.hardware import detect

SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
WEIGHTS = sum(out * into for out, into in SHAPES)
ROWS = sum(out for out, _ in SHAPES)
BITS = {
    "int8-weight-only@quanto": 8 + 8 * 4 * ROWS / WEIGHTS,  # an FP32 scale a row
    "int4@quanto": 4 + 8 * 8 * ROWS / WEIGHTS,  # rows of up to 128 weights are one group: an FP32 scale and shift
    "fp8-weight-only@quanto": 8 + 8 * 4 * ROWS / WEIGHTS,
}
RUNS = list(BITS)


def load(folder, format, compute_dtype="float32"):
    return engine.load(ModelSource(str(folder)), format, BACKEND, compute_dtype, detect())


def prove_as(model, name):
    return prove(model.model, registry.get(name), BACKEND, engine.eligible_weights(model.model.config))


@pytest.fixture(scope="module")
def loaded(tiny_llama):
    """Models that no test changes, loaded once."""
    held = {}

    def get(name):
        if name not in held:
            held[name] = load(tiny_llama, registry.get(name))
        return held[name]

    return get


@pytest.mark.parametrize("name", RUNS)
def test_each_format_proves_itself_with_its_true_bits(loaded, name):
    model = loaded(name)
    proof = model.proof
    assert proof.quantized_weight_share == 1.0
    assert proof.kernels == {"QLinear": 14}
    assert proof.bits_per_weight == pytest.approx(BITS[name])
    assert model.model.get_memory_footprint() > 1.5 * proof.weight_bytes, "transformers reports the unquantized size"
    assert type(model.model.lm_head.weight) is torch.nn.Parameter
    assert BACKEND.stored(model.model.lm_head) is None
    assert not model.changed


@pytest.mark.parametrize("claimed", RUNS)
@pytest.mark.parametrize("name", RUNS)
def test_one_format_never_passes_for_another(loaded, name, claimed):
    if name == claimed:
        assert prove_as(loaded(name), claimed).format == claimed
        return
    with pytest.raises(ProofFailed, match=rf"not in {claimed}: 0\.0% of"):
        prove_as(loaded(name), claimed)


@pytest.mark.parametrize("claimed", ["int8-weight-only", "int4", "int4-unpacked", "fp8-weight-only", "int8", "nf4"])
@pytest.mark.parametrize("name", RUNS)
def test_it_does_not_pass_for_another_librarys_format(loaded, name, claimed):
    format = registry.get(claimed)
    model = loaded(name).model
    with pytest.raises(ProofFailed, match=r"0\.0% of the eligible weights"):
        prove(model, format, registry.backend(format), engine.eligible_weights(model.config))


@pytest.mark.parametrize("compute_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", RUNS)
def test_other_compute_types(tiny_llama, name, compute_dtype):
    proof = load(tiny_llama, registry.get(name), compute_dtype).proof
    assert proof.parameters["compute_dtype"] == compute_dtype
    bits = registry.get(name).weights.num_bits
    assert proof.bits_per_weight == pytest.approx(bits + (BITS[name] - bits) / 2)


@pytest.mark.parametrize(
    "inputs, group", [(64, None), (128, None), (256, 128), (1536, 128), (576, 96), (672, 96), (320, 64), (200, None)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_group_size_is_the_true_one(inputs, group, dtype):
    """quanto takes 128, or the next smaller multiple of 32 that divides the inputs, or the whole row."""
    from optimum.quanto import QLinear, qint4

    layer = QLinear(inputs, 128, bias=False, weights=qint4, dtype=dtype)
    layer.freeze()
    told = BACKEND.stored(layer)
    assert (told.num_bits, told.type, told.parameters["group_size"]) == (4, "int", group)
    assert told.parameters["symmetric"] is False


def test_the_packed_layers_answer_the_same_in_and_out_of_inference_mode(tiny_llama):
    from transformers import AutoModelForCausalLM, QuantoConfig

    ours = load(tiny_llama, registry.get("int4@quanto")).model
    theirs = AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=QuantoConfig(weights="int4"))
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert torch.equal(ours(tokens).logits, expected)
    with torch.inference_mode():
        assert torch.equal(ours(tokens).logits, expected)
    with pytest.raises(RuntimeError, match="inference tensor"), torch.inference_mode():
        theirs(tokens)  # the day this runs, the workaround can go


@pytest.mark.parametrize("name", RUNS)
def test_excluded_modules_stay_wide_and_so_does_the_head(tiny_llama, name):
    model = load(tiny_llama, variant(name, name="mine", exclude=["*.0.mlp.down_proj"]))
    layers = model.model.model.layers
    assert type(layers[0].mlp.down_proj) is torch.nn.Linear
    assert BACKEND.stored(layers[1].mlp.down_proj) is not None
    assert type(model.model.lm_head) is torch.nn.Linear, "transformers' default is gone once a list is given"
    assert sum(model.proof.kernels.values()) == 13


def test_a_layer_left_wide_fails(tiny_llama):
    model = load(tiny_llama, registry.get("int4@quanto"))
    model.model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 128, bias=False)
    with pytest.raises(ProofFailed, match=r"not in int4@quanto: 88\.9% of .* 1 of 14 weights left out: model\."):
        prove_as(model, "int4@quanto")


def test_a_layer_that_was_never_frozen_fails(tiny_llama):
    """Its weights are wide, and quantized anew at each call."""
    from optimum.quanto import QLinear, qint8

    model = load(tiny_llama, registry.get("int8-weight-only@quanto"))
    model.model.model.layers[1].mlp.gate_proj = QLinear(64, 128, bias=False, weights=qint8)
    with pytest.raises(ProofFailed, match=r"88\.9% of .* left out: model\.layers\.1\.mlp\.gate_proj\.weight"):
        prove_as(model, "int8-weight-only@quanto")


def test_a_layer_that_quantizes_activations_fails(tiny_llama):
    from optimum.quanto import QLinear, qint8

    model = load(tiny_llama, registry.get("int8-weight-only@quanto"))
    layer = QLinear(64, 128, bias=False, weights=qint8, activations=qint8)
    layer.freeze()
    model.model.model.layers[1].mlp.gate_proj = layer
    with pytest.raises(ProofFailed, match=r"activations is 'int8' in model\.layers\.1\.mlp\.gate_proj\.weight"):
        prove_as(model, "int8-weight-only@quanto")


def test_another_group_size_than_asked_fails(tiny_llama):
    """quanto takes no group size: asking for one is no promise that it can keep."""
    with pytest.raises(ProofFailed, match=r"group_size is None in model\.layers\..*, asked for 32"):
        load(tiny_llama, variant("int4@quanto", name="mine", group_size=32))


@pytest.mark.parametrize("name", RUNS)
def test_a_change_inside_a_quantized_weight_is_noticed(tiny_llama, name):
    model = load(tiny_llama, registry.get(name))
    assert not model.changed
    model.model.model.layers[1].mlp.up_proj.weight._scale.mul_(2)
    assert model.changed


@pytest.mark.parametrize("name", RUNS)
def test_conv1d_layers_left_wide_fail_with_the_figures(tiny_gpt2, name):
    """quanto replaces ``nn.Linear`` only, and says nothing of GPT-2's layers."""
    with pytest.raises(ProofFailed) as failure:
        load(tiny_gpt2, registry.get(name))
    said = str(failure.value)
    assert f"not in {name}: 0.0% of the eligible weights are (at least 95% must be), 32.00 bits a weight" in said
    assert "kernels Conv1D x8; 8 of 8 weights left out: transformer.h.0.attn.c_attn.weight" in said
