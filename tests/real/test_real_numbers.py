"""Numbers of the real model against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_quant.corpora import protocols, texts
from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.backend import backend
from pytest_quant.hardware import detect
from pytest_quant.metrics.perplexity import score

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def load(smollm2):
    held = {}

    def loaded(name: str) -> engine.TransformersModel:
        if name not in held:
            format = registry.get(name)
            held[name] = engine.load(ModelSource(str(smollm2)), format, backend(format), "float32", detect())
        return held[name]

    return loaded


@pytest.fixture(scope="module")
def stream(load):
    return engine.tokenize(load("fp32").tokenizer, texts.load("python-docs").text)


@pytest.mark.parametrize("name", ["gptq-256", "hf-strided-256-96"])
def test_perplexity_equals_a_plain_loop_over_the_model(load, stream, name):
    import torch

    model = load("fp32")
    part = stream[:1000]
    windows = protocols.cut(part, protocols.parse(name), corpus={"name": "part", "sha256": ""})
    measured = score(model, windows, lambda done, there: None).perplexity

    tokens = torch.tensor(part)
    total, count = 0.0, 0
    length, stride = (256, 256) if name.startswith("gptq") else (256, 96)
    scored_to = 1
    with torch.inference_mode():
        for begin in range(0, len(tokens), stride):
            end = min(begin + length, len(tokens))
            if name.startswith("gptq") and end - begin < length:
                break
            first = begin + 1 if name.startswith("gptq") else max(scored_to, begin + 1)
            labels = tokens[begin:end].clone()
            labels[: first - begin] = -100
            loss = model.model(tokens[begin:end][None], labels=labels[None]).loss
            total += float(loss) * (end - first)
            count += end - first
            scored_to = end
            if end == len(tokens):
                break
    assert measured == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.mark.parametrize(
    "name, total",
    [("fp32", 538_060_288), ("int8", 220_177_408), ("nf4", 168_385_528), ("fp4", 168_385_528)],
)
def test_true_bytes(load, name, total):
    proof = load(name).proof
    assert proof.weight_bytes == total
    assert sum(proof.bytes_by_dtype.values()) == total
    assert proof.quantized_weight_share == 1.0


def test_scoring_again_gives_the_same_bits(load, stream):
    for name in ("fp32", "int8", "nf4"):
        window = stream[None, :256]
        assert np.array_equal(load(name).token_nll(window), load(name).token_nll(window)), name


def test_formats_are_as_far_from_the_reference_as_they_are_known_to_be(load, stream):
    """The order of the formats on any text: int8 is close, 4 bits are farther, fp4 farther than nf4."""
    windows = protocols.cut(stream, protocols.parse("gptq-256"), corpus={"name": "c", "sha256": ""}, max_windows=6)
    ppl = {name: score(load(name), windows, lambda a, b: None).perplexity for name in ("fp32", "int8", "nf4", "fp4")}
    assert ppl["fp32"] < ppl["int8"] < ppl["nf4"] < ppl["fp4"]
    assert ppl["int8"] / ppl["fp32"] < 1.05


def test_the_kv_cache_takes_what_its_shape_says(load, stream):
    config = load("fp32").model.config
    prompt = stream[None, :100]
    predicted = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 100 * 4
    assert load("fp32").kv_cache_bytes(prompt) == predicted


def test_generating(load):
    assert "Paris" in load("fp32").generate("The capital of France is")
    assert "Paris" in load("int8").generate("The capital of France is")
