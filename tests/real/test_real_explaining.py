"""Explanations on the real model: a sound format that is too coarse, and a fault planted in one layer or one norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from together import Together

from pytest_quant.engines.source import ModelSource
from pytest_quant.explaining import Explainer
from pytest_quant.formats import registry
from pytest_quant.formats.stamp import stamp
from pytest_quant.gates.gate import Gate
from pytest_quant.hardware import detect, matrix
from pytest_quant.models import Models, check
from pytest_quant.population import Population
from pytest_quant.progress import Quiet
from pytest_quant.quality import Quality
from pytest_quant.report import explanation
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

pytestmark = pytest.mark.real
GATE = Gate("perplexity_delta", (("max", 1.0),))
LAYER, NORM = "model.layers.12.mlp.down_proj", "model.layers.7.input_layernorm"


@pytest.fixture(scope="module")
def models(smollm2) -> Models:
    return Models(detect(), matrix.load("corrected"), Quiet(), lambda spec, format: None)


@pytest.fixture
def explain(smollm2, models, tmp_path, libraries) -> Any:
    """The record of nf4, after a change of it that is undone."""
    spec = ModelSpec(ModelSource(str(smollm2)), reference="fp32")
    settings = Settings(protocol="gptq-256", max_windows=6, cache_dir=tmp_path)
    device, table = detect(), matrix.load("corrected")
    population = Population(settings)
    quality = Quality(settings, device, population, Together(models.get), lambda source: "f" * 64, Quiet())

    def may(spec: ModelSpec, name: str) -> Any:
        return check(spec, registry.get(name), device, table)

    def explained(change: Any = lambda factor, model: None) -> dict[str, Any]:
        handle = models.get(spec, "nf4")
        with torch.inference_mode():
            change(2.0, handle.model)
        handle.loaded._stamp = stamp(handle.model)
        try:
            pair = quality.pair(spec, "nf4", GATE)
            while len(pair.scores) < 6:
                quality.extend(spec, "nf4", pair)
            found = Explainer(settings, device, population, quality, models.get, may).explain(spec, "nf4", GATE)
        finally:
            with torch.inference_mode():
                change(0.5, handle.model)
        assert found is not None
        return found.record()

    return explained


def test_a_sound_format_is_spread_and_no_layer_stands_out(explain):
    record = explain()
    loss, layers = record["loss"], record["layers"]
    assert loss["verdict"] == "spread"
    assert 0.05 < loss["worst_1"] < 0.2
    assert layers["compared"] == 210 + 60 + 3
    assert layers["standing_out"] == []
    assert layers["closest"]["times"] < 2.0
    assert all(0.03 < median < 0.2 for median in layers["medians"].values())
    assert record["next"][0].startswith("pytest-quant scan ")
    assert "it is spread over all tokens" in explanation.lines(record)[0]


def test_one_layers_scale_doubled(explain):
    def double(factor: float, model: Any) -> None:
        state = model.get_submodule(LAYER).weight.quant_state
        nested = getattr(state, "state2", None) if state.nested else None
        if nested is None:
            state.absmax.mul_(factor)
        else:
            nested.absmax.mul_(factor)
            state.offset.mul_(factor)

    layers = explain(double)["layers"]
    (odd,) = layers["standing_out"]
    assert (odd["name"], odd["quantized"]) == (LAYER, True)
    assert odd["error"] == pytest.approx(1.0, abs=0.05)
    assert odd["times"] > 8.0


def test_a_norm_that_is_not_quantized(explain):
    layers = explain(lambda factor, model: model.get_submodule(NORM).weight.mul_(factor))["layers"]
    (odd,) = layers["standing_out"]
    assert (odd["name"], odd["quantized"]) == (NORM, False)
    assert odd["error"] == pytest.approx(1.0, abs=0.01)
