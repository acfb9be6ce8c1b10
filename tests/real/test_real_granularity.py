"""examples/granularity.py on the real model: what must be worse is, and the model comes back as it was."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotMeasured
from pytest_quant.formats import registry
from pytest_quant.formats.rounding import Rounding
from pytest_quant.hardware import detect
from pytest_quant.population import Population
from pytest_quant.settings import Settings

pytestmark = pytest.mark.real

VARIANTS = (
    Rounding("int8", "tensor"),
    Rounding("int8", "channel"),
    Rounding("int4", "tensor"),
    Rounding("int4", "channel"),
    Rounding("int4", "group", 64),
    Rounding("int4", "group", 128),
    Rounding("nf4", "group", 64),
)


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    path = Path(__file__).parents[2] / "examples" / "granularity.py"
    spec = importlib.util.spec_from_file_location("granularity_example", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def windows(smollm2):
    whole = Population(Settings(protocol="gptq-128")).windows(ModelSource(str(smollm2)))
    return replace(whole, drawn=whole.drawn[:2])


@pytest.fixture(scope="module")
def loaded(smollm2):
    format = registry.get("fp32")
    return loading.load(ModelSource(str(smollm2)), format, registry.backend(format), "fp32", detect())


@pytest.fixture(scope="module")
def sample(example):
    return example.Sample("fp32", 2, "token", 0.01)


@pytest.fixture(scope="module")
def rows(example, loaded, windows):
    before = loaded.token_nll(windows.drawn[0].pieces[0].tokens[None])
    found = {row.rounding.name: row for row in example.study(loaded, windows, VARIANTS)}
    assert (loaded.token_nll(windows.drawn[0].pieces[0].tokens[None]) == before).all()
    return found


@pytest.fixture(scope="module")
def kl(sample, rows):
    return {name: sample.kl(row).value for name, row in rows.items()}


def test_finer_scales_are_nearer_to_the_reference(kl):
    assert kl["int4-tensor"] > 5 * kl["int4-group-64"]
    assert kl["int4-tensor"] > kl["int4-channel"] > kl["int4-group-64"]
    assert kl["int8-tensor"] > kl["int8-channel"]
    assert 0.0 < kl["int8-channel"] < 0.01


def test_nf4_is_no_further_than_uniform_levels_of_the_same_size(kl, rows):
    assert kl["nf4-group-64"] <= kl["int4-group-64"]
    assert rows["nf4-group-64"].bits == rows["int4-group-64"].bits == 4.25


def test_perplexity_and_its_difference(sample, rows):
    delta, figures = sample.delta(rows["int4-tensor"])
    assert delta.is_exact, "these two windows are the whole set here"
    assert figures["format_value"] - figures["reference_value"] == pytest.approx(delta.value)
    assert figures["format_value"] > 2 * figures["reference_value"]
    assert abs(sample.delta(rows["int8-channel"])[0].value) < 0.1 * figures["reference_value"]
    between = sample.between(rows["int4-channel"], rows["int4-group-64"])
    others = [sample.delta(rows[name])[1]["format_value"] for name in ("int4-channel", "int4-group-64")]
    assert between.value == pytest.approx(others[0] - others[1])


def test_groups_that_do_not_divide_a_layer_are_fitted_and_shown(example, sample, rows):
    assert rows["int4-group-128"].sizes == (128, 96)
    assert 4 + 16 / 128 < rows["int4-group-128"].bits < 4 + 16 / 96
    lines = example.table(list(rows.values()), sample)
    assert lines[1].startswith("fp32 ")
    assert any("128/96 weights" in line for line in lines)
    assert len(lines) == 2 + len(VARIANTS)


def test_a_claim_is_judged_by_what_was_measured(example, sample, rows):
    claim = example.CLAIMS[0]
    found, verdict = example.judged(claim, rows, sample)
    assert verdict == ("held" if claim.low <= found.value <= claim.high else verdict)
    wide = replace(claim, low=-math.inf, high=math.inf)
    assert example.judged(wide, rows, sample)[1] == "held"
    assert example.judged(replace(claim, low=1e6, high=1e7), rows, sample)[1] == "did not hold: it is less"
    assert example.judged(replace(claim, low=-2e6, high=-1e6), rows, sample)[1] == "did not hold: it is more"
    turned = replace(claim, worse="int8-channel", better="int4-tensor")
    assert example.judged(turned, rows, sample)[1] == "did not hold: the other way round"
    assert example.judged(replace(claim, worse="int3-tensor"), rows, sample) is None
    part = replace(sample, total=100)  # two windows say little of a hundred
    assert example.judged(claim, rows, part)[1] == "undecided: no interval from so few windows"


def test_the_record_is_json_without_what_is_unknown(example, sample, rows):
    text = json.dumps(example.record(list(rows.values()), replace(sample, total=100), {}), allow_nan=False)
    record = json.loads(text)
    assert [row["name"] for row in record["rows"]] == [rounding.name for rounding in VARIANTS]
    assert all("value" in row["delta"] for row in record["rows"])
    assert {claim["than"] for claim in record["claims"]} >= {"fp32", "nf4-group-64"}


def test_weights_that_were_touched_are_noticed(example, loaded, windows, monkeypatch):
    """In single values that the cheap check does not look at."""
    import torch

    weight = loaded.model.model.layers[5].mlp.up_proj.weight
    original = weight.detach().clone()

    class Rough(example.Layers):
        def twins(self):
            with torch.no_grad():
                weight[1:3, 1:3] += 0.5
            return super().twins()

    monkeypatch.setattr(example, "Layers", Rough)
    try:
        with pytest.raises(NotMeasured, match="does not answer as before the first rounding"):
            example.study(loaded, windows, VARIANTS[1:2])
    finally:
        with torch.no_grad():
            weight.copy_(original)


def test_what_cannot_be_measured_is_said(example, capsys):
    assert example.main(["no/such-model", "--windows", "0"]) == 2
    assert capsys.readouterr().err == "granularity.py: --windows must be 1 or more\n"
    assert example.main(["no/such-model", "--dtype", "nf4"]) == 2
    assert "the unrounded model is opened in fp32, bf16 or fp16" in capsys.readouterr().err
