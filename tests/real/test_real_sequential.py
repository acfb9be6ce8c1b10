"""Early stops, small drifts and stored references with the real model."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.real

GATE = """
import pytest

@pytest.mark.quant(formats=["nf4"], reference="fp32")
@pytest.mark.perplexity_delta(max_ratio={limit})
def test_nf4(quant_model): ...
"""
DRIFT = 1.1
"""Of the scales of one matrix: a few thousandths of a nat."""


@pytest.fixture
def real(real_project):
    settings = ("quant_corpus = python-docs", "quant_protocol = gptq-128", "quant_cache_dir = cache")
    lines = ["[pytest]", *settings, f"quant_model = {real_project.model}", ""]
    (real_project.path / "pytest.ini").write_text("\n".join(lines))
    real_project.test(GATE.format(limit=2))
    return real_project


@pytest.fixture
def loads(monkeypatch):
    """What was loaded, ``reference`` or ``format``; the format with another scale once ``loads.drift`` is set."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    class Loads(list):
        drift = 1.0

    found = Loads()

    def counted(*args, **kwargs):
        model, loading = load(*args, **kwargs)
        found.append("format" if "quantization_config" in kwargs else "reference")
        if found[-1] == "format" and found.drift != 1.0:
            state = model.model.layers[20].mlp.up_proj.weight.quant_state
            state.state2.absmax.mul_(found.drift)
            state.offset.mul_(found.drift)
        return model, loading

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return found


def only(record):
    (measured,) = record["measurements"]
    return measured


def test_a_limit_far_away_is_decided_at_the_first_look_either_way(real, loads):
    result, record = real.record("--quant-max-windows=40")
    assert result.ret == 0
    measured = only(record)
    assert measured["verdict"] == "passed"
    assert measured["windows"] == {"used": 8, "total": 40}
    assert measured["low"] < measured["value"] < measured["high"]
    assert 1.1 < measured["ratio"] < 1.6
    result.stdout.fnmatch_lines(["nf4 *perplexity *x [[]*, *[]] 8/40 *max 2x *passed"])

    loads.clear()
    real.test(GATE.format(limit=1.001))
    result, record = real.record("--quant-max-windows=40", "--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert only(record)["verdict"] == "failed"
    assert only(record)["windows"] == {"used": 8, "total": 40}
    assert real.baselines == {}
    assert only(record)["reference_source"] == "stored", "the reference of these windows was stored by the run before"
    assert loads == ["format", "reference"], "the latter only to compare layers, once the gate was broken"


def test_a_drift_of_a_few_thousandths_of_a_nat_is_seen_with_an_imported_reference(real, loads):
    from pytest_quant.cli import main

    few = "--quant-max-windows=16"
    folders = {name: ["--cache-dir", str(real.path / name)] for name in ("elsewhere", "cache")}
    asked = ["--reference=fp32", "--protocol=gptq-128", "--max-windows=16"]
    assert main(["reference", "build", str(real.model), *asked, *folders["elsewhere"]]) == 0
    exported = str(real.path / "reference.safetensors")
    assert main(["reference", "export", "--to", exported, *folders["elsewhere"]]) == 0
    assert main(["reference", "import", exported, *folders["cache"]]) == 0
    assert loads == ["reference"]

    loads.clear()
    result, record = real.record("--quant-baseline", few)
    assert result.ret == 0
    assert only(record)["windows"] == {"used": 16, "total": 16}
    assert only(record)["reference_source"] == "stored"
    before = only(record)["nats"]

    result, record = real.record("--quant-baseline", "--quant-missing=fail", few)
    assert result.ret == 0
    assert only(record)["windows"] == {"used": 8, "total": 16}
    assert only(record)["baseline"]["verdict"] == "passed"
    assert only(record)["baseline"]["change"] == "+0.0000 nats"
    assert loads == ["format", "format"], "the reference itself was never loaded"

    recorded, loads.drift = real.baselines, DRIFT
    result, record = real.record("--quant-baseline", "--quant-missing=fail", few)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    measured = only(record)
    assert measured["windows"] == {"used": 16, "total": 16}
    assert 0.001 < measured["nats"] - before < 0.004, "the planted change, as the full evaluation knows it"
    assert (measured["verdict"], measured["baseline"]["verdict"]) == ("passed", "regressed")
    assert real.baselines == recorded
    result.stdout.fnmatch_lines(["*nf4 perplexity_delta regressed: +0.00*it is the quantization*"])
