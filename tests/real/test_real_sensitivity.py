"""Scans of a real model: a planted fault is named first, and a mix that is proposed for a budget holds."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry, variant
from pytest_quant.gates.gate import Gate
from pytest_quant.metrics.keeping import Budget
from pytest_quant.progress import Quiet
from pytest_quant.report import sensitivity as report
from pytest_quant.sensitivity import Sensitivity
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("libraries")]


@pytest.fixture(scope="module")
def kept_models() -> dict[Any, Any]:
    return {}


@pytest.fixture
def session(kept_models, tmp_path) -> Session:
    made = Session(Settings(protocol="gptq-256", max_windows=1, cache_dir=tmp_path), Quiet())
    made.models._held = kept_models
    return made


def scanner(session: Session) -> Sensitivity:
    return Sensitivity(session.settings, session.device, session.population, session.model, Quiet())


def test_a_mix_keeps_a_budget_that_the_format_misses(session, smollm2):
    spec = ModelSpec(ModelSource(str(smollm2)), reference="fp32")
    sensitivity = scanner(session)
    found = sensitivity.scan(spec, "nf4", of="block", windows=1)
    assert len(found.rows) == 30
    assert found.reused
    limit = 0.6 * found.whole.nats.value
    assert limit > 0.05
    kept = sensitivity.keep(spec, "nf4", found, Budget(max_nats=limit))
    assert kept.holds
    assert 0 < len(kept.rows) < 30
    assert kept.nats.value <= limit < found.whole.nats.value
    exclude = report.patterns(found, kept)
    registry.add(variant("nf4", "nf4-scanned", exclude=exclude))
    try:
        measured = session.measure(spec, "nf4-scanned", Gate("perplexity_delta"))
    finally:
        registry.forget(["nf4-scanned"])
    assert measured.quantities["ln_ratio"].value == pytest.approx(kept.nats.value, abs=1e-4)


def test_a_planted_fault_is_named_first(session, smollm2):
    import torch

    spec = ModelSpec(ModelSource(str(smollm2)), reference="fp32")
    quantized = session.model(spec, "int8-weight-only").model
    layer = quantized.model.layers[17].mlp.gate_proj
    layer.weight = torch.nn.Parameter(layer.weight.dequantize() * 1.5, requires_grad=False)
    found = scanner(session).scan(spec, "int8-weight-only", windows=1, only=["gate_proj"])
    assert len(found.rows) == 30
    assert found.rows[0].layer.name == "model.layers.17.mlp.gate_proj"
    assert found.rows[0].kl.value > 3 * found.rows[1].kl.value
    assert not session.model(spec, "fp32").loaded.changed
