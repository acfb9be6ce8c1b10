"""Scans of a tiny model in real formats, and a mix against the same loaded as a variant."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotFinite, ProofFailed, UsageError
from pytest_quant.formats import registry, variant
from pytest_quant.formats.rounding import Rounding
from pytest_quant.gates.gate import Gate
from pytest_quant.metrics import sensitivity as metric
from pytest_quant.metrics.sensitivity import Budget
from pytest_quant.progress import Quiet
from pytest_quant.report import sensitivity as report
from pytest_quant.sensitivity import Sensitivity
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

SENTENCE = "The quick brown fox jumps over the lazy dog. "

pytestmark = pytest.mark.usefixtures("libraries")


class Run:
    def __init__(self, model: Any, folder: Any) -> None:
        (folder / "corpus.txt").write_text(SENTENCE * 12)
        settings = Settings(
            corpus=str(folder / "corpus.txt"), protocol="gptq-32", cache_dir=folder / "cache", max_windows=4
        )
        self.spec = ModelSpec(ModelSource(str(model)), reference="fp32")
        self.session = Session(settings, Quiet())
        session = self.session
        self.sensitivity = Sensitivity(settings, session.device, session.population, session.model, Quiet())

    def scan(self, asked: Any, **how: Any) -> Any:
        return self.sensitivity.scan(self.spec, asked, **{"windows": 4, **how})

    def model(self, name: str) -> Any:
        return self.session.model(self.spec, name).model


@pytest.fixture
def run(tiny_llama, tmp_path) -> Run:
    return Run(tiny_llama, tmp_path)


@pytest.fixture(params=["nf4", "int8", "int8-weight-only", "int4@quanto"])
def format_name(request) -> str:
    return str(request.param)


def test_a_format_layer_by_layer(run, format_name):
    found = run.scan(format_name)
    assert len(found.rows) == 14
    assert found.reused
    assert found.sample.used == found.sample.total == 4
    assert [row.kl.value for row in found.rows] == sorted((row.kl.value for row in found.rows), reverse=True)
    assert all(row.kl.value > 0 and row.layer.bytes_saved > 0 for row in found.rows)
    assert all(row.nats.low == row.nats.value == row.nats.high for row in found.rows)
    measured = run.session.measure(run.spec, format_name, Gate("perplexity_delta"))
    assert found.whole.nats.value == pytest.approx(measured.quantities["ln_ratio"].value, abs=1e-5)
    assert found.sample.reference_perplexity == pytest.approx(measured.figures["reference_value"], rel=1e-5)
    divergence = run.session.measure(run.spec, format_name, Gate("kl_divergence"))
    assert found.whole.kl.value == pytest.approx(divergence.value, abs=1e-5)
    json.dumps(found.record(), allow_nan=False)


def test_a_planted_fault_is_named_first(run):
    import torch

    quantized = run.model("int8-weight-only")
    layer = quantized.model.layers[1].mlp.up_proj
    broken = layer.weight.dequantize()
    broken[3:40] = 0.0
    layer.weight = torch.nn.Parameter(broken, requires_grad=False)
    found = run.scan("int8-weight-only")
    assert found.rows[0].layer.name == "model.layers.1.mlp.up_proj"
    assert found.rows[0].kl.value > 3 * found.rows[1].kl.value
    by_block = run.scan("int8-weight-only", of="block")
    assert [row.layer.name for row in by_block.rows] == ["model.layers.1", "model.layers.0"]
    assert not run.session.model(run.spec, "fp32").loaded.changed


def test_a_rounding_layer_by_layer(run):
    found = run.scan(Rounding("int4", "tensor"))
    kinds = {row.layer.kind for row in found.rows}
    assert kinds == {"attention", "mlp", "embedding", "head"}
    assert len(found.parts) == 14
    assert found.format == "int4-tensor"
    saved = next(row.layer for row in found.rows if row.layer.name == "model.layers.0.mlp.up_proj")
    assert saved.bytes_saved == pytest.approx(saved.weights * 3.5)
    assert not run.session.model(run.spec, "fp32").loaded.changed


def test_a_mix_is_what_the_variant_is(run, monkeypatch):
    """The verified figure of a mix is that of the model which is loaded with these modules excluded."""
    found = run.scan("nf4")
    low = min(found.whole.nats.value, 0.0) - 1.0
    monkeypatch.setattr(metric, "first_guess", lambda *_: 5)
    probe = run.sensitivity.keep(run.spec, "nf4", found, Budget(max_nats=low))
    assert not probe.holds  # no mix is that much better than the reference
    assert probe.nats.value == pytest.approx(0.0, abs=1e-5)
    nats = dict(probe.tried)[5]
    names = [row.layer.name for row in found.rows[:5]]
    registry.add(variant("nf4", "nf4-mixed", exclude=names))
    try:
        measured = run.session.measure(run.spec, "nf4-mixed", Gate("perplexity_delta"))
    finally:
        registry.forget(["nf4-mixed"])
    assert measured.quantities["ln_ratio"].value == pytest.approx(nats, abs=1e-5)


def test_a_budget_between_is_kept_by_some(run):
    how = Rounding("int2", "tensor")
    found = run.scan(how)
    limit = found.whole.nats.value / 2
    assert limit > 0
    kept = run.sensitivity.keep(run.spec, how, found, Budget(max_nats=limit))
    assert kept.holds
    assert 0 < len(kept.rows) < 14
    assert kept.nats.value <= limit
    assert dict(kept.tried)[len(kept.rows) - 1] > limit
    assert not run.session.model(run.spec, "fp32").loaded.changed
    text = report.render_kept(found, kept)
    assert all(row.layer.name in text for row in kept.rows)


def test_a_scan_may_stop_when_its_question_is_answered(run, tmp_path):
    settings = Settings(corpus=str(tmp_path / "corpus.txt"), protocol="gptq-16", cache_dir=tmp_path / "cache")
    session = run.session
    from pytest_quant.population import Population

    many = Sensitivity(settings, session.device, Population(settings), session.model, Quiet())
    seen = []

    def enough(scan: Any) -> bool:
        seen.append(scan.sample.used)
        return scan.sample.used == 10

    found = many.scan(run.spec, "nf4", windows=16, enough=enough)
    assert seen == [8, 9, 10]
    assert (found.sample.used, found.sample.total) == (10, 16)
    quantity = metric.answer(found).quantities["kl"]
    assert quantity.low < quantity.value < quantity.high


def test_nan_in_a_layer_is_no_answer(run):
    import torch

    quantized = run.model("nf4")
    bias = torch.full((quantized.model.layers[0].mlp.up_proj.out_features,), torch.nan)
    quantized.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(bias, requires_grad=False)
    found = run.scan("nf4", only=["up_proj"])
    assert found.rows[0].layer.name == "model.layers.0.mlp.up_proj"
    with pytest.raises(NotFinite, match=r"model\.layers\.0\.mlp\.up_proj"):
        metric.answer(found)
    assert "NaN" in report.render(found, 5)
    json.dumps(found.record(), allow_nan=False)


def test_a_format_that_was_not_applied_proves_nothing(run):
    quantized, reference = run.model("int8-weight-only"), run.model("fp32")
    for name, module in reference.named_modules():
        if name.endswith("_proj"):
            quantized.get_submodule(name).weight = module.weight
    import dataclasses

    handle = run.session.model(run.spec, "int8-weight-only")
    handle.loaded.proof = dataclasses.replace(handle.proof)
    for name, module in quantized.named_modules():
        if name.endswith("_proj"):
            module.__class__ = type("Other", (type(module),), {})
    with pytest.raises(ProofFailed, match="none of 14 layers"):
        run.scan("int8-weight-only", windows=1)


@pytest.mark.parametrize(
    "asked, how, said",
    [
        ("fp32", {}, "reference itself"),
        ("nf4+kv-int4", {}, "KV cache is no layer; scan nf4"),
        ("nf4", {"of": "model"}, 'of="layer" or of="block"'),
        ("nf4", {"windows": 0}, "one window"),
        ("nf4", {"only": ["q_prj"]}, "matches q_prj; there are model.layers.0"),
        (Rounding("int9", "tensor"), {}, "int9"),
    ],
)
def test_questions_without_sense(run, asked, how, said):
    with pytest.raises(UsageError, match=said):
        run.scan(asked, **how)


def test_patterns_mean_what_is_kept(run):
    found = run.scan("nf4")
    downs = [row for row in found.rows if row.layer.name.endswith("down_proj")]
    other = next(row for row in found.rows if row.layer.name.endswith("q_proj"))
    kept = metric.Kept(
        Budget(max_nats=0.1), 0.1, (*downs, other), True, 3, downs[0].nats, downs[0].kl, 1.0, 10, ((3, 0.05),)
    )
    assert report.patterns(found, kept) == ["down_proj", other.layer.name]
    text = report.render_kept(found, kept)
    assert 'variant("nf4", "nf4-mixed", exclude=["down_proj", ' in text
    assert "llm_int8_skip_modules" in text
