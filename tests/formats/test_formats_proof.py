"""A model that is not in its format never proves itself, whatever its config says."""

from __future__ import annotations

import pytest
import torch

from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed
from pytest_quant.formats import registry
from pytest_quant.formats.proof import prove
from pytest_quant.formats.registry import backend
from pytest_quant.hardware import detect


def load(folder, name):
    format = registry.get(name)
    return engine.load(ModelSource(str(folder)), format, backend(format), "float32", detect())


def prove_as(model, name):
    format = registry.get(name)
    return prove(model.model, format, backend(format), engine.eligible_weights(model.model.config))


FORMATS = ["fp32", "bf16", "fp16", "int8", "nf4", "fp4"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_each_format_proves_itself(request, libraries, model, name):
    proof = load(request.getfixturevalue(model), name).proof
    assert proof.quantized_weight_share == 1.0
    assert proof.left_out == ()
    bits = registry.get(name).weights.num_bits
    assert bits <= proof.bits_per_weight < bits * 1.5  # code books weigh a lot in a tiny model
    assert sum(proof.kernels.values()) == {"tiny_llama": 14, "tiny_gpt2": 8}[model]


@pytest.mark.parametrize("claimed", FORMATS)
@pytest.mark.parametrize("loaded", FORMATS)
def test_one_format_never_passes_for_another(tiny_llama, libraries, loaded, claimed):
    model = load(tiny_llama, loaded)
    if loaded == claimed:
        assert prove_as(model, claimed).format == claimed
        return
    with pytest.raises(ProofFailed) as failure:
        prove_as(model, claimed)
    other_four_bits = {loaded, claimed} == {"nf4", "fp4"}
    assert ("bnb_4bit_quant_type" if other_four_bits else f"not in {claimed}: 0.0% of") in str(failure.value)


@pytest.mark.parametrize("name, shown", [("int8", "32.00 bits"), ("nf4", "32.00 bits")])
def test_conv1d_layers_left_in_full_precision_fail_with_the_figures(tiny_gpt2, libraries, monkeypatch, name, shown):
    """What libraries that replace ``nn.Linear`` only do to a GPT-2: the config says quantized, no weight is."""
    from transformers.quantizers import quantizer_bnb_4bit, quantizer_bnb_8bit

    for quantizer in (quantizer_bnb_4bit.Bnb4BitHfQuantizer, quantizer_bnb_8bit.Bnb8BitHfQuantizer):
        monkeypatch.setattr(quantizer, "_process_model_before_weight_loading", lambda self, model, **kwargs: None)
        monkeypatch.setattr(quantizer, "param_needs_quantization", lambda self, *args, **kwargs: False)
    with pytest.raises(ProofFailed) as failure:
        load(tiny_gpt2, name)
    said = str(failure.value)
    assert f"not in {name}: 0.0% of the eligible weights are (at least 95% must be), {shown} a weight" in said
    assert "kernels Conv1D x8; 8 of 8 weights left out: transformer.h.0.attn.c_attn.weight" in said


def test_a_few_layers_left_out_fail(tiny_llama, libraries):
    model = load(tiny_llama, "int8")
    wide = torch.nn.Linear(64, 128, bias=False)
    model.model.model.layers[0].mlp.up_proj = wide
    with pytest.raises(
        ProofFailed, match=r"not in int8: 88\.9% of .* 1 of 14 weights left out: model\.layers\.0\.mlp\.up"
    ):
        prove_as(model, "int8")


def test_another_threshold_than_asked_fails(tiny_llama, libraries):
    model = load(tiny_llama, "int8")
    model.model.model.layers[1].self_attn.q_proj.state.threshold = 0.0
    with pytest.raises(ProofFailed, match=r"other parameters: llm_int8_threshold is 0\.0 in model\.layers\.1"):
        prove_as(model, "int8")


def test_no_difference_from_the_reference_fails(tiny_llama, libraries):
    proof = load(tiny_llama, "int8").proof
    with pytest.raises(ProofFailed, match="answers exactly as the fp32 reference does"):
        proof.compared(0.0, "fp32")
    assert proof.compared(0.5, "fp32").reference_difference == 0.5


def test_embeddings_and_head_are_not_eligible_and_everything_else_is(tiny_llama, tiny_gpt2, libraries):
    from transformers import AutoConfig

    llama = engine.eligible_weights(AutoConfig.from_pretrained(tiny_llama))
    assert len(llama) == 14
    assert sum(llama.values()) == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    gpt2 = engine.eligible_weights(AutoConfig.from_pretrained(tiny_gpt2))
    assert sum(gpt2.values()) == 2 * 12 * 64 * 64
