"""GPTQ of a real model's weights: what is made and read back is the model that it was made from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.backends.gptqmodel import BACKEND
from pytest_quant.hardware import detect

pytestmark = pytest.mark.real

LAYERS = 2


@pytest.fixture(scope="module")
def beginning(smollm2, tmp_path_factory):
    """The embeddings, the first layers and the head of the real model: quantizing all of it takes minutes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.config.layer_types = None
    folder = tmp_path_factory.mktemp("models") / "beginning"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


def test_the_first_layers_quantized_with_real_text_beat_rounding_to_nearest(beginning, tmp_path):
    from pytest_quant.corpora import texts

    source, format = ModelSource(str(beginning)), registry.get("gptq")
    text = "\n".join(texts.python_docs())[:200_000]
    stream = np.asarray(_ids(beginning, text), dtype=np.int64)
    windows = [stream[start : start + 512] for start in range(0, 8 * 512, 512)]
    told = []
    recipe = BACKEND.make(loading.ask(source, format, "float32", detect()), windows[:6], tmp_path, told.append)
    assert told == [f"layer {layer}/{LAYERS}" for layer in range(1, LAYERS + 1)]
    assert recipe["group_size"] == 64, "128 does not divide 576"
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["group_size"] == 64
    made = loading.load(source, format, BACKEND, "float32", detect(), str(tmp_path))
    assert made.proof.quantized_weight_share == 1.0
    assert made.proof.parameters == {"method": "gptq", "group_size": 64, "sym": True, "desc_act": False}
    # 4 bits, a scale of 16 and a zero point of 4 bits for each 64, and 32 bits for each input.
    assert made.proof.bits_per_weight == pytest.approx(4 + 20 / 64 + 0.05, abs=0.03)
    fp32 = loading.load(source, registry.get("fp32"), registry.backend(registry.get("fp32")), "float32", detect())
    assert _error(made.model, fp32.model, windows[6:]) < 0.9 * _error(_rounded(beginning), fp32.model, windows[6:])


def _ids(folder, text):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


def _rounded(folder):
    """The same rounded to nearest, symmetric, in groups of 64 and 4 bits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            groups = layer.weight.data.unflatten(1, (-1, 64))
            scale = groups.abs().amax(-1, keepdim=True) / 7.5
            layer.weight.data = ((groups / scale).round().clamp(-8, 7) * scale).flatten(1)
    return model


def _error(model, reference, windows):
    """Mean squared error of the last hidden states."""
    batch = torch.as_tensor(np.stack(windows))
    with torch.inference_mode():
        found, wanted = (each.model(batch, use_cache=False).last_hidden_state for each in (model, reference))
    return (found - wanted).pow(2).mean().item()
