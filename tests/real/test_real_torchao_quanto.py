"""torchao's and quanto's formats on the real model: true bytes, and how far they are from FP32.

All of them round to nearest. Bands are of the perplexity over that of FP32 on two windows of 512 tokens, around what
was measured (torchao 0.18, optimum-quanto 0.2.7, one CPU): FP32 9.16, int8 9.16 and 9.21, fp8 9.38, w8a8 9.54, nvfp4
weights 11.2, int4 13.5 and 13.7, mxfp4 (weights and activations) 45.
"""

from __future__ import annotations

import math

import pytest

from pytest_quant.corpora import protocols, texts
from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.tokens import Tokens
from pytest_quant.formats import registry
from pytest_quant.formats.registry import backend
from pytest_quant.hardware import detect
from pytest_quant.metrics import pairing

pytestmark = pytest.mark.real

WIDE = 538_060_288
MEASURED = {
    # format: true bytes, bits a weight, least and largest ratio to FP32's perplexity
    "int8-weight-only": (220_332_928, 8.0586, 0.98, 1.02),
    "w8a8": (220_332_928, 8.0586, 1.005, 1.12),
    "int4-unpacked": (227_849_728, 8.625, 1.2, 1.9),
    "fp8-weight-only": (220_177_408, 8.0469, 1.005, 1.08),
    "nvfp4-weight-only": (173_568_328, 4.5348, 1.08, 1.45),
    "mxfp4": (113_617_792, 4.2894, 2.0, 12.0),
    "int8-weight-only@quanto": (220_179_088, 8.0469, 0.98, 1.02),
    "int4@quanto": (174_767_248, 4.625, 1.2, 1.9),
    "fp8-weight-only@quanto": (220_179_088, 8.0469, 1.005, 1.08),
}


def load(folder, name):
    format = registry.get(name)
    return engine.load(ModelSource(str(folder)), format, backend(format), "float32", detect())


def perplexity(model, windows):
    """Of windows that are all scored from their second token on."""
    nll = [float(pairing.score_reference(model, [window], 1)[0].nll.mean(dtype=float)) for window in windows.drawn]
    return math.exp(sum(nll) / len(nll))


@pytest.fixture(scope="module")
def reference(smollm2):
    model = load(smollm2, "fp32")
    windows = protocols.draw(
        texts.load("python-docs"), protocols.parse("gptq-512"), Tokens(model.tokenizer), max_windows=2
    )
    assert [window.scored for window in windows.drawn] == [511, 511]
    return windows, perplexity(model, windows)


@pytest.fixture(scope="module")
def found():
    return {}


@pytest.mark.parametrize("name", MEASURED)
def test_true_bytes_and_perplexity(smollm2, reference, found, name):
    total, bits, least, largest = MEASURED[name]
    windows, of_fp32 = reference
    model = load(smollm2, name)
    proof = model.proof
    assert proof.quantized_weight_share == 1.0
    assert proof.bits_per_weight == pytest.approx(bits, abs=1e-3)
    assert proof.weight_bytes == total
    reported = model.model.get_memory_footprint()
    assert reported == pytest.approx(WIDE / 2 if name == "mxfp4" else WIDE, rel=1e-5), "what transformers reports"
    found[name] = perplexity(model, windows)
    assert least < found[name] / of_fp32 < largest
    if {"fp8-weight-only", "fp8-weight-only@quanto"} <= found.keys():
        ratio = found["fp8-weight-only"] / found["fp8-weight-only@quanto"]
        assert ratio == pytest.approx(1.0, rel=1e-3), "two libraries that round rows to e4m3 in the same way"


def test_quantos_groups_are_what_divides_the_inputs(smollm2):
    from transformers import AutoConfig

    model = load(smollm2, "int4@quanto")
    groups = {
        name.rpartition(".")[2]: backend(registry.get("int4@quanto")).stored(module).parameters["group_size"]
        for name, module in model.model.named_modules()
        if "layers.0." in name and name.endswith("_proj")
    }
    config = AutoConfig.from_pretrained(smollm2)
    assert (config.hidden_size, config.intermediate_size) == (576, 1536)
    assert groups.pop("down_proj") == 128
    assert set(groups.values()) == {96}
