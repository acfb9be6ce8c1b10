"""A baseline's life: missing, recorded, passed, regressed, updated, passed; each with what is left on disk."""

from __future__ import annotations

import json
import platform

import pytest

GATED = """
import pytest

@pytest.mark.quant(formats=["int8"])
@pytest.mark.perplexity_delta(max_ratio=3.0)
def test_gate(quant_model):
    assert quant_model.format.name == "int8"
"""

WORSE = """
import pytest
from transformers import AutoModelForCausalLM

load = AutoModelForCausalLM.from_pretrained

def planted(*args, **kwargs):
    model, loading = load(*args, **kwargs)
    if "quantization_config" in kwargs:
        model.model.layers[0].mlp.down_proj.weight.SCB.mul_(1.5)
    return model, loading

@pytest.fixture(autouse=True)
def worse(monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", planted)
"""


def test_from_missing_to_passed_again(project):
    project.test(GATED)

    missing, counts = project.junit("--quant-missing=fail")
    assert missing.ret == pytest.ExitCode.TESTS_FAILED
    assert counts == {"tests": 1, "failures": 1, "errors": 0, "skipped": 0}
    missing.stdout.fnmatch_lines(["*no baseline in*--quant-baseline-update=new*"])
    assert project.baselines == {}

    recorded, counts = project.junit()
    assert recorded.ret == 0
    assert counts == {"tests": 1, "failures": 0, "errors": 0, "skipped": 0}
    recorded.stdout.fnmatch_lines(["int8 *perplexity*max 3x*new", "1 measurement recorded in *.json"])
    first = project.baselines

    passed = project.gate("--quant-missing=fail")
    assert passed.ret == 0
    passed.stdout.fnmatch_lines(["int8 *+0.0000 nats*passed"])
    assert project.baselines == first

    project.conftest(WORSE)
    regressed, counts = project.junit()
    assert regressed.ret == pytest.ExitCode.TESTS_FAILED
    assert counts == {"tests": 1, "failures": 1, "errors": 0, "skipped": 0}
    regressed.stdout.fnmatch_lines(["*int8 perplexity_delta regressed: +* nats a token*", "int8 *regressed"])
    assert project.baselines == first, "a regressed value is never accepted silently"

    again = project.gate()
    assert again.ret == pytest.ExitCode.TESTS_FAILED, "and the next run is red again"

    updated = project.gate("--quant-baseline-update=all")
    assert updated.ret == 0
    assert project.baselines != first
    second = project.baselines

    settled = project.gate("--quant-missing=fail")
    assert settled.ret == 0
    settled.stdout.fnmatch_lines(["int8 *+0.0000 nats*passed"])
    assert project.baselines == second


def test_an_improvement_is_said_and_not_recorded_by_itself(project):
    project.test(GATED)
    project.conftest(WORSE)
    assert project.gate().ret == 0
    before = project.baselines
    (project.path / "conftest.py").unlink()

    result = project.gate()

    assert result.ret == 0
    result.stdout.fnmatch_lines(["int8 *improved"])
    assert project.baselines == before


def test_the_baseline_keeps_each_windows_score(project):
    project.test(GATED)
    _, record = project.record("--quant-baseline")
    (entry,) = project.entries
    (measured,) = record["measurements"]
    assert len(entry["scores"]) == len(entry["reference_scores"]) == measured["windows"]["total"] == 8
    assert entry["value"] == measured["value"]
    assert entry["identity"] == measured["identity"]


def test_a_limit_that_breaks_is_not_recorded(project):
    project.test(GATED.replace("max_ratio=3.0", "max=0.0"))
    result, counts = project.junit()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert counts["failures"] == 1
    assert project.baselines == {}
    result.stdout.fnmatch_lines(["int8 *failed"])


def test_another_protocol_is_incomparable_and_never_compared(project):
    project.test(GATED)
    assert project.gate().ret == 0
    before = project.baselines

    result = project.gate("--quant-protocol=gptq-32", "--quant-missing=fail")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*incomparable: *protocol.window: 64 -> 32*", "int8 *incomparable"])
    assert project.baselines == before

    recorded = project.gate("--quant-protocol=gptq-32")
    assert recorded.ret == 0
    recorded.stdout.fnmatch_lines(["int8 *incomparable"])
    assert len(project.entries) == 2, "the old identity stays until it is pruned"

    pruned = project.gate("--quant-protocol=gptq-32", "--quant-baseline-update=prune")
    assert pruned.ret == 0
    pruned.stdout.fnmatch_lines(["1 measurement pruned from *"])
    (entry,) = project.entries
    assert entry["identity"]["protocol"]["window"] == 32


TWO = """
import pytest

@pytest.mark.memory_budget(max_gb=1)
def test_one(quant_model): ...

@pytest.mark.perplexity_delta(max_ratio=3.0)
def test_two(quant_model): ...
"""


@pytest.mark.parametrize("change", ["deselected", "skipped", "failed", "gone", "another-file"])
def test_pruning_spares_what_did_not_run(project, change):
    project.test(TWO)
    assert project.gate().ret == 0
    assert len(project.entries) == 2
    arguments = ["--quant-baseline-update=prune"]
    if change == "deselected":
        arguments += ["-k", "one"]
    elif change == "skipped":
        project.test(TWO.replace("def test_two(quant_model): ...", "def test_two(quant_model): pytest.skip('today')"))
    elif change == "failed":
        project.test(TWO.replace("def test_two(quant_model): ...", "def test_two(quant_model): assert False"))
    elif change == "gone":
        project.test(TWO.split("@pytest.mark.perplexity_delta")[0])
    else:
        project.test(TWO.split("@pytest.mark.perplexity_delta")[0], name="test_other")
        arguments += ["test_other.py"]
    project.gate(*arguments)
    assert len(project.entries) == (1 if change == "gone" else 2)


@pytest.mark.parametrize("architecture, passed", [(platform.machine(), 2), ("sm_90", 1)])
def test_another_devices_baseline_serves_quality_and_stored_bytes_and_says_so(project, architecture, passed):
    """Quality from any device, bytes of weights from one of the same architecture; a peak or a speed from none."""
    project.test(TWO + "\n\n@pytest.mark.memory_budget(max_gb=1, of='peak')\ndef test_peak(quant_model): ...\n")
    assert project.gate().ret == 0
    own = project.baseline_path
    other = own.parent.parent / "nvidia-h200" / own.name
    other.parent.mkdir()
    data = json.loads(own.read_text())
    assert data["hardware"]["architecture"] == platform.machine()
    data["hardware"].update(key="nvidia-h200", name="NVIDIA H200", architecture=architecture)
    other.write_text(json.dumps(data))
    own.unlink()

    result = project.gate("--quant-missing=fail")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=passed, failed=3 - passed)
    result.stdout.fnmatch_lines(["*memory_budget missing: *", "*compared with the baseline of nvidia-h200*"])


def test_stack_drift_is_told_from_quantization_drift(project):
    project.test(GATED)
    assert project.gate().ret == 0

    def move(data):
        (entry,) = data["measurements"]
        for name in ("scores", "reference_scores"):
            entry[name] = [score - 0.01 for score in entry[name]]

    project.change_baseline(move)
    result = project.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the reference moved too, by +0.01000 nats: the stack drifted*"])
