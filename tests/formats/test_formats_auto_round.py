"""auto-round: checkpoints are made, loaded with its kernels, and proven."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, Unsupported, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked
from pytest_quant.formats.own import variant
from pytest_quant.formats.proof import prove
from pytest_quant.hardware import detect

pytest.importorskip("auto_round")
FORMAT = variant("int4@auto-round", "quick", group_size=64, iters=0)
BACKEND = registry.backend(FORMAT)


def load(folder, checkpoint, format=FORMAT, dtype="float32"):
    place = None if checkpoint is None else str(checkpoint)
    return engine.load(ModelSource(str(folder)), format, BACKEND, dtype, detect(), place)


def make(model, folder, format=FORMAT, excluded=(), tell=lambda text: None):
    folder.mkdir()
    windows = list(np.random.default_rng(0).integers(0, 256, (4, 32)))
    return BACKEND.make(Asked(str(model), format, "float32", "cpu", excluded), windows, folder, tell)


def proven(model, format=FORMAT):
    return prove(model, format, BACKEND, engine.eligible_weights(model.config))


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    """A checkpoint, its recipe and what was said meanwhile."""
    folder, told = tmp_path_factory.mktemp("auto-round") / "tiny", []
    recipe = make(tiny_llama, folder, tell=told.append)
    return folder, recipe, told


@pytest.fixture(scope="module")
def checkpoint(made):
    return made[0]


@pytest.fixture
def loaded(tiny_llama, checkpoint):
    return load(tiny_llama, checkpoint).model


def test_a_checkpoint_is_made_whole_with_its_recipe(made):
    folder, recipe, told = made
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(path.is_dir() for path in folder.iterdir())
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "auto-round"
    assert recipe == {
        "method": "auto-round",
        "bits": 4,
        "group_size": 64,
        "symmetric": True,
        "iters": 0,
        "ignored": ["lm_head"],
        "samples": 4,
        "tokens_each": 32,
    }
    assert any("layers.1" in text for text in told)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_loaded_narrow_and_computes_in_the_type_that_was_asked_for(tiny_llama, checkpoint, dtype):
    loaded = load(tiny_llama, checkpoint, dtype=dtype)
    proof = loaded.proof
    assert proof.quantized_weight_share == 1.0
    assert proof.parameters == {"group_size": 64, "symmetric": True}
    assert 4.3 <= proof.bits_per_weight < 5.5  # auto-round-lib's kernel pads
    assert sum(proof.kernels.values()) == 14
    assert loaded.model.dtype is getattr(torch, dtype)
    assert loaded.model(torch.arange(8)[None]).logits.dtype is getattr(torch, dtype)


def test_embeddings_and_head_are_the_base_models(loaded, tiny_llama):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert torch.equal(loaded.lm_head.weight, base.lm_head.weight)
    assert torch.equal(loaded.model.embed_tokens.weight, base.model.embed_tokens.weight)
    tokens = torch.arange(40, 72)[None]
    with torch.inference_mode():
        ours, theirs = loaded(tokens).logits, base(tokens).logits
    assert 0.0 < (ours - theirs).abs().mean() < 0.5 * theirs.abs().mean()


def test_excluded_modules_stay_wide(tiny_llama, checkpoint, tmp_path):
    format = replace(FORMAT, exclude=("down_proj",))
    names = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(2))
    recipe = make(tiny_llama, tmp_path / "partly", format, names)
    assert recipe["ignored"] == ["lm_head", *names]
    loaded = load(tiny_llama, tmp_path / "partly", format)
    assert type(loaded.model.model.layers[1].mlp.down_proj) is torch.nn.Linear
    assert sum(loaded.proof.kernels.values()) == 12
    with pytest.raises(ProofFailed, match=r"77\.8% of .* 2 of 14 weights left out"):
        load(tiny_llama, tmp_path / "partly")
    with pytest.raises(ProofFailed, match=r"excludes .*down_proj\.weight, but it is stored in 4 bits"):
        load(tiny_llama, checkpoint, format)


def test_rounding_is_tuned_where_iterations_are_asked_for(tiny_llama, checkpoint, tmp_path):
    tuned = variant("int4@auto-round", "tuned", group_size=64, iters=1)
    recipe = make(tiny_llama, tmp_path / "tuned", tuned)
    assert recipe["iters"] == 1
    model = load(tiny_llama, tmp_path / "tuned", tuned).model
    assert any(
        not torch.equal(ours, theirs)
        for ours, theirs in zip(
            model.state_dict().values(), load(tiny_llama, checkpoint).model.state_dict().values(), strict=True
        )
    )


def test_another_group_size_than_asked_fails(tiny_llama, checkpoint):
    short = variant("int4@auto-round", "short", group_size=32, iters=0)
    with pytest.raises(ProofFailed, match=r"other parameters: group_size is 64 in .*, asked for 32"):
        load(tiny_llama, checkpoint, short)


def test_zero_points_where_none_were_asked_for_fail(tiny_llama, tmp_path):
    """auto-round saves them as AWQ does, for which its kernel on a CPU is gptqmodel's, in FP16."""
    shifted = variant("int4@auto-round", "shifted", group_size=64, symmetric=False, iters=0)
    make(tiny_llama, tmp_path / "shifted", shifted)
    proof = load(tiny_llama, tmp_path / "shifted", shifted, "float16").proof
    assert proof.parameters == {"group_size": 64, "symmetric": False}
    assert proof.bits_per_weight < 5.5
    with pytest.raises(ProofFailed, match=r"other parameters: symmetric is False in .*, asked for True"):
        load(tiny_llama, tmp_path / "shifted", dtype="float16")


def test_another_width_than_asked_fails(tiny_llama, checkpoint):
    eight = replace(FORMAT, weights=replace(FORMAT.weights, num_bits=8))
    with pytest.raises(ProofFailed, match=r"not in quick: 0\.0% .* 4\.\d+ bits a weight"):
        load(tiny_llama, checkpoint, eight)


def test_a_layer_left_wide_fails(loaded):
    loaded.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 128, bias=False)
    with pytest.raises(ProofFailed, match=r"88\.9% .* 1 of 14 weights left out: model\.layers\.0\.mlp\.up_proj"):
        proven(loaded)


def test_packed_bits_that_are_not_there_fail(loaded):
    """The layer says 4 bits and holds bytes."""
    layer = loaded.model.layers[0].mlp.up_proj
    layer.bits = 2 if layer.bits == 4 else 4
    with pytest.raises(ProofFailed, match=r"1 of 14 weights left out: model\.layers\.0\.mlp\.up_proj"):
        proven(loaded)


def test_another_librarys_layer_fails(loaded):
    bnb = pytest.importorskip("bitsandbytes")
    loaded.model.layers[1].self_attn.q_proj = bnb.nn.Linear4bit(64, 64, bias=False)
    with pytest.raises(ProofFailed, match=r"1 of 14 weights left out: model\.layers\.1\.self_attn\.q_proj"):
        proven(loaded)


def test_a_checkpoint_that_is_not_quantized_fails(tiny_llama):
    with pytest.raises(UsageError, match="is not quantized, not auto-round's"):
        load(tiny_llama, tiny_llama)


def test_a_kernel_that_computes_in_another_type_is_a_skip(tiny_llama, checkpoint, monkeypatch):
    from auto_round.inference import backend

    for name in backend.BackendInfos:
        if name not in ("auto_round:torch", "auto_round:torch_zp"):
            monkeypatch.setattr(backend.BackendInfos[name], "requirements", ["no-such-package>=1"])
    monkeypatch.setattr("pytest_quant.formats.backends.auto_round._TORCH_KERNELS", ())
    with pytest.raises(Unsupported, match=r"in float32 on cpu; found: .*QuantLinear, which computes in float16"):
        load(tiny_llama, checkpoint)


def test_groups_that_do_not_divide_a_layer_are_an_error_before_anything_is_quantized(tiny_llama, tmp_path):
    with pytest.raises(UsageError, match=r"groups of 128 do not divide the 64 inputs of model\..*group_size=64"):
        make(tiny_llama, tmp_path / "never", registry.get("int4@auto-round"))


@pytest.mark.parametrize(
    "parameters, said",
    [({"iters": -1}, "iters=-1 is no number of steps"), ({"rounds": 3}, "has no parameter rounds: group_size")],
)
def test_a_recipe_that_auto_round_does_not_know_is_an_error(tiny_llama, tmp_path, parameters, said):
    with pytest.raises(UsageError, match=said):
        make(tiny_llama, tmp_path / "never", replace(FORMAT, parameters=parameters))


def test_a_missing_checkpoint_says_what_to_do(tiny_llama, checkpoint, tmp_path):
    with pytest.raises(UsageError, match=r"loaded from a checkpoint that auto-round made of .*none was given"):
        load(tiny_llama, None)
    with pytest.raises(UsageError, match="cannot be loaded as quick"):
        load(tiny_llama, tmp_path / "nothing")
    shutil.copytree(checkpoint, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"cannot be loaded as quick: .*safetensors"):
        load(tiny_llama, tmp_path / "half")
