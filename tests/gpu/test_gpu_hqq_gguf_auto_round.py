"""HQQ, GGUF and auto-round on a CUDA device: the kernels that are chosen there prove themselves too."""

from __future__ import annotations

import gguf_files
import numpy as np
import pytest

from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked
from pytest_quant.formats.own import variant
from pytest_quant.hardware import detect

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


def load(folder, format, dtype, place=None):
    loaded = engine.load(ModelSource(str(folder)), format, registry.backend(format), dtype, detect(), place)
    tokens = torch.arange(100, 164, device="cuda:0")[None]
    with torch.inference_mode():
        logits = loaded.model(tokens).logits
    assert logits.device.type == "cuda"
    assert torch.isfinite(logits).all()
    assert loaded.proof.quantized_weight_share == 1.0
    return loaded.proof


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hqq(smollm2, dtype):
    pytest.importorskip("hqq")
    proof = load(smollm2, registry.get("int4@hqq"), dtype)
    assert proof.bits_per_weight == 4.5
    assert proof.kernels == {"HQQLinear": 210}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gguf(smollm2, tmp_path, dtype):
    pytest.importorskip("gguf")
    gguf_files.write(smollm2, tmp_path / "model.gguf", "Q8_0")
    proof = load(smollm2, registry.get("gguf"), dtype, str(tmp_path / "model.gguf"))
    assert proof.bits_per_weight == 8.5
    assert proof.parameters["runs"] == f"dequantized to {dtype}"


def test_auto_round(smollm2, tmp_path):
    pytest.importorskip("auto_round")
    format = variant("int4@auto-round", "ar", group_size=64, iters=2)
    windows = list(np.random.default_rng(0).integers(0, 40_000, (8, 128)))
    registry.backend(format).make(Asked(str(smollm2), format, "float16", "cuda:0"), windows, tmp_path, print)
    proof = load(smollm2, format, "float16", str(tmp_path))
    assert 4.2 < proof.bits_per_weight < 5.0
    assert proof.parameters == {"group_size": 64, "symmetric": True}
