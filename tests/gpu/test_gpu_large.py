"""On CUDA devices: a model over two of them, a model beside a GPU in host memory and on disk. Ready to run where they
are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
TOKENS = np.random.default_rng(0).integers(1, 40000, (1, 257))
HALVES = {"": 0, **{f"model.layers.{number}": 1 for number in range(15, 30)}, "model.norm": 1}
OFFLOADED = {"": 0, **{f"model.layers.{number}": "cpu" for number in range(5)}, "model.layers.9": "disk"}


def load(folder: Any, name: str, device_map: Any = None) -> Any:
    from pytest_quant.engines import loading
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.formats import registry
    from pytest_quant.hardware import detect
    from pytest_quant.placement import parse

    format = registry.get(name)
    placement = None if device_map is None else parse(device_map)
    backend = registry.backend(format)
    return loading.load(ModelSource(str(folder)), format, backend, "float16", detect(), None, placement)


@two
@pytest.mark.parametrize("name", ["fp16", "nf4", "int8-weight-only", "int4@hqq"])
def test_over_two_devices(smollm2, libraries, name):
    whole, halves = load(smollm2, name), load(smollm2, name, HALVES)
    assert set(halves.places) == {"cuda:0", "cuda:1"}
    assert halves.offload is None
    assert halves.proof.weight_bytes == pytest.approx(whole.proof.weight_bytes, rel=0.001)
    assert set(halves.proof.bytes_by_device) == {"cuda:0", "cuda:1"}
    assert np.allclose(whole.token_nll(TOKENS), halves.token_nll(TOKENS), atol=1e-3)
    assert halves.kv_cache_bytes(TOKENS) == whole.kv_cache_bytes(TOKENS)
    halves.synchronize()
    assert not halves.changed


@two
def test_a_whole_model_on_the_second_device(smollm2, libraries):
    second = load(smollm2, "fp16", {"": 1})
    assert second.places == ("cuda:1",)
    assert np.array_equal(load(smollm2, "fp16").token_nll(TOKENS), second.token_nll(TOKENS))


@two
def test_gates_over_two_devices(real_project):
    real_project.ini(f"quant_model = {real_project.model}", "quant_device_map = balanced")
    real_project.test(
        """
import pytest

@pytest.mark.quant(formats=["nf4"], reference="fp16")
@pytest.mark.perplexity_delta(max=20.0)
@pytest.mark.kl_divergence(max=5.0)
@pytest.mark.throughput_ratio(min=0.01)
@pytest.mark.memory_budget(max_gb=4, of="peak")
@pytest.mark.memory_budget(max_gb=4, of="kv_cache")
def test_all(quant_model): ...
"""
    )
    result, record = real_project.record("--quant-max-windows=4")
    result.assert_outcomes(passed=1)
    assert all(found["verdict"] == "passed" for found in record["measurements"])


def test_beside_the_device(smollm2, libraries):
    whole, parted = load(smollm2, "fp16"), load(smollm2, "fp16", OFFLOADED)
    assert parted.offload is not None
    assert parted.offload.layers == {"cpu": 5, "disk": 1}
    assert parted.places == ("cuda:0",)
    assert np.array_equal(whole.token_nll(TOKENS), parted.token_nll(TOKENS))
    assert parted.proof.weight_bytes == whole.proof.weight_bytes
    assert parted.proof.bytes_by_device["cuda:0"] + parted.offload.total == parted.proof.weight_bytes
    assert not parted.changed


def test_a_word_that_has_to_offload(smollm2, libraries):
    from pytest_quant.placement import parse

    whole = load(smollm2, "fp16")
    limits = parse("auto", {0: whole.proof.weight_bytes * 3 // 4, "cpu": "8GiB"})
    from pytest_quant.engines import loading
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.formats import registry
    from pytest_quant.hardware import detect

    format = registry.get("fp16")
    source, backend = ModelSource(str(smollm2)), registry.backend(format)
    parted = loading.load(source, format, backend, "float16", detect(), None, limits)
    assert parted.offload is not None
    assert np.array_equal(whole.token_nll(TOKENS), parted.token_nll(TOKENS))
