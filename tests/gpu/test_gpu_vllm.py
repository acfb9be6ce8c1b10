"""The engine ``vllm`` on CUDA devices: FP8 on the fly, its KV cache, INT8 checkpoints, and two GPUs together."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from small_models import save_llama
from vllm_files import save_rounded

from pytest_quant.engines.vllm import support

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if not support.installed():
    pytest.skip("needs vLLM", allow_module_level=True)

from pytest_quant.engines.source import ModelSource  # noqa: E402
from pytest_quant.engines.vllm.opening import load  # noqa: E402
from pytest_quant.formats import registry  # noqa: E402
from pytest_quant.hardware.detect import detect  # noqa: E402

ARGUMENTS = {"max_model_len": 2048, "gpu_memory_utilization": 0.3, "enforce_eager": True}


@pytest.fixture(scope="module")
def device():
    return detect()


@pytest.fixture(scope="module")
def windows(smollm2):
    from transformers import AutoTokenizer

    text = "The history of the railway begins with horses on wooden rails. " * 200
    ids = AutoTokenizer.from_pretrained(smollm2)(text, verbose=False)["input_ids"][: 2 * 256]
    return np.array(ids, dtype=np.int64).reshape(2, 256)


@pytest.fixture
def opened(smollm2, device):
    held = []

    def open_(name, checkpoint=None, **engine_args):
        format = registry.get(name)
        found = support.support(format, device)
        if not found.runs:
            pytest.skip(found.reason)
        told = {**ARGUMENTS, **engine_args}
        held.append(load(ModelSource(str(smollm2)), format, "bfloat16", device, checkpoint, told))
        return held[-1]

    yield open_
    for model in held:
        model.close()
        left = subprocess.run(["ps", "-o", "pid=", "-g", str(model.process.pid)], capture_output=True, check=False)
        assert left.stdout.split() == []


def test_fp8_on_the_fly_beside_bf16(opened, windows):
    plain, narrow = opened("bf16"), opened("fp8")
    assert narrow.proof.quantized_weight_share == 1.0
    assert narrow.proof.bits_per_weight < 9
    assert narrow.proof.weight_bytes < plain.proof.weight_bytes
    difference = narrow.token_nll(windows).mean() - plain.token_nll(windows).mean()
    assert 0 < abs(difference) < 0.2
    timer = narrow.timer()
    assert timer.prefill(windows) > 0
    timer.start(windows, 4)
    assert len(timer.steps(4)) == 4


def test_a_kv_cache_in_fp8(opened, windows):
    plain, narrow = opened("bf16"), opened("bf16+kv-fp8")
    assert narrow.proof.kv_cache["bits_per_value"] == 8.0
    assert 2 * narrow.kv_cache_bytes(windows) == plain.kv_cache_bytes(windows)
    assert 0 < abs(narrow.token_nll(windows).mean() - plain.token_nll(windows).mean()) < 0.2


def test_an_int8_checkpoint(opened, windows, smollm2, tmp_path):
    folder = save_rounded(smollm2, tmp_path / "w8a8")
    model = opened("w8a8@compressed-tensors", str(folder))
    assert model.proof.parameters["scheme"] == "CompressedTensorsW8A8Int8"
    assert model.proof.bits_per_weight < 9
    assert model.token_nll(windows).mean() < 6


def test_two_gpus_answer_as_one(windows, device, tmp_path, byte_tokenizer):
    """A tiny model, for SmolLM2's 9 heads cannot be halved."""
    if device.count < 2:
        pytest.skip("needs two CUDA devices")
    folder = save_llama(tmp_path / "tiny", byte_tokenizer, hidden_size=256, num_attention_heads=4, learn=20)
    source, tokens = ModelSource(str(folder)), windows[:, :64] % 200
    losses = []
    for size in (1, 2):
        told = {**ARGUMENTS, "max_model_len": 256, "tensor_parallel_size": size}
        model = load(source, registry.get("bf16"), "bfloat16", device, None, told)
        losses.append(model.token_nll(tokens).mean())
        assert model.proof.quantized_weight_share == 1.0
        model.close()
    assert abs(losses[0] - losses[1]) < 0.05
