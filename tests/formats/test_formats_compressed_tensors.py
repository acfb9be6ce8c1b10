"""Checkpoints of llm-compressor prove what they are from their tensors; another one than asked for never does."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import compressed_tensors.quantization  # noqa: F401  while collecting, so that no run in this process forgets it
import numpy as np
import pytest
import torch
from small_models import save_llama

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, Unsupported, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked
from pytest_quant.formats.backends import compressed_tensors_making as making
from pytest_quant.formats.backends.compressed_tensors import BACKEND
from pytest_quant.formats.format import QuantizationArgs
from pytest_quant.formats.proof import prove
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import detect

HIDDEN = 128
WEIGHTS = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * 2 * HIDDEN)
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
TOKEN = {"strategy": "token", "dynamic": True}
CHECKPOINTS = {
    "w4a16": (INT4, None),
    "w4a16-g128": ({**INT4, "group_size": 128}, None),
    "w4a16-channel": ({"num_bits": 4, "type": "int", "strategy": "channel"}, None),
    "w4a16-asym": ({**INT4, "symmetric": False}, None),
    "w8a8": (INT8, {**INT8, **TOKEN}),
    "w8a8-asym": ({**INT8, "symmetric": False}, {**INT8, **TOKEN}),
    "w8a8-static": ({**INT8, "strategy": "tensor"}, {**INT8, "strategy": "tensor"}),
    "w8a16": ({**INT4, "num_bits": 8}, None),
    "fp8": (FP8, {**FP8, **TOKEN}),
    "fp8-block": ({**FP8, "strategy": "block", "block_structure": [64, 32]}, {**FP8, **TOKEN}),
    "nvfp4": "NVFP4",
    "nvfp4a16": "NVFP4A16",
}
PROVEN = {
    "w4a16": ("w4a16", 4.5, {"activation_bits": 16, "strategy": "group", "group_size": 64, "symmetric": True}),
    "w4a16-g128": ("w4a16", 4.25, {"group_size": 128, "symmetric": True}),
    "w4a16-channel": ("w4a16", 4.0, {"strategy": "channel"}),
    "w8a8": (
        "w8a8@compressed-tensors",
        8.0,
        {"activation_bits": 8, "activation_strategy": "token", "activation_dynamic": True, "strategy": "channel"},
    ),
    "w8a8-asym": ("w8a8@compressed-tensors", 8.0, {"symmetric": False}),
    "w8a8-static": ("w8a8@compressed-tensors", 8.0, {"strategy": "tensor", "activation_dynamic": False}),
    "fp8": ("fp8@compressed-tensors", 8.0, {"activation_type": "float", "weight_dtype": "float8_e4m3fn"}),
    "fp8-block": ("fp8@compressed-tensors", 8.0, {"strategy": "block", "block_rows": 64, "group_size": 32}),
    "nvfp4": (
        "nvfp4@compressed-tensors",
        4.5,
        {"activation_bits": 4, "activation_dynamic": "local", "group_size": 16, "scale_dtype": "float8_e4m3fn"},
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    """A tiny Llama whose sizes the groups divide."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2}
    return save_llama(tmp_path_factory.mktemp("compressed") / "base", byte_tokenizer, **sizes)


@pytest.fixture(scope="module")
def checkpoint(base, byte_tokenizer):
    """Makes the checkpoints of ``CHECKPOINTS`` with compressed-tensors alone: rounded to nearest."""
    made = {}

    def get(name, ignore=("lm_head",)):
        key = (name, ignore)
        if key not in made:
            made[key] = base.parent / f"{name}-{len(made)}"
            compress(base, made[key], CHECKPOINTS[name], list(ignore))
            byte_tokenizer.save_pretrained(made[key])
        return made[key]

    return get


def compress(base, folder, scheme, ignore):
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    if isinstance(scheme, str):
        told = preset_name_to_scheme(scheme, ["Linear"])
    else:
        told = QuantizationScheme(targets=["Linear"], weights=scheme[0], input_activations=scheme[1])
    config = QuantizationConfig(config_groups={"group_0": told}, ignore=ignore, quantization_status="frozen")
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            fill_scales(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


def fill_scales(module):
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight, args = module.weight.detach(), module.quantization_scheme.weights
    strategy = making.word(args.strategy)
    rows, columns = weight.shape
    if strategy == "block":
        height, width = args.block_structure
        parts = weight.reshape(rows // height, height, columns // width, width).transpose(1, 2).flatten(2)
    elif strategy in ("group", "tensor_group"):
        parts = weight.reshape(rows, columns // args.group_size, args.group_size)
    else:
        parts = weight.reshape(1, 1, -1) if strategy == "tensor" else weight.reshape(rows, 1, columns)
    overall = None
    if strategy == "tensor_group":
        overall = generate_gparam(weight.min(), weight.max())
        module.weight_global_scale.data.copy_(overall)
    scale, zero_point = calculate_qparams(parts.amin(-1), parts.amax(-1), args, global_scale=overall)
    module.weight_scale.data = scale.reshape(module.weight_scale.shape).to(module.weight_scale.dtype)
    if not args.symmetric:
        module.weight_zero_point.data.copy_(zero_point.reshape(module.weight_zero_point.shape))
    for name, value in (("input_scale", 0.05), ("input_global_scale", 1.0)):
        if getattr(module, name, None) is not None:
            getattr(module, name).data.fill_(value)


def open_as(base, folder, name, dtype="float32"):
    format = registry.get(name)
    return loading.load(ModelSource(str(base)), format, BACKEND, dtype, detect(), str(folder))


def opened(base, folder, name):
    """The model before its proof, and what the proof needs."""
    from transformers import AutoConfig, AutoModelForCausalLM

    asked = Asked(str(base), registry.get(name), "float32", "cpu", checkpoint=str(folder))
    model = BACKEND.open(asked, AutoModelForCausalLM.from_pretrained)
    return model, loading.eligible_weights(AutoConfig.from_pretrained(base))


@pytest.mark.parametrize("made", PROVEN)
def test_a_checkpoint_proves_itself_and_tells_its_parameters(base, checkpoint, made):
    name, bits, parameters = PROVEN[made]
    model = open_as(base, checkpoint(made), name)
    proof = model.proof
    assert proof.quantized_weight_share == 1.0
    assert proof.left_out == ()
    assert sum(proof.kernels.values()) == 14
    assert bits <= proof.bits_per_weight < bits + 0.35  # a scale of 32 bits a row weighs 0.25 in a tiny model
    assert parameters.items() <= dict(proof.parameters).items()


@pytest.mark.parametrize("made", ["w4a16", "w8a8", "fp8", "nvfp4"])
def test_it_stays_packed_until_the_first_forward_and_is_dequantized_from_then_on(base, checkpoint, made):
    model = open_as(base, checkpoint(made), PROVEN[made][0])
    assert model.proof.weight_bytes * 1.5 < footprint(model.model).total
    layer = model.model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype is torch.float32
    assert not model.changed
    assert np.isfinite(model.token_nll(np.arange(16)[None])).all()
    assert not model.changed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nvfp4_runs_in_each_compute_type(base, checkpoint, dtype):
    """compressed-tensors unpacks it into bfloat16 only."""
    model = open_as(base, checkpoint("nvfp4"), "nvfp4@compressed-tensors", dtype)
    assert model.model.model.layers[0].mlp.up_proj.weight.dtype is getattr(torch, dtype)
    assert np.isfinite(model.token_nll(np.arange(16)[None])).all()


def test_no_progress_bar_is_drawn(base, checkpoint, capfd):
    made = checkpoint("w4a16")
    capfd.readouterr()  # what making it draws
    model = open_as(base, made, "w4a16")
    assert model.model.model.layers[0].self_attn.q_proj.weight.dtype is torch.float32
    captured = capfd.readouterr()
    assert "it/s" not in captured.err
    assert "ompress" not in captured.err


@pytest.mark.parametrize("claimed", ["w4a16", "w8a8@compressed-tensors", "fp8@compressed-tensors"])
@pytest.mark.parametrize("made", ["w4a16", "w8a8", "fp8", "w8a16", "nvfp4"])
def test_one_format_never_passes_for_another(base, checkpoint, made, claimed):
    if made in PROVEN and PROVEN[made][0] == claimed:
        assert open_as(base, checkpoint(made), claimed).proof.format == claimed
        return
    with pytest.raises(ProofFailed) as failure:
        open_as(base, checkpoint(made), claimed)
    if made == "w8a16" and claimed == "w8a8@compressed-tensors":
        assert "with other parameters: activation_bits is 16 in model.layers." in str(failure.value)
    else:
        assert f"not in {claimed}: 0.0% of the eligible weights are" in str(failure.value)
        assert "kernels Linear x14; 14 of 14 weights left out" in str(failure.value)


def test_weight_only_never_passes_for_nvfp4_with_activations(base, checkpoint):
    with pytest.raises(ProofFailed, match=r"activation_bits is 16 in .*, asked for 4"):
        open_as(base, checkpoint("nvfp4a16"), "nvfp4@compressed-tensors")


@pytest.mark.parametrize("key, wanted, found", [("group_size", 128, 64), ("symmetric", False, True)])
def test_another_parameter_than_asked_fails(base, checkpoint, key, wanted, found):
    model, eligible = opened(base, checkpoint("w4a16"), "w4a16")
    known = registry.get("w4a16")
    format = replace(known, parameters={**known.parameters, key: wanted})
    with pytest.raises(ProofFailed, match=rf"{key} is {found} in model\.layers\..*, asked for {wanted}"):
        prove(model, format, BACKEND, eligible)


def test_layers_that_were_ignored_fail(base, checkpoint):
    folder = checkpoint("w4a16", ("lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"))
    with pytest.raises(ProofFailed) as failure:
        open_as(base, folder, "w4a16")
    assert "2 of 14 weights left out: model.layers.0.mlp.up_proj.weight" in str(failure.value)


def test_layers_that_are_excluded_may_be_ignored(base, checkpoint):
    folder = checkpoint("w4a16", ("lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"))
    format = replace(registry.get("w4a16"), name="w4a16-some", exclude=("*.up_proj",))
    proof = loading.load(ModelSource(str(base)), format, BACKEND, "float32", detect(), str(folder)).proof
    assert proof.quantized_weight_share == 1.0
    assert sum(proof.kernels.values()) == 12
    with pytest.raises(ProofFailed, match=r"excludes .*up_proj.*, but it is stored in 4 bits"):
        loading.load(ModelSource(str(base)), format, BACKEND, "float32", detect(), str(checkpoint("w4a16")))


def test_a_layer_that_was_widened_fails(base, checkpoint):
    model, eligible = opened(base, checkpoint("w8a8"), "w8a8@compressed-tensors")
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
    with pytest.raises(ProofFailed, match=r"1 of 14 weights left out: model\.layers\.0\.mlp\.up_proj"):
        prove(model, registry.get("w8a8@compressed-tensors"), BACKEND, eligible)


@pytest.mark.parametrize("how", ["disabled", "plain forward", "no scheme"])
def test_a_layer_that_rounds_no_activations_fails(base, checkpoint, how):
    """The weights alone do not make W8A8."""
    model, eligible = opened(base, checkpoint("w8a8"), "w8a8@compressed-tensors")
    layer = model.model.layers[0].mlp.up_proj
    if how == "disabled":
        layer.quantization_enabled = False
    elif how == "plain forward":
        del layer.forward
    else:
        layer.quantization_scheme.input_activations = None  # shared by all layers
    with pytest.raises(ProofFailed, match=r"activation_bits is 16 in model\.layers\."):
        prove(model, registry.get("w8a8@compressed-tensors"), BACKEND, eligible)


def test_a_model_that_was_unpacked_while_loading_fails(base, checkpoint):
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint("w8a8"), quantization_config=CompressedTensorsConfig(dequantize=True), device_map={"": "cpu"}
    )
    eligible = loading.eligible_weights(AutoConfig.from_pretrained(base))
    with pytest.raises(ProofFailed, match=r"0\.0% of the eligible weights are .*, 32\.\d\d bits a weight"):
        prove(model, registry.get("w8a8@compressed-tensors"), BACKEND, eligible)


def test_the_config_is_not_believed(base, checkpoint, tmp_path):
    """A config that claims W4A16 in groups of 128 over tensors of groups of 64."""
    import shutil

    folder = tmp_path / "lying"
    shutil.copytree(checkpoint("w4a16"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model, eligible = opened(base, folder, "w4a16")
    except UsageError as error:
        assert "have other shapes than its config.json says" in str(error)  # noqa: PT017
    else:  # transformers 5.17 loads it, and fails at the first forward
        assert prove(model, registry.get("w4a16"), BACKEND, eligible).parameters["group_size"] == 64


def test_packed_zero_points_load_or_are_refused_with_the_reason(base, checkpoint):
    """Under transformers 5.23 and compressed-tensors 0.20 the zero points are expected unpacked; 5.17 loads them."""
    try:
        proof = open_as(base, checkpoint("w4a16-asym"), "w4a16").proof
    except Unsupported as reason:
        assert "packed weights with zero points, whose shape compressed-tensors 0." in reason.found  # noqa: PT017
        assert "symmetric" in reason.needed  # noqa: PT017
    else:
        assert proof.parameters["symmetric"] is False
        assert proof.bits_per_weight == pytest.approx(4 + 32 / 64 + 4 / 64, abs=0.05)


def test_a_plain_model_is_in_none_of_these_formats(base):
    with pytest.raises(ProofFailed, match=r"not in w4a16: 0\.0% .* 32\.00 bits a weight"):
        open_as(base, base, "w4a16")


def test_without_a_checkpoint_it_says_what_to_give(base):
    asked = Asked(str(base), registry.get("w4a16"), "float32", "cpu")
    with pytest.raises(UsageError, match=r"w4a16 is loaded from a checkpoint .* none was given: give its folder"):
        BACKEND.open(asked, lambda name, **arguments: None)


def test_which_recipes_look_at_activations():
    def needs(name, **parameters):
        known = registry.get(name)
        return BACKEND.calibrates(replace(known, parameters={**known.parameters, **parameters}))

    assert needs("w4a16")
    assert not needs("w4a16", rounding="nearest")
    assert needs("w8a8@compressed-tensors")
    assert not needs("w8a8@compressed-tensors", smoothing_strength=0)
    assert needs("w8a8@compressed-tensors", smoothing_strength=0, rounding="gptq")
    assert not needs("fp8@compressed-tensors")
    assert needs("nvfp4@compressed-tensors")


def test_activation_scales_that_are_fixed_beforehand_need_samples():
    known = registry.get("fp8@compressed-tensors")
    assert making.needs_samples(replace(known, input_activations=QuantizationArgs(8, "float", "tensor")))


@pytest.mark.parametrize("key, value", [("rounding", "up"), ("smoothing_strength", 1.5), ("smoothing_strength", "a")])
def test_a_recipe_that_is_none_is_refused(key, value):
    known = registry.get("w8a8@compressed-tensors")
    with pytest.raises(UsageError, match=f"{key} '?{value}'? of the format w8a8@compressed-tensors"):
        making.needs_samples(replace(known, parameters={**known.parameters, key: value}))


def samples(count=4, length=32):
    return [np.random.default_rng(number).integers(0, 256, length) for number in range(count)]


def make(base, folder, name, given=None, **changes):
    known = registry.get(name)
    parameters = {**known.parameters, **changes.pop("parameters", {})}
    format = replace(known, parameters=parameters, **changes)
    told = []
    asked = Asked(str(base), format, "float32", "cpu", excluded=("model.layers.0.mlp.down_proj",))
    recipe = BACKEND.make(asked, samples() if given is None else given, folder, told.append)
    return recipe, told


@pytest.mark.skipif(find_spec("llmcompressor") is not None, reason="llm-compressor is here")
def test_without_llm_compressor_making_says_what_is_needed(base, tmp_path):
    with pytest.raises(Unsupported) as reason:
        make(base, tmp_path / "made", "w8a8@compressed-tensors")
    assert reason.value.asked == "making a checkpoint in w8a8@compressed-tensors with llm-compressor"
    assert "llmcompressor not installed (transformers " in reason.value.found
    assert "an environment of its own" in reason.value.needed
    assert "python -m venv llmc" in reason.value.needed
    assert "pytest-quant quantize MODEL --format w8a8@compressed-tensors" in reason.value.needed
    assert f"torch=={torch.__version__.partition('+')[0]}" in reason.value.needed
    assert not (tmp_path / "made").exists()


needs_llm_compressor = pytest.mark.skipif(
    find_spec("llmcompressor") is None, reason="asked: making a checkpoint; found: no llmcompressor; needed: it"
)


@needs_llm_compressor
@pytest.mark.parametrize(
    "name, changes, said",
    [
        (
            "w4a16",
            {"weights": QuantizationArgs(4, "int", "group", 64), "parameters": {"rounding": "nearest"}},
            {"rounding": "nearest", "smoothing_strength": 0.0, "scheme": "int4 group of 64", "group_size": 64},
        ),
        (
            "w4a16",
            {"parameters": {"group_size": 64}},
            {"rounding": "gptq", "scheme": "int4 group of 64", "group_size": 64, "dampening_frac": 0.01},
        ),
        (
            "w8a8@compressed-tensors",
            {},
            {"rounding": "nearest", "smoothing_strength": 0.5, "scheme": "int8 channel, int8 token dynamic"},
        ),
        (
            "w8a8@compressed-tensors",
            {"parameters": {"smoothing_strength": 0.8, "rounding": "gptq"}},
            {"rounding": "gptq", "smoothing_strength": 0.8},
        ),
        ("fp8@compressed-tensors", {}, {"rounding": "nearest", "scheme": "float8 channel, float8 token dynamic"}),
        ("nvfp4@compressed-tensors", {}, {"rounding": "nearest"}),
    ],
)
def test_what_is_made_proves_itself(base, tmp_path, name, changes, said):
    recipe, told = make(base, tmp_path / "made", name, **changes)
    assert said.items() <= dict(recipe).items()
    assert recipe["method"].startswith("llm-compressor ")
    assert recipe["ignore"] == "lm_head, model.layers.0.mlp.down_proj"
    assert told[0] == "loading the model"
    assert "writing the checkpoint" in told
    assert json.dumps(recipe)
    files = {file.name for file in (tmp_path / "made").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    format = replace(registry.get(name), exclude=("model.layers.0.mlp.down_proj",))
    model = loading.load(ModelSource(str(base)), format, BACKEND, "float32", detect(), str(tmp_path / "made"))
    assert model.proof.quantized_weight_share == 1.0
    assert np.isfinite(model.token_nll(np.arange(16)[None])).all()


@needs_llm_compressor
def test_smoothing_is_really_carried_out(base, tmp_path):
    """SmoothQuant moves scales from the norms' outputs into the layers that follow."""
    from safetensors.torch import load_file

    norms = {}
    for strength in (0, 0.5):
        folder = tmp_path / str(strength)
        make(base, folder, "w8a8@compressed-tensors", parameters={"smoothing_strength": strength})
        norms[strength] = load_file(folder / "model.safetensors")["model.layers.0.input_layernorm.weight"]
    assert torch.equal(norms[0], torch.ones(HIDDEN))
    assert not torch.allclose(norms[0.5], norms[0], rtol=0.1)


@needs_llm_compressor
def test_groups_that_do_not_divide_a_layer_are_refused_with_one_that_does(base, tmp_path):
    with pytest.raises(UsageError, match=r"groups of 96 weights, which do not divide the 128 inputs .*group_size=128"):
        make(base, tmp_path / "made", "w4a16", weights=QuantizationArgs(4, "int", "group", 96))


@needs_llm_compressor
@pytest.mark.parametrize("given, said", [([], "there are none"), ([[1, 2], [1, 2, 3]], "of different lengths")])
def test_samples_that_do_not_do_are_refused(base, tmp_path, given, said):
    with pytest.raises(UsageError, match=said):
        make(base, tmp_path / "made", "w8a8@compressed-tensors", [np.array(sample) for sample in given])


@needs_llm_compressor
def test_a_model_without_linear_layers_is_refused(tiny_gpt2, tmp_path):
    asked = Asked(str(tiny_gpt2), registry.get("fp8@compressed-tensors"), "float32", "cpu")
    with pytest.raises(Unsupported, match=r"no torch\.nn\.Linear"):
        BACKEND.make(asked, [], tmp_path / "made", lambda line: None)


def test_parameters_of_the_recipe_are_not_asked_of_the_loaded_model(base, checkpoint):
    known = registry.get("w4a16")
    format = replace(known, parameters={**known.parameters, "rounding": "nearest", "smoothing_strength": 0.0})
    proof = loading.load(ModelSource(str(base)), format, BACKEND, "float32", detect(), str(checkpoint("w4a16"))).proof
    assert proof.quantized_weight_share == 1.0
