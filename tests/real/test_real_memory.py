"""Memory of the real model: the KV cache as predicted, activations that grow, a process that holds what it says."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.real

LAYERS, HEADS, VALUES, FLOAT = 30, 3, 64, 4
PER_TOKEN = 2 * LAYERS * HEADS * VALUES * FLOAT

MEMORY = """
import pytest

@pytest.mark.quant(formats=["nf4"], reference="fp32")
@pytest.mark.memory_budget(max_gb=1)
@pytest.mark.memory_budget(max_gb=1, of="kv_cache", batch_size=1, context=100)
@pytest.mark.memory_budget(max_gb=1, of="kv_cache", batch_size=3, context=333)
@pytest.mark.memory_budget(max_gb=1, of="activations", context=64)
@pytest.mark.memory_budget(max_gb=1, of="activations", context=256)
@pytest.mark.memory_budget(max_gb=1, of="peak", context=256)
def test_memory(quant_model): ...
"""


@pytest.fixture
def measured(real_project):
    real_project.ini(f"quant_model = {real_project.model}")
    real_project.test(MEMORY)
    result, record = real_project.record()
    assert result.ret == 0
    return {
        (one["parameters"]["of"], one["parameters"]["batch_size"], one["parameters"]["context"]): one
        for one in record["measurements"]
    }


def test_memory_in_one_run(measured):
    for batch, context in ((1, 100), (3, 333)):
        found = measured["kv_cache", batch, context]
        assert found["value"] == found["kv_predicted_bytes"] == PER_TOKEN * batch * context
        assert found["kv_bytes_per_token"] == PER_TOKEN
    short, long = measured["activations", 1, 64], measured["activations", 1, 256]
    assert 1.5 * short["value"] < long["value"] < 8 * short["value"]
    assert long["value"] > 2 * 255 * 576 * FLOAT, "what a prediction counts is less than what is taken"
    peak = measured["peak", 1, 256]
    assert peak["value"] == peak["weight_bytes"] + peak["activation_bytes"]
    assert peak["weight_bytes"] == measured["weights", 1, 512]["value"]
    for found in measured.values():
        assert peak["weight_bytes"] < found["process_bytes"] < 8e9
