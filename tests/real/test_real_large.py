"""The real model with layers on disk: bit-identical, and what it takes is where it is said to be."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.hardware import detect
from pytest_quant.placement import parse

pytestmark = pytest.mark.real

MAP = {"": "cpu", **{f"model.layers.{number}": "disk" for number in range(0, 28, 4)}}


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_seven_of_thirty_layers_on_disk(smollm2, libraries, name):
    format, source, device = registry.get(name), ModelSource(str(smollm2)), detect()
    if device.kind != "cpu":
        pytest.skip("a map of the CPU")
    whole, parted = (
        loading.load(source, format, registry.backend(format), "float32", device, None, placement)
        for placement in (None, parse(MAP))
    )
    tokens = np.random.default_rng(0).integers(1, whole.vocabulary, (1, 257))
    assert np.array_equal(whole.token_nll(tokens), parted.token_nll(tokens))
    assert str(parted.offload).startswith("7 of 30 layers offloaded to disk (")
    layer = 576 * 576 * 2 + 2 * 192 * 576 + 3 * 576 * 1536 + 2 * 576
    size = 4 if name == "fp32" else 2
    assert parted.proof.offloaded_bytes == 7 * layer * size
    assert parted.proof.weight_bytes == whole.proof.weight_bytes
    assert parted.proof.bits_per_weight == whole.proof.bits_per_weight == 8.0 * size
    assert not parted.changed
