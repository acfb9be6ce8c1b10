"""``pytest-quant init`` on the real model: limits that hold on the spot, and that a plausible fault breaks."""

from __future__ import annotations

import json

import pytest

from pytest_quant.cli import main

pytestmark = pytest.mark.real

DOUBLED = """
import pytest
from transformers import AutoModelForCausalLM

load = AutoModelForCausalLM.from_pretrained


@pytest.fixture(autouse=True, scope="session")
def planted():
    AutoModelForCausalLM.from_pretrained = faulty
    yield
    AutoModelForCausalLM.from_pretrained = load


def faulty(*args, **kwargs):
    found = load(*args, **kwargs)
    if "quantization_config" in kwargs:
        model = found[0] if isinstance(found, tuple) else found
        for layer in model.model.layers[10:16]:
            state = layer.mlp.down_proj.weight.quant_state
            state.state2.absmax.mul_(2)
            state.offset.mul_(2)
    return found
"""


def test_limits_of_the_real_model_hold_and_a_fault_in_six_layers_breaks_them(real_project, capsys):
    real_project.ini("quant_protocol = gptq-256", "quant_max_windows = 16", "quant_cache_dir = cache")
    metrics = "perplexity_delta,token_agreement,memory_budget"
    assert main(["init", str(real_project.model), "--formats", "nf4", "--metrics", metrics, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    limits = {one["metric"]: one["limit"] for one in found["formats"][0]["metrics"]}
    assert 1.1 < limits["perplexity_delta"]["max_ratio"] < 2.5
    assert 0.31 < limits["memory_budget"]["max_ratio"] < 0.33
    result = real_project.run("tests")
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    real_project.conftest(DOUBLED)
    result = real_project.run("tests")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*nf4 perplexity_delta failed: *"])
