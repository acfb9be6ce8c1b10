"""HQQ: what is loaded is what was asked for, and a model with a fault does not prove itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.proof import prove
from pytest_quant.hardware import detect

FORMAT = registry.get("int4@hqq")
BACKEND = registry.backend(FORMAT)


def load(folder, format=FORMAT, dtype="float32"):
    return engine.load(ModelSource(str(folder)), format, BACKEND, dtype, detect())


@pytest.fixture
def loaded(tiny_llama):
    return load(tiny_llama).model


def proven(model, format=FORMAT):
    return prove(model, format, BACKEND, engine.eligible_weights(model.config))


@pytest.mark.parametrize("dtype, bits", [("float32", 5.0), ("bfloat16", 4.5), ("float16", 4.5)])
def test_four_bits_and_the_scales_of_groups_of_64(tiny_llama, dtype, bits):
    proof = load(tiny_llama, dtype=dtype).proof
    assert proof.quantized_weight_share == 1.0
    assert proof.bits_per_weight == bits
    assert proof.kernels == {"HQQLinear": 14}
    assert proof.parameters == {"axis": 1, "compute_dtype": dtype, "group_size": 64}


def test_the_model_computes_with_the_levels_that_it_stores(loaded, tiny_llama):
    wide = _plain(tiny_llama)
    layer, original = loaded.model.layers[0].mlp.up_proj, wide.model.layers[0].mlp.up_proj
    stored = layer.dequantize()
    error = (stored - original.weight).abs().reshape(-1, 64).amax(1)
    step = original.weight.reshape(-1, 64)
    step = (step.amax(1) - step.amin(1)) / 15
    assert (error <= step * 1.01).all()
    assert error.max() > 0
    assert all(len(row.unique()) <= 16 for row in stored.reshape(-1, 64))
    some = torch.randn(3, 64)
    assert torch.allclose(layer(some), some @ stored.T, atol=1e-6)


def test_embeddings_and_head_stay_wide(loaded, tiny_llama):
    wide = _plain(tiny_llama)
    assert type(loaded.lm_head) is torch.nn.Linear
    assert torch.equal(loaded.lm_head.weight, wide.lm_head.weight)
    assert torch.equal(loaded.model.embed_tokens.weight, wide.model.embed_tokens.weight)


def test_excluded_modules_stay_wide(tiny_llama):
    format = replace(FORMAT, exclude=("*.down_proj",))
    model = load(tiny_llama, format)
    assert type(model.model.model.layers[1].mlp.down_proj) is torch.nn.Linear
    assert model.proof.kernels == {"HQQLinear": 12}
    with pytest.raises(ProofFailed, match=r"excludes model\.layers\.0\.mlp\.up_proj\.weight, but it is stored in 4"):
        proven(model.model, replace(FORMAT, exclude=("*.up_proj",)))


@pytest.mark.parametrize("bits, most", [(8, 9.0), (3, 4.4), (2, 3.0)])
def test_other_widths_and_groups_are_a_matter_of_parameters(tiny_llama, bits, most):
    weights = replace(FORMAT.weights, num_bits=bits)
    proof = load(tiny_llama, replace(FORMAT, weights=weights)).proof
    assert bits < proof.bits_per_weight <= most
    short = load(tiny_llama, replace(FORMAT, scale_bits=2.0, parameters={"group_size": 32, "axis": 0})).proof
    assert short.bits_per_weight == 6.0
    assert short.parameters["group_size"] == 32


def test_what_hqq_does_not_know_is_an_error_with_its_words(tiny_llama):
    with pytest.raises(UsageError, match=r"hqq cannot make int4@hqq of 4 bits with .*multiple of 8"):
        load(tiny_llama, replace(FORMAT, parameters={"group_size": 20}))
    with pytest.raises(UsageError, match=r"hqq cannot make .*'blocks'"):
        load(tiny_llama, replace(FORMAT, parameters={"blocks": 64}))


def test_a_layer_left_wide_fails(loaded):
    loaded.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 128, bias=False)
    with pytest.raises(
        ProofFailed, match=r"not in int4@hqq: 88\.9% .* 1 of 14 weights left out: model\.layers\.0\.mlp"
    ):
        proven(loaded)


def test_another_group_size_than_asked_fails(tiny_llama):
    model = load(tiny_llama, replace(FORMAT, scale_bits=2.0, parameters={"group_size": 32, "axis": 1})).model
    with pytest.raises(ProofFailed, match=r"other parameters: group_size is 32 in model\.layers\.[01]"):
        proven(model)


def test_another_width_than_asked_fails(tiny_llama):
    eight = replace(FORMAT, weights=replace(FORMAT.weights, num_bits=8))
    with pytest.raises(ProofFailed, match=r"not in int4@hqq: 0\.0% .* 9\.00 bits a weight"):
        proven(load(tiny_llama, eight).model)


def test_four_bits_that_are_stored_in_bytes_fail(loaded):
    """The meta data says 4 bits, the storage says otherwise."""
    for module in loaded.modules():
        if type(module).__name__ == "HQQLinear":
            levels = module.unpack(dtype=torch.uint8)
            module.W_q, module.meta["packing"] = torch.nn.Parameter(levels, requires_grad=False), "8bit_u8"
    with pytest.raises(ProofFailed, match=r"its weights take 9\.00 bits each, not 4\.50: kernels HQQLinear x14"):
        proven(loaded)


def test_another_librarys_layer_fails(loaded):
    bnb = pytest.importorskip("bitsandbytes")
    loaded.model.layers[1].self_attn.q_proj = bnb.nn.Linear4bit(64, 64, bias=False)
    with pytest.raises(ProofFailed, match=r"Linear4bit x1; 1 of 14 weights left out: model\.layers\.1\.self_attn\.q"):
        proven(loaded)


def test_layers_that_hqq_does_not_replace_fail(tiny_gpt2):
    """A GPT-2 has ``Conv1D`` layers."""
    with pytest.raises(ProofFailed, match=r"not in int4@hqq: 0\.0% .* kernels Conv1D x8; 8 of 8 weights left out"):
        load(tiny_gpt2)


def _plain(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
