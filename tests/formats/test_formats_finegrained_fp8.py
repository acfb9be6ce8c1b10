"""Fine-grained FP8 is refused where transformers would run it in 16 bits, and a model that came out wide is found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from small_models import save_llama

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, Unsupported
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked
from pytest_quant.formats.backends.finegrained_fp8 import BACKEND
from pytest_quant.formats.proof import prove
from pytest_quant.hardware import Device, detect

FORMAT = registry.get("fp8@finegrained-fp8")
LARGEST = 448.0


def device(kind, capability=None):
    return Device(kind=kind, vendor="", name=f"a {kind}", architecture="", compute_capability=capability)


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    """A tiny Llama whose sizes blocks of 128 divide."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2}
    return save_llama(tmp_path_factory.mktemp("finegrained") / "base", byte_tokenizer, **sizes)


def blocks(weight, size):
    """A weight in FP8 and its scales, as DeepSeek's checkpoints have them."""
    rows, columns = weight.shape
    parts = weight.reshape(rows // size, size, columns // size, size)
    scale = parts.abs().amax((1, 3)) / LARGEST
    return (parts / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn), scale


@pytest.fixture(scope="module")
def checkpoint(base, byte_tokenizer):
    """A checkpoint in blocks of 128, quantized beforehand."""
    from safetensors.torch import load_file, save_file

    folder = base.parent / "quantized"
    folder.mkdir()
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if "proj" in name:
            tensors[name], tensors[f"{name}_scale_inv"] = blocks(tensor, 128)
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def quantized(base):
    """The model as it would be on a GPU, before its first forward; it cannot run here."""
    from transformers import FineGrainedFP8Config, LlamaForCausalLM
    from transformers.integrations.finegrained_fp8 import FP8Linear, replace_with_fp8_linear

    def make(size=128):
        wide = LlamaForCausalLM.from_pretrained(base)
        weights = {name: module.weight.detach() for name, module in wide.named_modules() if "proj" in name}
        config = FineGrainedFP8Config(weight_block_size=(size, size))
        model = replace_with_fp8_linear(wide, ["lm_head"], config)
        for name, module in model.named_modules():
            if isinstance(module, FP8Linear):
                values, scale = blocks(weights[name], size)
                module.weight = torch.nn.Parameter(values, requires_grad=False)
                module.weight_scale_inv = torch.nn.Parameter(scale, requires_grad=False)
        return model

    return make


def prove_it(model, base, format=FORMAT):
    from transformers import AutoConfig

    return prove(model, format, BACKEND, loading.eligible_weights(AutoConfig.from_pretrained(base)))


@pytest.mark.parametrize(
    "here, found",
    [
        (device("cpu"), "a cpu (cpu), where transformers refuses it or dequantizes it to 16 bits"),
        (device("mps"), "a mps (mps), where transformers refuses it"),
        (device("cuda", (8, 6)), "a cuda of compute capability 8.6, where transformers dequantizes it to 16 bits"),
        (device("cuda", (8, 0)), "compute capability 8.0"),
        (device("cuda"), "compute capability unknown"),
        (device("rocm"), "a rocm (rocm)"),
    ],
)
def test_it_is_refused_where_transformers_would_dequantize(here, found):
    trouble = BACKEND.trouble(FORMAT, here)
    assert trouble is not None
    assert found in trouble.found
    assert trouble.needed == "an NVIDIA GPU of compute capability 8.9 or newer"


@pytest.mark.parametrize("here", [device("cuda", (8, 9)), device("cuda", (9, 0)), device("cuda", (12, 0))])
def test_it_is_not_refused_where_the_units_are(here):
    assert BACKEND.trouble(FORMAT, here) is None


def test_a_checkpoint_that_was_silently_dequantized_does_not_prove_itself(base, checkpoint, libraries):
    """Loading succeeds, config.json says fp8, and no weight is."""
    with pytest.raises(ProofFailed) as failure:
        loading.load(ModelSource(str(base)), FORMAT, BACKEND, "bfloat16", detect(), str(checkpoint))
    said = str(failure.value)
    assert "not in fp8@finegrained-fp8: 0.0% of the eligible weights are (at least 95% must be), 16.00 bits" in said
    assert "kernels Linear x14; 14 of 14 weights left out" in said


def test_quantizing_while_loading_is_an_error_here(base, libraries):
    from pytest_quant.errors import UsageError

    if torch.cuda.is_available():
        pytest.skip("asked: the error without a GPU; found: a GPU; needed: none")
    with pytest.raises(UsageError, match="A GPU or XPU is needed for FP8 quantization"):
        loading.load(ModelSource(str(base)), FORMAT, BACKEND, "bfloat16", detect())


def test_fp8_weights_with_the_scales_of_their_blocks_prove_themselves(base, quantized):
    proof = prove_it(quantized(), base)
    assert proof.quantized_weight_share == 1.0
    assert dict(proof.kernels) == {"FP8Linear": 14}
    assert proof.bits_per_weight == pytest.approx(FORMAT.bits_per_weight)
    assert dict(proof.parameters) == {"activation_dynamic": True, "block_size": 128, "scale_dtype": "float32"}


def test_another_block_size_than_asked_fails(base, quantized):
    with pytest.raises(ProofFailed, match=r"block_size is 64 in .*, asked for 128"):
        prove_it(quantized(64), base)
    proof = prove_it(quantized(64), base, replace(FORMAT, parameters={"block_size": 64}))
    assert proof.bits_per_weight == pytest.approx(8 + 32 / 64**2)


@pytest.mark.parametrize("fault", ["wide weight", "plain module", "no scales", "scales of other blocks"])
def test_a_layer_that_is_not_in_the_format_fails(base, quantized, fault):
    model = quantized()
    layer = model.model.layers[1].mlp.down_proj
    if fault == "wide weight":  # runs, in 16 bits: what transformers does to sizes that blocks do not divide
        layer.weight = torch.nn.Parameter(torch.ones(128, 256, dtype=torch.bfloat16))
    elif fault == "plain module":
        model.model.layers[1].mlp.down_proj = torch.nn.Linear(256, 128, bias=False)
    elif fault == "no scales":
        layer.weight_scale_inv = None
    else:
        layer.weight_scale_inv = torch.nn.Parameter(torch.ones(2, 4))
    with pytest.raises(ProofFailed, match=r"1 of 14 weights left out: model\.layers\.1\.mlp\.down_proj\.weight"):
        prove_it(model, base)


def test_layers_that_blocks_do_not_divide_are_refused_after_loading(base, quantized):
    """transformers passes their weights through: the modules are FP8Linear, the weights are wide."""
    model = quantized()
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.ones(200, 128, dtype=torch.bfloat16))
    asked = Asked(str(base), FORMAT, "bfloat16", "xpu:0")
    with pytest.raises(Unsupported) as reason:
        BACKEND.open(asked, lambda name, **arguments: model)
    assert "1 of 14 layers that blocks of 128 x 128 do not divide" in reason.value.found
    assert "model.layers.0.mlp.up_proj is 200 x 128" in reason.value.found
    assert "multiples of 128" in reason.value.needed


def test_without_the_kernel_it_is_refused_before_loading(base, monkeypatch):
    from transformers.integrations import finegrained_fp8

    def missing():
        raise ImportError("finegrained-fp8 kernel unavailable: no hub")

    monkeypatch.setattr(finegrained_fp8, "load_finegrained_fp8_kernel", missing)
    opened = []
    with pytest.raises(Unsupported) as reason:
        BACKEND.open(Asked(str(base), FORMAT, "bfloat16", "cuda:0"), lambda name, **arguments: opened.append(name))
    assert "FP8 kernel cannot be loaded: finegrained-fp8 kernel unavailable: no hub" in reason.value.found
    assert opened == []


def test_what_is_asked_goes_to_transformers(base, quantized):
    given = {}

    def from_pretrained(name, **arguments):
        given.update(arguments, name=name)
        return quantized(64)

    format = replace(FORMAT, parameters={"block_size": 64})
    asked = Asked(str(base), format, "bfloat16", "xpu:0", excluded=("model.layers.0.mlp.up_proj",))
    BACKEND.open(asked, from_pretrained)
    config = given["quantization_config"]
    assert (given["name"], given["dtype"]) == (str(base), torch.bfloat16)
    assert tuple(config.weight_block_size) == (64, 64)
    assert config.modules_to_not_convert == ["lm_head", "model.layers.0.mlp.up_proj"]
    BACKEND.open(replace(asked, checkpoint="elsewhere"), from_pretrained)
    assert given["name"] == "elsewhere"


def test_experts_prove_themselves():
    from transformers import MixtralConfig
    from transformers.integrations.finegrained_fp8 import FP8Experts

    config = MixtralConfig(hidden_size=128, intermediate_size=256, num_local_experts=2)
    experts = FP8Experts(config, block_size=(128, 128))
    stored = BACKEND.stored(experts)
    assert stored is not None
    assert (stored.num_bits, stored.type, stored.parameters["block_size"]) == (8, "float", 128)
    weight, scale = BACKEND.weight(experts, "down_proj")
    assert weight.dtype is torch.float8_e4m3fn
    assert tuple(scale.shape) == (2, 1, 2)
    experts.down_proj = torch.nn.Parameter(torch.ones(2, 128, 256))
    assert BACKEND.stored(experts) is None
