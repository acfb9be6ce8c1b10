"""compressed-tensors on the real model: what a checkpoint weighs before and after its first forward, and its price."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pytest_quant.corpora import protocols, texts
from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import detect

pytestmark = pytest.mark.real

ELIGIBLE = 106_168_320
SCHEMES = {
    "w4a16": ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}, None),
    "w8a8@compressed-tensors": (
        {"num_bits": 8, "type": "int", "strategy": "channel"},
        {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    ),
    "fp8@compressed-tensors": (
        {"num_bits": 8, "type": "float", "strategy": "channel"},
        {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    ),
}


def compress(model_folder, folder, scheme):
    """Round to nearest with compressed-tensors alone."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    told = QuantizationScheme(targets=["Linear"], weights=scheme[0], input_activations=scheme[1])
    config = QuantizationConfig(config_groups={"group_0": told}, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            args, weight = module.quantization_scheme.weights, module.weight.detach()
            parts = weight.reshape(len(weight), -1, args.group_size or weight.shape[1])
            module.weight_scale.data = calculate_qparams(parts.amin(-1), parts.amax(-1), args)[0]
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)


@pytest.fixture(scope="module")
def window(smollm2):
    tokens, longest = loading.open_tokens(ModelSource(str(smollm2)))
    drawn = protocols.draw(texts.load("python-docs"), protocols.parse("gptq-512"), tokens, max_length=longest).drawn
    return np.asarray(drawn[0].pieces[0].tokens)[None]


@pytest.fixture(scope="module")
def reference(smollm2, window):
    format = registry.get("fp32")
    model = loading.load(ModelSource(str(smollm2)), format, registry.backend(format), "float32", detect())
    return float(model.token_nll(window).mean())


@pytest.mark.parametrize(
    "name, bits, packed, lowest, highest",
    [
        ("w4a16", 4.5, 173_110_048, 1.05, 2.5),
        ("w8a8@compressed-tensors", 8.05, 220_177_408, 0.98, 1.2),
        ("fp8@compressed-tensors", 8.05, 220_177_408, 0.98, 1.2),
    ],
)
def test_bytes_before_and_after_the_first_forward_and_the_price(
    smollm2, libraries, tmp_path, window, reference, name, bits, packed, lowest, highest
):
    compress(smollm2, tmp_path / "checkpoint", SCHEMES[name])
    format = registry.get(name)
    place = str(tmp_path / "checkpoint")
    model = loading.load(ModelSource(str(smollm2)), format, registry.backend(format), "float32", detect(), place)
    proof = model.proof
    assert proof.quantized_weight_share == 1.0
    assert proof.bits_per_weight == pytest.approx(bits, abs=0.01)
    assert proof.weight_bytes == pytest.approx(packed, rel=1e-4)
    after = footprint(model.model).total
    assert after > proof.weight_bytes + 3 * ELIGIBLE * 0.95  # the weights take 32 bits each from then on
    ratio = math.exp(float(model.token_nll(window).mean()) - reference)
    assert lowest < ratio < highest
    assert ratio != 1.0
