"""KV cache formats of the real model: what they cost in perplexity, and their true bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_quant.corpora import protocols, texts
from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.timing import Runner
from pytest_quant.engines.tokens import Tokens
from pytest_quant.engines.transformers import TransformersModel
from pytest_quant.formats import registry
from pytest_quant.hardware import detect
from pytest_quant.metrics import pairing

pytestmark = pytest.mark.real

LAYERS, HEADS, VALUES = 30, 3, 64
PER_TOKEN = 2 * LAYERS * HEADS * VALUES


@pytest.fixture(scope="module")
def plain(smollm2):
    format = registry.get("fp32")
    return loading.load(ModelSource(str(smollm2)), format, registry.backend(format), "float32", detect())


@pytest.fixture(scope="module")
def load(plain):
    """The same weights with another cache."""

    def loaded(name: str) -> TransformersModel:
        return TransformersModel(plain.model, plain.tokenizer, plain.device, plain.proof, registry.get(name))

    return loaded


@pytest.fixture(scope="module")
def windows(plain):
    tokens = Tokens(plain.tokenizer)
    return protocols.draw(texts.load("python-docs"), protocols.parse("gptq-512"), tokens, max_windows=2).drawn


def nll(model, windows) -> float:
    found = [pairing.score_reference(model, [window], 1)[0].nll.mean(dtype=float) for window in windows]
    return float(np.mean(found))


def test_perplexity_grows_as_bits_shrink(plain, load, windows):
    reference = nll(plain, windows)
    found = {
        name: nll(load(f"fp32+{name}"), windows) - reference for name in ("kv-int4", "kv-int2", "kv-int8", "kv-fp8")
    }
    assert 0.0 < found["kv-int4"] < 0.1
    assert found["kv-int2"] > 0.5
    assert abs(found["kv-int8"]) < 0.005
    assert abs(found["kv-fp8"]) < 0.05


@pytest.mark.parametrize(
    "name, bits", [("kv-int4", 5.0), ("kv-int4-g32", 6.0), ("kv-int2", 3.0), ("kv-int8@hqq", 9.0), ("kv-fp8", 8.0)]
)
def test_true_bytes(load, windows, name, bits):
    model = load(f"fp32+{name}")
    prompt = windows[0].pieces[0].tokens[None, :511]
    residual = 0 if name == "kv-fp8" else 127
    scales = 2 * LAYERS * 4 if name == "kv-fp8" else 0
    assert model.kv_cache_bytes(prompt) == (511 - residual) * PER_TOKEN * bits / 8 + residual * PER_TOKEN * 4 + scales
    assert model.proof.figures()["kv_cache"]["bits_per_value"] == pytest.approx(bits, abs=0.01)


def test_steps_without_quantization_give_what_one_forward_gives(plain, load, windows, monkeypatch):
    from transformers import DynamicCache

    from pytest_quant.formats.kv_cache import KVCache

    stepped = load("fp32+kv-int4")
    monkeypatch.setattr(KVCache, "new", lambda self, config: DynamicCache(config=config))
    tokens = windows[0].pieces[0].tokens[None]
    assert np.abs(stepped.token_nll(tokens) - plain.token_nll(tokens)).max() < 1e-4


def test_generating(load):
    assert "Paris" in load("fp32+kv-int4").generate("The capital of France is")
    runner = Runner(load("fp32+kv-int8"))
    runner.start(np.arange(1, 20)[None], 2)
    assert all(math.isfinite(seconds) for seconds in runner.steps(2))
