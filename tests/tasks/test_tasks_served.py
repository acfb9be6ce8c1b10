"""How many tokens of an item an engine of which only predictions are seen gets to read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pytest_quant.errors import NotMeasured

pytest.importorskip("lm_eval")
POSITIONS = 32


class Engine:
    """Keeps what it is asked, and refuses what vLLM would."""

    end_tokens = frozenset({0})

    def __init__(self, max_model_len):
        from transformers import LlamaConfig

        self.config = LlamaConfig(max_position_embeddings=POSITIONS, vocab_size=64)
        self.max_model_len = max_model_len
        self.longest_prompt = max_model_len - 1
        self.asked = []

    def top(self, tokens, scored_from, count):
        assert tokens.shape[1] < self.max_model_len
        assert 1 <= scored_from < tokens.shape[1]
        self.asked.append((tokens[0].tolist(), scored_from))
        rows = tokens.shape[1] - scored_from
        return np.ones(rows, dtype=np.float32), SimpleNamespace(ids=tokens[0, scored_from:, None])

    def continue_greedily(self, prompt, max_new_tokens, ends):
        assert len(prompt) + max_new_tokens <= self.max_model_len
        return np.full(max_new_tokens, 7)


@pytest.fixture
def served(byte_tokenizer):
    from pytest_quant.tasks.served import ServedLM

    return lambda max_model_len: ServedLM(Engine(max_model_len), byte_tokenizer)


def scored(model, context, continuation):
    tokens = list(range(1, 1 + context + continuation))
    (answer,) = model._loglikelihood_tokens([(None, tokens[:context], tokens[context:])])
    return answer, *model._loaded.asked[-1]


def test_an_item_that_fits_is_read_whole(served):
    answer, tokens, scored_from = scored(served(POSITIONS + 1), 20, 3)
    assert answer == (-3.0, True)
    assert (tokens, scored_from) == (list(range(1, 24)), 20)


@pytest.mark.parametrize("room", [POSITIONS, POSITIONS + 1])
def test_an_item_that_is_too_long_loses_its_beginning(served, room):
    _, tokens, scored_from = scored(served(room), 60, 4)
    assert tokens == list(range(64 - (room - 1) + 1, 65))
    assert scored_from == room - 1 - 4


def test_windows_of_a_whole_text_fit(served):
    model = served(POSITIONS)
    request = SimpleNamespace(args=("word " * 40,))
    (total,) = model.loglikelihood_rolling([request], disable_tqdm=True)
    assert total < 0
    assert max(len(tokens) for tokens, _ in model._loaded.asked) == POSITIONS - 1


def test_an_engine_that_is_shorter_than_its_model_does_not_measure_long_items(served):
    model = served(16)
    assert scored(model, 12, 3)[2] == 12
    with pytest.raises(NotMeasured, match=r"17 tokens .* max_model_len=16: give a longer"):
        scored(model, 12, 4)


def test_a_text_that_finds_no_room_is_not_measured(served):
    import torch

    model = served(16)
    assert model._model_generate(torch.ones(1, 10, dtype=torch.long), 16, []).shape == (1, 16)
    with pytest.raises(NotMeasured, match="max_model_len=16"):
        model._model_generate(torch.ones(1, 10, dtype=torch.long), 17, [])


def test_a_continuation_that_fills_the_engine_is_not_measured(served):
    with pytest.raises(NotMeasured, match="leaves no room"):
        scored(served(POSITIONS), 5, 40)
