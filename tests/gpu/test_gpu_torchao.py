"""On a CUDA device: torchao's and quanto's formats prove themselves, and multiply in what they say. Ready to run where
one is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_models import save_llama

from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.registry import backend
from pytest_quant.hardware import detect

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

CAPABILITY = torch.cuda.get_device_capability(0)
PRODUCTS = {
    "int8-weight-only": ((7, 0), "mm(float16, float16)"),
    "w8a8": ((7, 5), "(int8, int8)"),
    "int4": ((8, 0), "_weight_int4pack_mm("),
    "int4-unpacked": ((7, 0), "mm(float16, float16)"),
    "fp8-weight-only": ((7, 0), "mm(float16, float16)"),
    "fp8": ((8, 9), "f8"),
    "nvfp4-weight-only": ((8, 0), "mm(bfloat16, bfloat16)"),
    "mxfp4": ((8, 0), "mm("),
    "nvfp4": ((10, 0), "_scaled_mm("),
}
"""The lowest compute capability, and a part of what a prompt's product must be called."""
QUANTO = ["int8-weight-only@quanto", "int4@quanto", "fp8-weight-only@quanto"]


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory, byte_tokenizer):
    """Layers of 1024 inputs, which tiles of int4 fill without padding."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 4}
    return save_llama(tmp_path_factory.mktemp("models") / "wide-llama", byte_tokenizer, **sizes)


@pytest.fixture(scope="module")
def load(wide_llama):
    def loaded(name):
        format = registry.get(name)
        return engine.load(ModelSource(str(wide_llama)), format, backend(format), "float16", detect())

    return loaded


@pytest.mark.parametrize("name", PRODUCTS)
def test_torchao_proves_itself_and_multiplies_in_what_it_says(load, name):
    lowest, product = PRODUCTS[name]
    if lowest > CAPABILITY:
        pytest.skip(f"{name} needs compute capability {lowest}, this is {CAPABILITY}")
    model = load(name)
    proof, format = model.proof, registry.get(name)
    assert proof.quantized_weight_share == 1.0
    assert proof.bits_per_weight == pytest.approx(format.bits_per_weight, rel=0.05)
    assert product in proof.parameters["product"], proof.parameters
    nll = model.token_nll(np.arange(64, dtype=np.int64)[None])
    assert math.isfinite(nll.mean())
    assert not model.changed


@pytest.mark.parametrize("name", QUANTO)
def test_quanto_proves_itself(load, name):
    model = load(name)
    assert model.proof.quantized_weight_share == 1.0
    assert model.proof.bits_per_weight == pytest.approx(registry.get(name).bits_per_weight, rel=0.05)
    assert math.isfinite(model.token_nll(np.arange(64, dtype=np.int64)[None]).mean())


def test_what_decoding_multiplies_is_told_where_it_differs(load):
    """``_int_mm`` refuses 16 rows and fewer, and torchao then multiplies in FP32 without a word."""
    if CAPABILITY < (7, 5):
        pytest.skip("needs int8 products")
    from pytest_quant.formats.products import products

    model = load("w8a8")
    weight = model.model.model.layers[0].mlp.up_proj.weight
    told = model.proof.parameters
    assert told.get("product_of_one_row", told["product"]) == products(weight, 1)


def test_each_format_is_nearer_to_the_reference_than_noise(load):
    """Activations and weights of each format that runs here, against FP16: the answers stay recognizable."""
    tokens = np.arange(64, dtype=np.int64)
    reference = load("fp16").probe_logits(tokens)
    for name, (lowest, _) in PRODUCTS.items():
        if lowest <= CAPABILITY:
            found = load(name).probe_logits(tokens)
            error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
            assert 0.0 < error < 0.6, (name, error)
