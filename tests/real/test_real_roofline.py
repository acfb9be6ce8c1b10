"""Predictions and bounds of the real model against its bytes and times."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_quant.engines import loading, probe
from pytest_quant.engines.shape import read
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import detect
from pytest_quant.roofline import amounts, bound
from pytest_quant.roofline.shape import KVLayer

pytestmark = pytest.mark.real
STEPS, PROMPT = 12, 64


@pytest.fixture(scope="module")
def shape(smollm2):
    return read(str(smollm2))


def load(smollm2, name: str, compute: str = "float32"):
    format = registry.get(name)
    return loading.load(ModelSource(str(smollm2)), format, registry.backend(format), compute, detect())


@pytest.fixture(scope="module")
def fp32(smollm2):
    return load(smollm2, "fp32")


def test_the_shape(shape, fp32):
    assert shape.parameters == sum(parameter.numel() for parameter in fp32.model.parameters()) == 134_515_008
    assert (shape.quantizable, shape.head, shape.table) == (106_168_320, 28_311_552, 0)
    assert shape.kv == (KVLayer(values=2 * 3 * 64, width=576),) * 30


@pytest.mark.parametrize(("batch", "context"), [(1, 100), (2, 100), (2, 37)])
def test_kv_bytes_are_those_predicted(shape, fp32, batch, context):
    prompt = np.ones((batch, context), dtype=np.int64)
    assert fp32.kv_cache_bytes(prompt) == amounts.kv_bytes(shape, batch, context, 32)


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("int8", "float32"),
        ("w8a8", "float32"),
        ("int4-unpacked", "float32"),
        ("int4-unpacked", "bfloat16"),
        ("int4@quanto", "float32"),
    ],
)
def test_weight_bytes_are_within_one_percent(shape, smollm2, name, compute):
    loaded = load(smollm2, name, compute)
    predicted = amounts.weight_bytes(shape, registry.get(name), 32 if compute == "float32" else 16)
    assert predicted == pytest.approx(loaded.proof.weight_bytes, rel=0.01)


def decode(model, shape) -> list[float]:
    """Seconds of each of a few steps after a prompt."""
    import time

    import torch

    seconds = []
    with torch.inference_mode():
        out = model.model(torch.ones((1, PROMPT), dtype=torch.long), use_cache=True)
        for _ in range(STEPS):
            token = out.logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            out = model.model(token, past_key_values=out.past_key_values, use_cache=True)
            seconds.append(time.perf_counter() - start)
    assert footprint(out.past_key_values).total == amounts.kv_bytes(shape, 1, PROMPT + STEPS, 32)
    return seconds


@pytest.mark.parametrize("name", ["fp32", "nf4"])
def test_no_step_is_faster_than_its_bound(shape, smollm2, fp32, name):
    model = fp32 if name == "fp32" else load(smollm2, name)
    stored = model.proof.held_bytes
    assert amounts.weight_bytes(shape, registry.get(name), 32) == pytest.approx(stored, rel=0.01)
    before = probe.measure(model.device, stored, ("fp32",))
    seconds = decode(model, shape)
    rates = max(before, probe.measure(model.device, stored, ("fp32",)), key=lambda rates: rates.bandwidth)
    found = bound.decode(
        weights=amounts.read_bytes(shape, stored, 32, 1),
        kv=amounts.kv_bytes(shape, 1, PROMPT, 32) or 0,
        operations=amounts.operations(shape, 1, PROMPT),
        rates=rates,
        numeric="fp32",
    )
    assert found is not None
    assert found.regime == "bandwidth"
    print(f"{name}: {found.arithmetic()}, fastest step {bound.milliseconds(min(seconds))}")
    assert 0.0 < found.share(min(seconds)) < 1.05
