"""How each library is told to leave modules wide: what is printed does it, and is what we tell the library too."""

from __future__ import annotations

import ast
import re
import shlex

import gguf_files
import numpy as np
import pytest
import torch
from small_models import SENTENCE, save_llama

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats import custom, registry, variant
from pytest_quant.formats.backend import Asked
from pytest_quant.hardware import detect

LEFT = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj")
BACKENDS = {backend.name: backend for backend in registry.backends()[0]}


def parsed(line):
    """The callable of a line, and its arguments by name, without the ``...`` that stands for the others."""
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    [others] = call.args
    assert ast.literal_eval(others) is ...
    return call.func.id, {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def given(backend, config, names=LEFT):
    called, arguments = parsed(BACKENDS[backend].excluding(names))
    assert called == config
    return arguments


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    """Wide enough for blocks of 64."""
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    return save_llama(tmp_path_factory.mktemp("models") / "base", byte_tokenizer, **sizes)


def opened(base, **arguments):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **arguments)


def wide(model):
    """Names of the linear layers that are plain, with weights in floating point."""
    return {
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and type(module.weight) is torch.nn.Parameter
    }


def layers(base):
    return wide(opened(base))


@pytest.mark.parametrize("how", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_bitsandbytes(base, how):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(**how, **given("bitsandbytes", "BitsAndBytesConfig"))
    assert wide(opened(base, quantization_config=config)) == {"lm_head", *LEFT}


def test_torchao(base):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), **given("torchao", "TorchAoConfig"))
    assert wide(opened(base, quantization_config=config)) == {"lm_head", *LEFT}


def test_quanto(base):
    pytest.importorskip("optimum.quanto")
    from transformers import QuantoConfig

    config = QuantoConfig(weights="int8", **given("quanto", "QuantoConfig"))
    assert wide(opened(base, quantization_config=config)) == {"lm_head", *LEFT}


def test_finegrained_fp8(base):
    """Its layers can be put in anywhere; only their weights need a GPU."""
    from transformers import FineGrainedFP8Config
    from transformers.quantizers.auto import AutoHfQuantizer

    config = FineGrainedFP8Config(**given("finegrained-fp8", "FineGrainedFP8Config"))
    model = opened(base)
    AutoHfQuantizer.from_config(config, pre_quantized=False)._process_model_before_weight_loading(model)
    assert {name for name, module in model.named_modules() if type(module) is torch.nn.Linear} == {"lm_head", *LEFT}


def test_compressed_tensors(base):
    """llm-compressor's modifiers pass it on to this."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    scheme = quantization.preset_name_to_scheme("W8A8", ["Linear"])
    arguments = given("compressed-tensors", "QuantizationModifier")
    model = opened(base)
    config = quantization.QuantizationConfig(config_groups={"group_0": scheme}, **arguments)
    quantization.apply_quantization_config(model, config, show_progress=False)
    untouched = {name for name in layers(base) if not hasattr(model.get_submodule(name), "quantization_scheme")}
    assert untouched == {"lm_head", *LEFT}


def test_auto_round(base, byte_tokenizer):
    auto_round = pytest.importorskip("auto_round")
    from pytest_quant.formats.backends.auto_round import _quiet

    arguments = given("auto-round", "AutoRound")
    samples = [torch.from_numpy(sample)[None] for sample in np.random.default_rng(0).integers(0, 256, (2, 32))]
    told = {"group_size": 32, "iters": 0, "dataset": samples, "nsamples": 2, "seqlen": 32, "amp": False}
    model = opened(base)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in layers(base)}
    with _quiet(lambda text: None):
        quantizer = auto_round.AutoRound(
            model, tokenizer=byte_tokenizer, scheme="W4A16", device_map="cpu", **told, **arguments
        )
        model, _ = quantizer.quantize()
    same = {name for name, weight in before.items() if torch.equal(model.get_submodule(name).weight, weight)}
    assert same == {"lm_head", *LEFT}


def test_gptqmodel(base, byte_tokenizer):
    gptqmodel = pytest.importorskip("gptqmodel")
    from pytest_quant.engines.quiet import quiet
    from pytest_quant.formats.backends import gptqmodel_making as making
    from pytest_quant.formats.backends.gptqmodel import silent

    if torch.cuda.is_available():
        pytest.skip("this is of the kernels for CPUs")
    arguments = given("gptqmodel", "QuantizeConfig")
    tokens = byte_tokenizer(SENTENCE * 3)["input_ids"][:64]
    samples = [{"input_ids": tokens[start:], "attention_mask": [1] * (64 - start)} for start in range(4)]
    settings = {"bits": 4, "group_size": 32, "device": "cpu", "offload_to_disk": False}
    with silent(), quiet(), making._enough_workers(), making._pack_without_compiler(), making._logs_elsewhere():
        config = gptqmodel.QuantizeConfig(**settings, **arguments)
        model = gptqmodel.GPTQModel.load(str(base), config, dtype=torch.float32, use_safetensors=True)
        quiet_settings = {"calibration_concat_size": None, "calibration_sort": None, "calibration_data_min_length": 0}
        model.quantize(samples, batch_size=1, **quiet_settings)
    kernels = gptqmodel.nn_modules.qlinear.BaseQuantLinear
    quantized = {name for name, module in model.model.named_modules() if isinstance(module, kernels)}
    assert layers(base) - quantized == {"lm_head", *LEFT}


def test_hqq_through_a_variant(base):
    """hqq tells layers apart by what they are, not where; transformers 5 refuses its config."""
    pytest.importorskip("hqq")
    backend = BACKENDS["hqq"]
    format = eval(backend.excluding(LEFT), {"variant": variant})
    model = loading.load(ModelSource(str(base)), format, backend, "float32", detect()).model
    assert wide(model) == {"lm_head", *LEFT}


def test_a_backend_of_ones_own_through_a_variant():
    _, backend = custom("ours", lambda asked, from_pretrained: None, num_bits=8)
    assert backend.excluding(["a.b"]) == 'variant("ours", "NAME", exclude=["a.b"])'


def test_gguf_in_llama_cpps_own_names(base, tmp_path):
    gguf = pytest.importorskip("gguf")
    command, *options = shlex.split(BACKENDS["gguf"].excluding(LEFT))
    assert (command, options[-1]) == ("llama-quantize", "...")
    assert set(options[:-1:2]) == {"--tensor-type"}
    patterns = [option.rpartition("=") for option in options[1:-1:2]]
    assert {kind for _, _, kind in patterns} == {"f16"}
    assert all(pattern == pattern.lower() for pattern, _, _ in patterns), "llama-quantize makes it so"
    gguf_files.write(base, tmp_path / "base.gguf", "Q8_0")
    tensors = [tensor.name for tensor in gguf.GGUFReader(tmp_path / "base.gguf").tensors]
    matched = {name for name in [*tensors, "blk.10.ffn_down.weight"] for p, _, _ in patterns if re.search(p, name)}
    assert matched == {"blk.0.ffn_down.weight", "blk.1.attn_q.weight"}


def test_gguf_knows_every_layer_of_a_llama(base):
    gguf = pytest.importorskip("gguf")
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name in layers(base):
        assert re.escape(f"{known.get_name(name)}.weight") in BACKENDS["gguf"].excluding([name])


def test_gguf_has_no_word_for_one_expert():
    pytest.importorskip("gguf")
    with pytest.raises(Unsupported, match=r"experts\.3\.w1 in 16 bits; found: no tensor of llama\.cpp"):
        BACKENDS["gguf"].excluding(["model.layers.0.block_sparse_moe.experts.3.w1"])


@pytest.mark.parametrize("name", sorted(BACKENDS.keys() - {"torch"}))
def test_every_backend_says_it_in_one_line(name):
    if name == "gguf":
        pytest.importorskip("gguf")
    line = BACKENDS[name].excluding(LEFT)
    assert "\n" not in line
    if name != "gguf":
        assert all(left in line or re.escape(left).replace("\\", "\\\\") in line for left in LEFT)


def test_what_quantizes_nothing_has_nothing_to_exclude():
    with pytest.raises(UsageError, match=r"quantize nothing: a\.b stay wide anyway"):
        BACKENDS["torch"].excluding(["a.b"])


@pytest.mark.parametrize("name", ["int8", "nf4", "int8-weight-only", "int8-weight-only@quanto", "fp8@finegrained-fp8"])
def test_the_same_is_told_when_a_model_is_opened(base, name):
    format = registry.get(name)
    backend, seen = registry.backend(format), {}

    def from_pretrained(model, **arguments):
        seen.update(arguments)
        return torch.nn.Module()

    asked = Asked(str(base), format, "float32", "cpu", excluded=LEFT)
    backend.open(asked, from_pretrained)
    [(argument, names)] = parsed(backend.excluding(LEFT))[1].items()
    assert getattr(seen["quantization_config"], argument) == names


def test_another_head_than_lm_head():
    line = BACKENDS["bitsandbytes"].excluding(["a.b"], head="embed_out")
    assert line == 'BitsAndBytesConfig(..., llm_int8_skip_modules=["embed_out", "a.b"])'
