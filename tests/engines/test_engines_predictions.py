"""What an engine says of each row, against the same from full logits in double precision."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from pytest_quant.engines import predictions
from pytest_quant.engines.source import ModelSource

TOKENS = np.random.default_rng(0).integers(0, 256, (3, 21))
BATCHES = {"three": TOKENS, "one": TOKENS[:1], "two tokens": TOKENS[:, :2]}
CHUNKS = {"whole": 1 << 23, "several and a rest": 256 * 7 + 5, "row by row": 1}


def loaded(folder: Any) -> Any:
    from pytest_quant.engines.loading import load
    from pytest_quant.formats import registry
    from pytest_quant.formats.registry import backend
    from pytest_quant.hardware import detect

    format = registry.get("fp32")
    return load(ModelSource(str(folder)), format, backend(format), "float32", detect())


def noisy(engine: Any, noise: float = 0.03) -> Any:
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return engine


@pytest.fixture(scope="module")
def llamas(tiny_llama):
    """A reference, and a model that is not quite it."""
    return loaded(tiny_llama), noisy(loaded(tiny_llama))


@pytest.fixture(scope="module")
def gpts(tiny_gpt2):
    return loaded(tiny_gpt2), noisy(loaded(tiny_gpt2))


@pytest.fixture(params=["llamas", "gpts"])
def pair(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=CHUNKS.values(), ids=CHUNKS.keys())
def chunk(request, monkeypatch):
    monkeypatch.setattr(predictions, "_CHUNK", {"cpu": request.param})


@dataclasses.dataclass
class Expected:
    """All of it by numpy in double precision, from logits that the model gave in one piece."""

    log_p: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, engine: Any, tokens: np.ndarray, scored_from: int) -> Expected:
        import torch

        with torch.no_grad():
            logits = engine.model(torch.tensor(tokens)).logits.double().numpy()
        rows = logits[:, scored_from - 1 : -1].reshape(-1, logits.shape[-1])
        rows = rows - rows.max(1, keepdims=True)
        return cls(rows - np.log(np.exp(rows).sum(1, keepdims=True)), tokens[:, scored_from:].flatten())

    @property
    def nll(self) -> np.ndarray:
        return -self.log_p[np.arange(len(self.labels)), self.labels]

    def top(self, count: int) -> np.ndarray:
        return np.sort(self.log_p, axis=1)[:, ::-1][:, :count]

    def kl(self, other: Expected) -> np.ndarray:
        return (np.exp(self.log_p) * (self.log_p - other.log_p)).sum(1)


@pytest.mark.parametrize("tokens", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("scored_from", [1, 9])
def test_each_row_is_what_full_logits_say(pair, chunk, tokens, scored_from):
    scored_from = min(scored_from, tokens.shape[1] - 1)
    reference, model = pair
    p, q = (Expected.of(engine, tokens, scored_from) for engine in pair)
    nll, top, compared = model.against(reference, tokens, scored_from, 12)
    assert nll == pytest.approx(p.nll, abs=2e-5)
    assert compared.nll == pytest.approx(q.nll, abs=2e-5)
    assert compared.kl == pytest.approx(p.kl(q), rel=1e-3, abs=2e-6)
    assert p.kl(q).mean() > 1e-3
    ids = top.ids.astype(int)
    assert np.take_along_axis(p.log_p, ids, 1) == pytest.approx(p.top(12), abs=2e-5)
    assert all(len(set(row)) == 12 for row in ids.tolist())
    assert top.log_probs.astype(float) == pytest.approx(p.top(12), rel=1e-3)
    assert np.exp(top.rest) == pytest.approx(1.0 - np.exp(p.top(12)).sum(1), abs=2e-6)
    assert compared.at_top == pytest.approx(np.take_along_axis(q.log_p, ids, 1), abs=2e-5)
    leading = np.take_along_axis(q.log_p, ids[:, :1], 1)[:, 0]
    assert leading[compared.agree] == pytest.approx(q.log_p.max(1)[compared.agree], abs=2e-5)
    assert (leading[~compared.agree] < q.log_p.max(1)[~compared.agree]).all()


@pytest.mark.parametrize("tokens", BATCHES.values(), ids=BATCHES.keys())
def test_every_question_gives_the_same_bits(pair, chunk, tokens):
    import torch

    reference, model = pair
    nll, top, compared = model.against(reference, tokens, 1, 12)
    again, also = reference.top(tokens, 1, 12)
    stored = model.against_top(tokens, 1, top.ids)
    with torch.inference_mode():
        plain = predictions.nll(model.predict(tokens, 1))
    assert np.array_equal(nll, again)
    for field in ("ids", "log_probs", "rest"):
        assert np.array_equal(getattr(top, field), getattr(also, field)), field
    for field in ("nll", "agree", "at_top"):
        assert np.array_equal(getattr(compared, field), getattr(stored, field)), field
    assert np.array_equal(compared.nll, plain)
    assert np.array_equal(compared.nll, model.top(tokens, 1, 3)[0])
    assert np.array_equal(model.token_nll(tokens), plain.reshape(len(tokens), -1).astype(float))
    assert stored.kl is None


def test_rows_go_sequence_after_sequence(pair, chunk):
    _, model = pair
    together, _ = model.top(TOKENS, 5, 4)
    alone = [model.top(TOKENS[i : i + 1], 5, 4)[0] for i in range(3)]
    assert together == pytest.approx(np.concatenate(alone), abs=2e-5)
    assert together.shape == (3 * 16,)


def test_the_types_are_those_that_are_stored(llamas):
    reference, model = llamas
    nll, top, compared = model.against(reference, TOKENS, 1, 300)
    assert (nll.dtype, top.ids.dtype, top.log_probs.dtype, top.rest.dtype) == (
        "float32",
        "uint32",
        "float16",
        "float32",
    )
    assert (compared.nll.dtype, compared.agree.dtype, compared.at_top.dtype) == ("float32", "bool", "float32")
    assert top.ids.shape == (60, 256), "a vocabulary smaller than K is kept whole"
    assert (top.rest < -10.0).all()
    assert np.isfinite(top.rest).all()


def test_a_model_against_itself_diverges_by_nothing(llamas, chunk):
    reference, _ = llamas
    _, top, compared = reference.against(reference, TOKENS, 1, 4)
    assert (compared.kl == 0.0).all()
    assert compared.agree.all()
    assert top.ids.shape[1] == 4


def test_tokens_that_are_equally_probable_are_no_disagreement():
    """In 16 bits the two best logits are often the same number; which of them comes first is no answer."""
    tied = [[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]]
    _, _, compared = predictions.against(rows(tied, [0, 1]), rows(tied, [0, 1]), 2)
    assert compared.agree.tolist() == [True, True]


def test_the_head_is_taken_apart_and_says_what_the_whole_model_says(pair, chunk, monkeypatch):
    reference, model = pair
    assert model._head is model.model.get_output_embeddings()
    _, _, apart = model.against(reference, TOKENS, 6, 12)
    monkeypatch.setattr(model, "_head", None)
    monkeypatch.setattr(reference, "_head", None)
    _, _, whole = model.against(reference, TOKENS, 6, 12)
    for field in ("nll", "at_top", "kl"):
        assert getattr(apart, field) == pytest.approx(getattr(whole, field), abs=2e-5), field
    assert (apart.agree == whole.agree).mean() > 0.95


def test_the_last_token_is_never_an_input(pair):
    _, model = pair
    seen = []
    embedding = model.model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].tolist()))
    try:
        model.top(TOKENS, 4, 2)
    finally:
        hook.remove()
    assert seen == [TOKENS[:, :-1].tolist()]
    other = TOKENS.copy()
    other[:, -1] = (other[:, -1] + 1) % 256
    (one, kept), (two, also) = (model.top(tokens, 4, 2) for tokens in (TOKENS, other))
    assert np.array_equal(kept.log_probs, also.log_probs)
    changed = (one != two).reshape(3, -1)
    assert changed[:, -1].all()
    assert not changed[:, :-1].any()


def granite(scaling: float) -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return GraniteForCausalLM(GraniteConfig(vocab_size=256, logits_scaling=scaling, initializer_range=0.5, **sizes))


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(
        vocab_size=256, num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0, initializer_range=0.5, **sizes
    )
    return Gemma2ForCausalLM(config)


@pytest.mark.parametrize("make, apart", [(lambda: granite(3.0), True), (lambda: granite(1.0), True), (gemma, True)])
def test_logits_that_a_config_scales_or_caps_are_made_from_hidden_states_too(make, apart):
    import torch

    from pytest_quant.engines.transformers import TransformersModel
    from pytest_quant.hardware import detect

    torch.manual_seed(0)
    engine = TransformersModel(make().eval(), None, detect(), None)
    assert (engine._head is not None) == apart
    expected = Expected.of(engine, TOKENS, 3)
    assert engine.top(TOKENS, 3, 4)[0] == pytest.approx(expected.nll, rel=1e-5, abs=2e-5)


def test_a_patched_forward_is_noticed(tiny_llama):
    """As code that comes with a hub model may do."""
    from pytest_quant.engines.transformers import TransformersModel

    engine = loaded(tiny_llama)
    forward = engine.model.forward

    def scaled(*arguments: Any, **named: Any) -> Any:
        out = forward(*arguments, **named)
        out.logits = out.logits / 4.0
        return out

    engine.model.forward = scaled
    again = TransformersModel(engine.model, engine.tokenizer, engine.device, engine.proof)
    assert again._head is None
    assert again.top(TOKENS, 1, 4)[0] == pytest.approx(Expected.of(again, TOKENS, 1).nll, abs=2e-5)


def rows(logits: list[list[float]], labels: list[int]) -> predictions.Predictions:
    import torch

    return predictions.Predictions(torch.tensor(logits), None, torch.tensor(labels), len(logits[0]))


def test_two_rows_by_hand():
    p, q = rows([[0.0, 0.0], [math.log(3.0), 0.0]], [0, 1]), rows([[math.log(3.0), 0.0]] * 2, [0, 1])
    nll, top, compared = predictions.against(p, q, 1)
    assert nll == pytest.approx([math.log(2), math.log(4)], rel=1e-6)
    assert compared.nll == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-6)
    assert compared.kl == pytest.approx([0.5 * math.log(2 / 3) + 0.5 * math.log(2), 0.0], rel=1e-5, abs=1e-7)
    assert compared.agree.tolist() == [True, True]
    assert top.ids[1].tolist() == [0]
    assert top.rest == pytest.approx([math.log(0.5), math.log(0.25)], rel=1e-6)


def test_a_token_that_neither_model_allows_adds_nothing_to_the_divergence():
    """Some models mask the ids that pad their vocabulary: 0 * (-inf + inf) is 0 here, as it is for the bound."""
    never = -math.inf
    p, q = rows([[0.0, 0.0, never]], [0]), rows([[math.log(3.0), 0.0, never]], [0])
    _, top, compared = predictions.against(p, q, 3)
    assert compared.kl == pytest.approx([0.5 * math.log(2 / 3) + 0.5 * math.log(2)], rel=1e-5)
    assert np.isfinite(top.log_probs).all()


def test_a_token_that_only_the_other_model_rules_out_diverges_without_end():
    _, _, compared = predictions.against(rows([[0.0, 0.0]], [0]), rows([[0.0, -math.inf]], [0]), 2)
    assert compared.kl.tolist() == [math.inf]


@pytest.mark.parametrize("side", ["reference", "model"])
def test_nan_is_never_hidden(side):
    sound, broken = rows([[0.0, 1.0]], [0]), rows([[0.0, math.nan]], [0])
    nll, _, compared = predictions.against(*((broken, sound) if side == "reference" else (sound, broken)), 1)
    assert math.isnan((nll if side == "reference" else compared.nll)[0])
    assert math.isnan(compared.kl[0])
