"""examples/granularity.py on tiny models: what it rounds, what it leaves out, and few windows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.rounding import Rounding, rounded
from pytest_quant.hardware import detect

pytestmark = pytest.mark.usefixtures("libraries")
SENTENCE = "The quick brown fox jumps over the lazy dog. "
INT8 = Rounding("int8", "channel")


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    path = Path(__file__).parents[2] / "examples" / "granularity.py"
    spec = importlib.util.spec_from_file_location("granularity_on_tiny_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def study(example, monkeypatch, tmp_path, capsys):
    """Two variants of a model on a text of a few windows."""
    (tmp_path / "corpus.txt").write_text(SENTENCE * 12)
    monkeypatch.setattr(example, "VARIANTS", (INT8, Rounding("int8", "tensor")))
    claim = example.Claim("one scale a tensor costs more", "int8-tensor", "int8-channel", -1e9, 1e9)
    monkeypatch.setattr(example, "CLAIMS", (claim,))

    def run(model: Path, *words: str) -> tuple[int, str, str]:
        code = example.main([str(model), "--corpus", str(tmp_path / "corpus.txt"), "--protocol", "gptq-32", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def opened(folder: Path) -> Any:
    format = registry.get("fp32")
    return loading.load(ModelSource(str(folder)), format, registry.backend(format), "fp32", detect())


@pytest.fixture
def mixtral(tmp_path, byte_tokenizer) -> Path:
    """Two blocks with fused experts, which are no linear layers."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=256, **sizes, num_key_value_heads=1, num_local_experts=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "mixtral")
    byte_tokenizer.save_pretrained(tmp_path / "mixtral")
    return tmp_path / "mixtral"


def test_gpt2s_layers_are_rounded_along_their_inputs(example, tiny_gpt2):
    loaded = opened(tiny_gpt2)
    layers = example.Layers(loaded, INT8)
    twins = layers.twins()
    assert {name.rpartition(".")[2] for name in twins} == {"c_attn", "c_proj", "c_fc"}
    for name, twin in twins.items():
        own = loaded.model.get_submodule(name).weight.detach()
        assert torch.equal(twin.weight, rounded(own.T.contiguous(), INT8).T)
    assert layers.sizes == ()
    counts = [module.weight.shape for module in (loaded.model.get_submodule(name) for name in twins)]
    weights = sum(a * b for a, b in counts)
    assert layers.bits == pytest.approx(8 + sum(16 * outputs for _, outputs in counts) / weights)


def test_matrices_that_are_left_out_are_named(study, mixtral, tmp_path):
    code, out, _ = study(mixtral, "--windows", "2", "--json", str(tmp_path / "found.json"))
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("left out, ")]
    assert "model.layers.0.mlp.experts." in line
    assert line.endswith(" more")
    assert len(json.loads((tmp_path / "found.json").read_text())["left_out"]) > 3


@pytest.mark.parametrize("count", ["1", "2"])
def test_few_windows_are_said_and_have_no_interval(study, tiny_llama, count):
    code, out, _ = study(tiny_llama, "--windows", count)
    assert code == 0
    assert "fewer than 8 windows: intervals are wide, or there is none" in out
    assert "inf" not in out.replace("infinite", "")
    assert ", no interval" in out
    assert "one scale a tensor costs more: undecided: no interval from so few windows; " in out
    assert "left out" not in out


def test_all_windows_of_a_short_text_need_no_interval(study, tiny_llama):
    code, out, _ = study(tiny_llama, "--windows", "99")
    assert code == 0
    assert "interval" not in out
    assert "one scale a tensor costs more: held; " in out


@pytest.mark.parametrize("place", ["no/such/folder/found.json", "."])
def test_a_place_that_cannot_be_is_known_before_a_model_is_opened(example, capsys, place):
    assert example.main(["no/such-model", "--json", place]) == 2
    assert capsys.readouterr().err.startswith(f"granularity.py: --json={place}: ")


def test_an_interrupt_is_one_line(example, study, tiny_llama, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "study", stop)
    code, out, err = study(tiny_llama)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "granularity.py: interrupted"
