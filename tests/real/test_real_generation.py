"""Greedy continuations of the real model: what it says is what transformers says, and how much of it NF4 keeps."""

from __future__ import annotations

import pytest

from pytest_quant.continuations import Continuations
from pytest_quant.engines.source import ModelSource
from pytest_quant.gates.gate import Gate
from pytest_quant.population import Population
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

pytestmark = pytest.mark.real

QUESTIONS = ("What is the capital of France?", "Why is the sky blue?")


@pytest.fixture(scope="module")
def room(smollm2, tmp_path_factory):
    session = Session(Settings(cache_dir=tmp_path_factory.mktemp("cache")), Quiet())
    return Continuations(session.settings, Population(session.settings), session.turns, Quiet())


@pytest.fixture(scope="module")
def spec(smollm2) -> ModelSpec:
    return ModelSpec(ModelSource(str(smollm2)), reference="fp32")


def sample(room, spec, format, count, **parameters):
    found = room.sample(spec, format, Gate("generation_match", (), tuple(sorted(parameters.items()))))
    found.extend(count)
    return found


def test_the_continuation_is_that_of_transformers(room, spec):
    handle = room._turns.beside(spec, "fp32")
    for text in QUESTIONS:
        ids = handle.tokenizer(text, return_tensors="pt")["input_ids"]
        theirs = handle.model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=2)[0, ids.shape[1] :]
        ours = handle.loaded.continue_greedily(ids[0].numpy(), 16, handle.loaded.end_tokens)
        assert ours.tolist() == theirs.tolist()


def test_the_paris_of_the_chat_model(room, spec):
    found = sample(room, spec, "nf4", 1, prompts=QUESTIONS[:1], chat_template=True, max_new_tokens=16)
    said = next(iter(room._said[spec].values()))
    handle = room._turns.beside(spec, "fp32")
    assert "Paris" in handle.tokenizer.decode(said)
    assert int(said[-1]) in handle.loaded.end_tokens
    assert found.drawn == found.total == 1


def test_coarser_formats_keep_less(room, spec):
    shares = {}
    for format in ("bf16", "nf4"):
        drawn = sample(room, spec, format, 5, limit=5, max_new_tokens=16)
        answer = drawn.answer(0.01)
        shares[format] = {name: quantity.value for name, quantity in answer.quantities.items()}
        assert answer.figures["changed"] == pytest.approx(5 - 5 * answer.quantities["same"].value)
        assert shares[format]["same"] <= shares[format]["prefix"] <= shares[format]["share"]
        for changed in drawn.detail().get("changed", ()):
            assert changed["reference"] != changed["format"]
    assert shares["bf16"]["prefix"] > shares["nf4"]["prefix"] + 0.2
