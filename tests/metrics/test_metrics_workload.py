"""What a workload counts: tokens, positions, context; and the prompts it is given."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_quant.errors import UsageError
from pytest_quant.metrics.workload import Workload, prompt


@pytest.mark.parametrize(
    "work, tokens, length, context",
    [
        (Workload("decode", 1, 64, 32), 32, 96, 79.5),
        (Workload("decode", 8, 100, 1), 8, 101, 100.0),
        (Workload("prefill", 4, 100, 32), 400, 100, 0.0),
        (Workload("ttft", 4, 100, 32), 4, 100, 0.0),
    ],
)
def test_what_a_run_makes_takes_and_finds(work, tokens, length, context):
    assert (work.tokens, work.length, work.context) == (tokens, length, context)


def test_the_context_is_the_mean_of_what_the_steps_find():
    work = Workload("decode", prompt_tokens=7, new_tokens=5)
    assert work.context == np.mean([7 + step for step in range(5)])


@pytest.mark.parametrize(
    "work, longest",
    [(Workload("decode", 1, 64, 32), 96), (Workload("prefill", 1, 96, 32), 96), (Workload("decode", 1, 10**6), None)],
)
def test_what_fits_is_no_word_worth(work, longest):
    work.check(longest)


@pytest.mark.parametrize("phase, new_tokens", [("decode", 33), ("prefill", 1), ("ttft", 1)])
def test_what_does_not_fit_is_refused_with_both_numbers(phase, new_tokens):
    work = Workload(phase, 1, 64 if phase == "decode" else 97, new_tokens)
    with pytest.raises(UsageError, match=f"{phase} of 97 tokens does not fit the model's 96 positions"):
        work.check(96)


def test_prompts_are_the_stream_row_by_row_repeated_as_often_as_needed():
    stream = np.arange(5)
    assert prompt(stream, 2, 2).tolist() == [[0, 1], [2, 3]]
    assert prompt(stream, 2, 4).tolist() == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert prompt(stream, 1, 11).shape == (1, 11)
