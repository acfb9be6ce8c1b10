"""What memory gates count, of an engine that answers by rule."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pytest_quant.errors import NotMeasured, UsageError
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.regression import change
from pytest_quant.gates.verdict import Verdict
from pytest_quant.metrics import memory
from pytest_quant.metrics.memory import Used, memory_budget, used

STREAM = np.arange(10)
WEIGHTS, EACH = 1000, 7


class Engine:
    """Takes so many bytes for each token that it scores, and half of it for each that it keeps."""

    device = None
    max_positions = 64
    proof = SimpleNamespace(offloaded_bytes=None, held_bytes=WEIGHTS)
    places = ("cpu",)

    def __init__(self):
        self.scored = []

    def token_nll(self, windows):
        self.scored.append(windows.shape)
        return windows.size * EACH

    def kv_cache_bytes(self, prompt):
        return prompt.size * EACH // 2


@pytest.fixture(autouse=True)
def _the_work_tells_its_bytes(monkeypatch):
    monkeypatch.setattr(memory, "peak_above_start", lambda device, work, places: work())


def test_weights_need_no_tokens():
    engine = Engine()
    assert used(engine, "weights", None, 1, 512) == Used(WEIGHTS)
    assert engine.scored == []


def test_activations_and_the_peak_are_two_sides_of_one_run():
    engine = Engine()
    activations = used(engine, "activations", STREAM, 3, 40)
    peak = used(engine, "peak", STREAM, 3, 40)
    assert activations.bytes == 3 * 40 * EACH
    assert peak.bytes == WEIGHTS + activations.bytes
    assert activations.figures == peak.figures == {"weight_bytes": WEIGHTS, "activation_bytes": 3 * 40 * EACH}
    assert engine.scored == [(3, 16), (3, 40)] * 2, "a short forward first, which is not counted"


def test_the_kv_cache_tells_what_a_token_takes():
    found = used(Engine(), "kv_cache", STREAM, 2, 20)
    assert found.bytes == 2 * 20 * EACH // 2
    assert found.figures == {"kv_bytes_per_token": EACH / 2}


@pytest.mark.parametrize("of", ["activations", "peak", "kv_cache"])
def test_a_context_that_the_model_does_not_know(of):
    with pytest.raises(UsageError, match="context=65 does not fit the model's 64 positions"):
        used(Engine(), of, STREAM, 1, 65)


def test_the_budget_has_the_figures_beside_it():
    quantities, figures = memory_budget(Used(50, {"a": 1.0}), Used(200, {"a": 2.0}))
    assert quantities == {"bytes": Quantity.exact(50.0, "bytes"), "ratio": Quantity.exact(0.25, "x")}
    assert figures == {"a": 1.0, "format_value": 50.0, "reference_value": 200.0, "ratio": 0.25}
    assert memory_budget(Used(50), None) == ({"bytes": Quantity.exact(50.0, "bytes")}, {"format_value": 50.0})


def test_a_ratio_to_nothing_is_no_number():
    with pytest.raises(NotMeasured, match="no ratio"):
        memory_budget(Used(0), Used(0))


@pytest.mark.parametrize(
    ("of", "verdict"),
    [("activations", Verdict.PASSED), ("peak", Verdict.PASSED), ("kv_cache", Verdict.REGRESSED)],
)
def test_a_few_percent_of_activations_are_the_allocators(of, verdict):
    def measured(count):
        identity = {"metric": {"name": "memory_budget", "of": of}}
        quantity = {"bytes": Quantity.exact(count, "bytes")}
        return Measurement("memory_budget", "m", "nf4", "transformers", "bytes", quantity, identity)

    then = SimpleNamespace(value=100.0, low=None, high=None, scores=None, reference_scores=None)
    assert change(measured(105.0), then).verdict is verdict
    assert Gate("memory_budget").is_quality is False
