"""GPTQ and AWQ checkpoints: made, loaded, and proven by their tensors."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import SENTENCE, save_llama

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked, missing_packages
from pytest_quant.formats.backends.gptqmodel import BACKEND
from pytest_quant.formats.proof import prove
from pytest_quant.hardware import detect

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
DOWN = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1))


@pytest.fixture(autouse=True, scope="module")
def _without_cuda():
    """These tests are of the kernels for CPUs."""
    if torch.cuda.is_available():
        pytest.skip("on a CUDA device the tests under tests/gpu do")


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    """A Llama as wide as AWQ's clip search wants it (64 outputs at least), that learnt a sentence."""
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    return save_llama(tmp_path_factory.mktemp("models") / "base", byte_tokenizer, learn=40, rate=5e-3, **sizes)


@pytest.fixture(scope="module")
def windows(byte_tokenizer):
    tokens = np.array(byte_tokenizer(SENTENCE * 6)["input_ids"], dtype=np.int64)
    return [tokens[start : start + 64] for start in range(0, 128, 16)]


@pytest.fixture(scope="module")
def make(tmp_path_factory, base, windows):
    """Make a checkpoint of a format once; gives its folder, its recipe and what was told of the progress."""
    made = {}

    def making(format):
        key = repr(format)
        if key not in made:
            folder = tmp_path_factory.mktemp("made") / "checkpoint"
            folder.mkdir()
            told = []
            made[key] = folder, BACKEND.make(asked(base, format), windows, folder, told.append), told
        return made[key]

    return making


def asked(base, format, **changes):
    from transformers import AutoConfig

    eligible = loading.eligible_weights(AutoConfig.from_pretrained(base))
    excluded = tuple(name.removesuffix(".weight") for name in eligible if "down_proj" in name and format.exclude)
    return replace(Asked(str(base), format, "float32", "cpu", excluded), **changes)


def variant(name, bits=4, exclude=(), **parameters):
    format = registry.get(name)
    weights = replace(format.weights, num_bits=bits)
    return replace(format, weights=weights, exclude=exclude, parameters={**format.parameters, **parameters})


def load(base, format, checkpoint, dtype="float32"):
    return loading.load(ModelSource(str(base)), format, BACKEND, dtype, detect(), str(checkpoint))


def nll(model, windows):
    """Mean NLL of the windows in nats a token."""
    batch = torch.as_tensor(np.stack(windows))
    with torch.inference_mode():
        return model(batch, labels=batch).loss.item()


def plain(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def change_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.fixture
def copied(tmp_path, make):
    """A copy of a made checkpoint, to be spoilt."""

    def copying(format):
        return shutil.copytree(make(format)[0], tmp_path / "copy")

    return copying


def test_the_libraries_are_found_by_their_own_version():
    assert all(missing_packages(format, BACKEND) is None for format in BACKEND.formats)


@pytest.mark.parametrize("name, sym", [("gptq", True), ("awq", False)])
def test_a_made_checkpoint_proves_itself_and_answers_as_its_base(base, make, windows, name, sym):
    folder, recipe, told = make(registry.get(name))
    assert {key: recipe[key] for key in ("method", "bits", "group_size", "sym", "layers")} == {
        "method": name,
        "bits": 4,
        "group_size": 128,
        "sym": sym,
        "layers": 14,
    }
    assert told == ["layer 1/2", "layer 2/2"]
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
    model = load(base, registry.get(name), folder)
    proof = model.proof
    assert proof.quantized_weight_share == 1.0
    assert sum(proof.kernels.values()) == 14
    found = {"method": name, "group_size": 128, "sym": sym} | ({"desc_act": False} if name == "gptq" else {})
    assert proof.parameters == found
    assert 4.15 < proof.bits_per_weight < 4.7, "scales, zero points and the order of a tiny model's inputs"
    before, after = nll(plain(base), windows), nll(model.model, windows)
    assert before < 1.5, "the base model learnt something"
    assert before - 0.05 < after < before + 0.5 < np.log(256)


def test_making_is_silent_and_leaves_no_trace(base, windows, tmp_path, capfd):
    from gptqmodel.looper.awq_processor import AWQProcessor

    search, variables = AWQProcessor._compute_best_clip, dict(os.environ)
    BACKEND.make(asked(base, registry.get("awq")), windows, tmp_path, lambda text: None)
    assert AWQProcessor._compute_best_clip is search
    assert dict(os.environ) == variables
    assert capfd.readouterr().out == ""


def test_demanded_parameters_are_made_and_proven(base, make):
    wanted = variant("gptq", group_size=64, sym=False, desc_act=True)
    folder, recipe, _ = make(wanted)
    assert (recipe["group_size"], recipe["sym"], recipe["desc_act"]) == (64, False, True)
    assert load(base, wanted, folder).proof.parameters["desc_act"] is True
    for name, other in {"group_size": 128, "sym": True, "desc_act": False}.items():
        with pytest.raises(ProofFailed, match=f"other parameters: {name} is {wanted.parameters[name]!r} in model"):
            load(base, variant("gptq", **{name: other}), folder)


def test_eight_bits_pass_as_eight_bits_only(base, make):
    wanted = variant("gptq", bits=8)
    folder, recipe, _ = make(wanted)
    assert recipe["bits"] == 8
    assert 8.1 < load(base, wanted, folder).proof.bits_per_weight < 8.8
    with pytest.raises(ProofFailed, match=r"not in gptq: 0\.0% of the eligible weights are .* 14 of 14 weights left"):
        load(base, registry.get("gptq"), folder)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_what_is_excluded_stays_wide_and_is_never_overlooked(base, make, windows, name):
    wanted = variant(name, exclude=("*.down_proj",))
    folder, recipe, _ = make(wanted)
    assert recipe["excluded"] == list(DOWN)
    assert recipe["layers"] == 12
    model = load(base, wanted, folder)
    assert all(type(model.model.get_submodule(layer)) is torch.nn.Linear for layer in DOWN)
    assert sum(model.proof.kernels.values()) == 12
    assert nll(model.model, windows) < nll(plain(base), windows) + 0.5
    with pytest.raises(ProofFailed, match=r"Linear x2, \w+ x12; 2 of 14 weights left out: model\.layers\.0\.mlp\.down"):
        load(base, registry.get(name), folder)


def test_layers_that_lost_their_quantized_weights_fail(base, make, copied):
    """As gptqmodel leaves a checkpoint whose config names them in ``dynamic``, which transformers does not read."""
    folder = copied(variant("gptq", exclude=("*.down_proj",)))
    change_config(folder, lambda config: config["quantization_config"].pop("modules_in_block_to_quantize"))
    with pytest.raises(UsageError, match=r"leaves modules out .*down_proj.*modules_in_block_to_quantize"):
        load(base, registry.get("gptq"), folder)
    change_config(folder, lambda config: config["quantization_config"].pop("dynamic"))
    with pytest.raises(UsageError, match=r"lack \d+ of the model's weights .*down_proj.* would be random"):
        load(base, registry.get("gptq"), folder)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_a_single_wide_layer_fails(base, make, name):
    model = load(base, registry.get(name), make(registry.get(name))[0])
    model.model.model.layers[0].mlp.up_proj = torch.nn.Linear(128, 256, bias=False)
    with pytest.raises(ProofFailed, match=r"1 of 14 weights left out: model\.layers\.0\.mlp\.up_proj\.weight"):
        prove(model.model, registry.get(name), BACKEND, loading.eligible_weights(model.model.config))


def test_neither_method_passes_for_the_other(base, make):
    with pytest.raises(UsageError, match="is awq, not gptq; give one with GPTQ weights"):
        load(base, registry.get("gptq"), make(registry.get("awq"))[0])
    model = load(base, registry.get("awq"), make(registry.get("awq"))[0])
    with pytest.raises(ProofFailed, match="other parameters: method is 'awq' in model"):
        prove(model.model, registry.get("gptq"), BACKEND, loading.eligible_weights(model.model.config))


def test_other_libraries_modules_are_none_of_ours(base):
    assert all(BACKEND.stored(module) is None for module in plain(base).modules())


def test_checkpoints_that_are_none_say_what_to_do(base, make, copied):
    gptq = registry.get("gptq")
    with pytest.raises(UsageError, match="none is given: name a folder or a hub id with GPTQ weights made from"):
        loading.load(ModelSource(str(base)), gptq, BACKEND, "float32", detect())
    with pytest.raises(UsageError, match=r"is not quantized: its config\.json has no quantization_config"):
        load(base, gptq, base)
    folder = copied(gptq)
    change_config(folder, lambda config: config["quantization_config"]["meta"].update(mock_quantization=True))
    with pytest.raises(ProofFailed, match="mock_quantization, which calibrates nothing"):
        load(base, gptq, folder)


@pytest.mark.parametrize(
    "format, said",
    [
        (variant("gptq", group_size=48), "group size 48 does not divide the input widths 128, 256 of"),
        (variant("awq", group_size=256), "group size 256 does not divide the input widths 128 of"),
        (variant("gptq", group_size=0), "must be a positive whole number, not 0"),
        (variant("gptq", bits=5), "GPTQ has 2, 3, 4, 8 bits, not 5"),
        (variant("awq", bits=8), "AWQ has 4 bits, not 8"),
        (variant("awq", desc_act=True), "cannot make AWQ with desc_act; its parameters are group_size, sym"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_any_work(base, windows, tmp_path, format, said):
    with pytest.raises(UsageError, match=said):
        BACKEND.make(asked(base, format), windows, tmp_path, pytest.fail)
    assert not list(tmp_path.iterdir())


def test_the_largest_group_that_divides_is_the_default(base):
    from pytest_quant.formats.backends.gptqmodel_making import plan_of

    made = asked(base, registry.get("gptq"))
    assert plan_of(made, {"a": 576, "b": 1536}).group_size == 64
    assert plan_of(made, {"a": 4096, "b": 96}).group_size == 32
    with pytest.raises(
        UsageError, match=r"none of the group sizes 128, 64, 32 divides all input widths .*\(100, 128\)"
    ):
        plan_of(made, {"a": 128, "b": 100})


def rounded(weight, group, symmetric):
    """Round-to-nearest in 4 bits: integers and zero points (0 to 15) and scales, by input, as files have them."""
    columns = weight.T.reshape(-1, group, weight.shape[0])
    low, high = columns.amin(1, keepdim=True).clamp(max=0), columns.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = ((high - low) / 15).clamp(min=1e-4).half().float()
    zero = torch.full_like(scale, 8) if symmetric else (-low / scale).round().clamp(1, 15)
    whole = ((columns / scale).round() + zero).clamp(0, 15)
    return whole.flatten(0, 1).int(), zero.squeeze(1).int(), scale.squeeze(1), ((whole - zero) * scale).flatten(0, 1).T


def packed(numbers, dim, order=range(8)):
    """Eight numbers of 4 bits in each 32-bit integer."""
    lanes = numbers.unflatten(dim, (-1, 8)).movedim(dim + 1, -1)[..., list(order)].long()
    words = (lanes << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def write_checkpoint(base, folder, config, method, symmetric=False):
    """The base model rounded to nearest, in the files of auto-gptq or AutoAWQ; gives a plain model with its weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors, model = load_file(folder / "model.safetensors"), plain(base)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
            continue
        del tensors[f"{name}.weight"]
        whole, zero, scale, weight = rounded(layer.weight.data, 64, symmetric)
        layer.weight.data = weight.contiguous()
        if method == "gptq":  # which holds zero points less one
            made = {"qweight": packed(whole, 0), "qzeros": packed(zero - 1, 1)}
            made["g_idx"] = (torch.arange(whole.shape[0]) // 64).int()
        else:
            made = {"qweight": packed(whole, 1, AWQ_ORDER), "qzeros": packed(zero, 1, AWQ_ORDER)}
        made["scales"] = scale.half()
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in made.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, lambda whole_config: whole_config.update(quantization_config=config))
    return model


AUTO_GPTQ = {
    "bits": 4,
    "damp_percent": 0.01,
    "desc_act": False,
    "group_size": 64,
    "model_file_base_name": None,
    "model_name_or_path": None,
    "quant_method": "gptq",
    "static_groups": False,
    "true_sequential": True,
}
AUTO_AWQ = {
    "bits": 4,
    "group_size": 64,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}


@pytest.mark.parametrize("symmetric", [True, False])
def test_auto_gptqs_files_give_the_weights_that_they_hold(base, windows, tmp_path, symmetric):
    folder = tmp_path / "checkpoint"
    expected = write_checkpoint(base, folder, AUTO_GPTQ | {"sym": symmetric}, "gptq", symmetric)
    model = load(base, registry.get("gptq"), folder)
    assert model.proof.parameters == {"method": "gptq", "group_size": 64, "sym": symmetric, "desc_act": False}
    assert_same_answers(model.model, expected, windows, 1e-3)


def test_the_zero_points_tell_the_symmetry_and_not_the_config(base, windows, tmp_path):
    folder = tmp_path / "checkpoint"
    expected = write_checkpoint(base, folder, AUTO_GPTQ | {"sym": True}, "gptq", symmetric=False)
    model = load(base, registry.get("gptq"), folder)
    assert model.proof.parameters["sym"] is False
    assert_same_answers(model.model, expected, windows, 1e-3)
    with pytest.raises(ProofFailed, match="sym is False in model"):
        load(base, variant("gptq", sym=True), folder)


def test_autoawqs_files_give_the_weights_that_they_hold(base, windows, tmp_path):
    folder = tmp_path / "checkpoint"
    expected = write_checkpoint(base, folder, AUTO_AWQ, "awq")
    model = load(base, registry.get("awq"), folder)
    assert model.proof.parameters == {"method": "awq", "group_size": 64, "sym": False}
    assert_same_answers(model.model, expected, windows, 1e-2)  # without AVX-512, gptqmodel multiplies in 16 bits


def assert_same_answers(model, expected, windows, tolerance):
    batch = torch.as_tensor(np.stack(windows))
    with torch.inference_mode():
        found, wanted = model(batch).logits, expected(batch).logits
    assert (found - wanted).abs().max().item() < tolerance * wanted.abs().max().item()
