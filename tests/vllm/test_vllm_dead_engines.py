"""A model whose engine has died is let go of, and the next test gets another."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Support
from pytest_quant.model import ModelHandle
from pytest_quant.models import Models
from pytest_quant.progress import Quiet
from pytest_quant.spec import ModelSpec

SPEC = ModelSpec(ModelSource("org/model"), "fp32", engine="vllm")


@dataclass
class Engine:
    """What a run that holds models asks of one that vLLM runs."""

    alive: bool = True
    closed: int = field(default=0)
    changed = False

    def close(self):
        self.closed += 1


@pytest.fixture
def models(monkeypatch):
    device = Device("cpu", "intel", "A CPU", "x86_64")
    held = Models(device, {}, Quiet(), lambda *_: None)

    def load(spec, format):
        return ModelHandle(Engine(), format, Support("native", "", ""), "model", None)

    monkeypatch.setattr(held, "_load", load)
    return held


def test_one_that_lives_is_held(models):
    handle = models.get(SPEC, registry.get("fp32").name)
    assert models.find(SPEC, "fp32") is models.get(SPEC, "fp32") is handle


def test_one_that_died_is_started_again(models):
    first = models.get(SPEC, "fp32")
    engine = first.loaded
    engine.alive = False
    assert models.find(SPEC, "fp32") is None
    assert engine.closed == 1
    second = models.get(SPEC, "fp32")
    assert second is not first
    second.loaded.alive = False
    assert models.get(SPEC, "fp32") is not second
