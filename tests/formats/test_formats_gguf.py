"""GGUF: the file is proven, and that the loaded model computes with the file's numbers."""

from __future__ import annotations

from dataclasses import replace

import gguf_files
import pytest
import torch

from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, Unsupported, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked
from pytest_quant.formats.proof import prove
from pytest_quant.hardware import detect

FORMAT = registry.get("gguf")
BACKEND = registry.backend(FORMAT)


def load(folder, file, format=FORMAT, dtype="float32"):
    return engine.load(ModelSource(str(folder)), format, BACKEND, dtype, detect(), None if file is None else str(file))


def proven(model, format=FORMAT):
    return prove(model, format, BACKEND, engine.eligible_weights(model.config))


def few(kind, other, name):
    """One type for a layer's down projections, another for the rest."""
    return kind if "ffn_down" in name else other


@pytest.fixture(scope="module")
def q4(tiny_llama, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "tiny.Q4_0.gguf"
    gguf_files.write(tiny_llama, file, "Q4_0")
    return file


@pytest.fixture
def loaded(tiny_llama, q4):
    return load(tiny_llama, q4).model


@pytest.mark.parametrize("kind, bits", [("Q8_0", 8.5), ("Q5_1", 6.0), ("Q5_0", 5.5), ("Q4_1", 5.0), ("Q4_0", 4.5)])
def test_types_bits_and_bytes_are_the_files(tiny_llama, tmp_path, kind, bits):
    file = tmp_path / "tiny.gguf"
    gguf_files.write(tiny_llama, file, kind)
    proof = load(tiny_llama, file).proof
    assert proof.quantized_weight_share == 1.0
    assert proof.bits_per_weight == bits
    assert proof.parameters == {"ggml_type": kind, "runs": "dequantized to float32"}
    matrices = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 2 * 256 * 64
    assert proof.weight_bytes == matrices * bits / 8 + 5 * 64 * 4


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_every_weight_is_what_the_file_says(request, tmp_path, name):
    """A GPT-2 has its matrices turned, a Llama the rows of its queries and keys in another order."""
    folder, file = request.getfixturevalue(name), tmp_path / "tiny.gguf"
    expected = gguf_files.write(folder, file, "Q4_0")
    loaded = load(folder, file)
    weights = dict(loaded.model.named_parameters())
    for key, values in expected.items():
        assert torch.equal(weights[key], torch.tensor(values())), key
    assert loaded.proof.quantized_weight_share == 1.0
    assert loaded.proof.bits_per_weight == 4.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_unpacked_to_the_compute_type(tiny_llama, q4, dtype):
    loaded = load(tiny_llama, q4, dtype=dtype)
    assert loaded.model.dtype is getattr(torch, dtype)
    assert loaded.proof.parameters["runs"] == f"dequantized to {dtype}"
    assert loaded.proof.bits_per_weight == 4.5


def test_a_mixture_of_quantized_types_is_in_the_format(tiny_llama, tmp_path):
    file = tmp_path / "mixed.gguf"
    gguf_files.write(tiny_llama, file, lambda name: few("Q8_0", "Q4_0", name))
    proof = load(tiny_llama, file).proof
    assert proof.quantized_weight_share == 1.0
    down = 64 * 128 / (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert proof.bits_per_weight == pytest.approx(8.5 * down + 4.5 * (1 - down))
    assert "ggml_type" not in proof.parameters


@pytest.mark.parametrize("kind, bits", [("F16", "16"), ("BF16", "16"), ("F32", "32")])
def test_a_file_that_is_not_quantized_fails(tiny_llama, tmp_path, kind, bits):
    file = tmp_path / "wide.gguf"
    gguf_files.write(tiny_llama, file, kind)
    with pytest.raises(ProofFailed, match=rf"not in gguf: 0\.0% .* {bits}\.00 bits a weight"):
        load(tiny_llama, file)


def test_a_file_with_some_layers_left_wide_fails(tiny_llama, tmp_path):
    file = tmp_path / "partly.gguf"
    gguf_files.write(tiny_llama, file, lambda name: few("F16", "Q4_0", name))
    with pytest.raises(ProofFailed, match=r"not in gguf: 77\.8% .* 2 of 14 weights left out: .*mlp\.down_proj"):
        load(tiny_llama, file)


def test_another_type_than_a_variant_asks_for_fails(tiny_llama, q4):
    with pytest.raises(ProofFailed, match=r"other parameters: ggml_type is 'Q4_0' in .*, asked for 'Q8_0'"):
        load(tiny_llama, q4, replace(FORMAT, parameters={"ggml_type": "Q8_0"}))
    assert load(tiny_llama, q4, replace(FORMAT, parameters={"ggml_type": "Q4_0"})).proof.bits_per_weight == 4.5


def test_fewer_bits_can_be_asked_for(tiny_llama, tmp_path):
    file = tmp_path / "eight.gguf"
    gguf_files.write(tiny_llama, file, "Q8_0")
    narrow = replace(FORMAT, weights=replace(FORMAT.weights, num_bits=4))
    with pytest.raises(ProofFailed, match=r"not in gguf: 0\.0% .* 8\.50 bits a weight"):
        load(tiny_llama, file, narrow)


def test_a_weight_that_is_not_the_files_fails(loaded, tiny_llama):
    """The base model's own weight in one layer: the file still says 4 bits."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    loaded.model.layers[1].mlp.up_proj.weight.data = base.model.layers[1].mlp.up_proj.weight.data
    with pytest.raises(ProofFailed, match=r"88\.9% .* 1 of 14 weights left out: model\.layers\.1\.mlp\.up_proj"):
        proven(loaded)


def test_one_changed_row_of_those_that_are_looked_at_fails(loaded):
    with torch.no_grad():
        loaded.model.layers[0].mlp.up_proj.weight[-1, 3] += 0.5
    with pytest.raises(ProofFailed, match=r"1 of 14 weights left out: model\.layers\.0\.mlp\.up_proj"):
        proven(loaded)


def test_the_base_model_never_passes_for_the_file(tiny_llama):
    from transformers import AutoModelForCausalLM

    with pytest.raises(ProofFailed, match=r"not in gguf: 0\.0% .* 32\.00 bits a weight"):
        proven(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32))


def test_another_layer_in_its_place_fails(loaded):
    loaded.model.layers[0].self_attn.q_proj = torch.nn.Linear(64, 64, bias=False)
    with pytest.raises(ProofFailed, match=r"1 of 14 weights left out: model\.layers\.0\.self_attn\.q_proj"):
        proven(loaded)


def test_modules_that_should_stay_wide_must_be_wide_in_the_file(tiny_llama, q4, tmp_path):
    format = replace(FORMAT, exclude=("down_proj",))
    with pytest.raises(ProofFailed, match=r"excludes .*down_proj.*, but it is stored in 4 bits"):
        load(tiny_llama, q4, format)
    file = tmp_path / "partly.gguf"
    gguf_files.write(tiny_llama, file, lambda name: few("F16", "Q4_0", name))
    assert load(tiny_llama, file, format).proof.bits_per_weight == 4.5


def test_a_folder_with_one_file_will_do(tiny_llama, q4):
    assert load(tiny_llama, q4.parent).proof.bits_per_weight == 4.5


def test_of_several_files_one_must_be_named(tiny_llama, tmp_path, monkeypatch):
    for name in ("a.Q4_0.gguf", "b.Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"has 2 \.gguf files; .*: a\.Q4_0\.gguf, b\.Q8_0\.gguf$"):
        load(tiny_llama, tmp_path)

    import huggingface_hub

    names = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: names)
    with pytest.raises(UsageError, match=r"owner/m-GGUF/m-Q4_K_M\.gguf say: m-Q4_K_M\.gguf, m-Q8_0\.gguf$"):
        load(tiny_llama, "owner/m-GGUF")


def test_the_one_file_of_a_hub_id_is_downloaded(tiny_llama, q4, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: ["only.gguf", "README.md"])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(q4))
    assert load(tiny_llama, "owner/m-GGUF").proof.bits_per_weight == 4.5
    load(tiny_llama, "owner/m-GGUF/deep/other.gguf")
    assert asked == [("owner/m-GGUF", "only.gguf"), ("owner/m-GGUF", "deep/other.gguf")]


@pytest.mark.parametrize(
    "place, said",
    [
        (None, r"loaded from a GGUF file, .* none was given: give the file, or a folder or hub id"),
        ("there/is/no-such.gguf", r"no-such\.gguf: no such file or folder, and the hub does not give it"),
        ("/no/such.gguf", r"no such file or folder; give a \.gguf file"),
        ("nothing", r"no such file or folder; give a \.gguf file"),
    ],
)
def test_a_missing_file_says_what_to_do(tiny_llama, place, said):
    with pytest.raises(UsageError, match=said):
        load(tiny_llama, place)


def test_wrong_files_say_what_to_do(tiny_llama, tmp_path):
    with pytest.raises(UsageError, match=r"has no \.gguf file; give the file"):
        load(tiny_llama, tmp_path)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no such thing at all")
    with pytest.raises(UsageError, match=r"broken\.gguf: no readable GGUF file: .*download or convert it again"):
        load(tiny_llama, broken)
    part = tmp_path / "part.gguf"
    gguf_files.write(tiny_llama, part, "Q4_0", parts=3)
    with pytest.raises(UsageError, match=r"is one of 3 parts, .* llama-gguf-split --merge"):
        load(tiny_llama, part)


def test_a_file_of_another_model_fails(tiny_llama, tiny_gpt2, tmp_path):
    file = tmp_path / "other.gguf"
    gguf_files.write(tiny_gpt2, file, "Q4_0")
    with pytest.raises((ProofFailed, UsageError), match="gguf"):
        load(tiny_llama, file)


def test_a_quantized_file_answers_a_little_otherwise_than_the_base_model(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    file = tmp_path / "eight.gguf"
    gguf_files.write(tiny_llama, file, "Q8_0")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokens = torch.arange(32)[None]
    with torch.inference_mode():
        logits = base(tokens).logits
        difference = (load(tiny_llama, file).model(tokens).logits - logits).abs().max()
    assert 0.0 < difference < 0.1 * logits.abs().max()


def test_the_base_models_config_rules(tiny_llama, q4, tmp_path):
    """A GGUF file lacks what its writer did not know, such as how rotary positions are scaled."""
    import json
    import shutil

    folder = tmp_path / "scaled"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder, q4).model.config.rope_parameters["factor"] == 4.0


def test_no_file_is_made_here(tiny_llama, tmp_path):
    with pytest.raises(Unsupported, match=r"llama-quantize, and the file .*--quant-checkpoints=gguf=FILE"):
        BACKEND.make(Asked(str(tiny_llama), FORMAT, "float32", "cpu"), [], tmp_path, lambda text: None)
