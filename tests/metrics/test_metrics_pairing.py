"""Windows in batches, and scored side by side or against what is known of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quant.corpora.windows import Piece, Window, Windows
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import UsageError
from pytest_quant.metrics.pairing import check_fits, next_batch, score_against, score_beside, score_reference


def window(index: int, *shapes: tuple[int, int], vocabulary: int = 256) -> Window:
    """One piece for each (length, scored_from)."""
    rng = np.random.default_rng(index)
    pieces = tuple(Piece(rng.integers(0, vocabulary, length), first) for length, first in shapes)
    return Window(index, pieces, sum(piece.scored for piece in pieces))


def windows(*shapes: tuple[tuple[int, int], ...]) -> Windows:
    return Windows(tuple(window(i, *each) for i, each in enumerate(shapes)), {}, "token")


def batches(found: Windows, size: int, start: int = 0) -> list[list[int]]:
    """The indices of each batch from ``start`` to the end."""
    cut = []
    while start < len(found.drawn):
        batch = next_batch(found, start, size)
        cut.append([one.index for one in batch])
        start += len(batch)
    return cut


SHAPES = st.lists(
    st.sampled_from([((8, 1),), ((8, 4),), ((5, 1),), ((8, 1), (8, 1)), ((8, 1), (4, 2))]), min_size=1, max_size=30
)


def test_windows_of_one_shape_go_in_groups_of_the_size():
    assert batches(windows(*[((8, 1),)] * 7), 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_start_within_a_group_takes_the_rest_of_it():
    assert batches(windows(*[((8, 1),)] * 7), 4, start=1) == [[1, 2, 3], [4, 5, 6]]


def test_another_shape_begins_another_batch():
    mixed = windows(((8, 1),), ((8, 1),), ((8, 4),), ((7, 1),), ((7, 1),), ((7, 1),))
    assert batches(mixed, 4) == [[0, 1], [2], [3], [4, 5]]


def test_windows_of_several_pieces_go_alone():
    several = windows(((8, 1),), ((8, 1), (8, 5)), ((8, 1), (8, 5)), ((8, 1),))
    assert batches(several, 4) == [[0], [1], [2], [3]]


@given(SHAPES, st.sampled_from([1, 2, 3, 4, 8]))
@settings(max_examples=100, deadline=None)
def test_every_window_is_in_one_batch_of_its_kind(shapes, size):
    found = windows(*shapes)
    cut = batches(found, size)
    assert [index for batch in cut for index in batch] == list(range(len(shapes)))
    for batch in cut:
        assert 1 <= len(batch) <= size
        assert len({index // size for index in batch}) == 1
        assert len({shapes[index] for index in batch}) == 1
        assert len(batch) == 1 or len(shapes[batch[0]]) == 1


@given(SHAPES, st.sampled_from([1, 2, 4, 8]), st.data())
@settings(max_examples=100, deadline=None)
def test_a_window_has_the_same_company_wherever_a_batch_began(shapes, size, data):
    found = windows(*shapes)
    whole = batches(found, size)
    start = data.draw(st.sampled_from([batch[0] for batch in whole]))
    assert batches(found, size, start) == [batch for batch in whole if batch[0] >= start]


@given(SHAPES, st.sampled_from([1, 2, 4, 8]), st.data())
@settings(max_examples=100, deadline=None)
def test_from_the_next_group_on_the_start_is_forgotten(shapes, size, data):
    found = windows(*shapes)
    start = data.draw(st.integers(0, len(shapes) - 1))
    after = -(-start // size) * size
    late = [batch for batch in batches(found, size, start) if batch[0] >= after]
    assert late == [batch for batch in batches(found, size) if batch[0] >= after]


@dataclass
class Short:
    max_positions: int | None


@pytest.mark.parametrize("limit, fits", [(None, True), (8, True), (7, True), (6, False)])
def test_the_last_token_is_no_input_and_needs_no_position(limit, fits):
    found = windows(((4, 1),), ((8, 1),))
    if fits:
        check_fits(Short(limit), found)
    else:
        with pytest.raises(UsageError, match="windows of 8 tokens do not fit the model's 6 positions"):
            check_fits(Short(limit), found)


@pytest.fixture(scope="module")
def pair(tiny_llama):
    """A model, and the same with noise in its weights."""
    import torch

    from pytest_quant.engines.loading import load
    from pytest_quant.formats import registry
    from pytest_quant.formats.registry import backend
    from pytest_quant.hardware import detect

    found = []
    for noise in (0.0, 0.02):
        format = registry.get("fp32")
        loaded = load(ModelSource(str(tiny_llama)), format, backend(format), "float32", detect())
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter += noise * torch.randn_like(parameter)
        found.append(loaded)
    return found


MIXED = [[window(i, (24, 1)) for i in range(3)], [window(7, (24, 9))], [window(8, (24, 1), (17, 5), (3, 2))]]


@pytest.mark.parametrize("batch", MIXED, ids=["three of a shape", "half is scored", "three pieces"])
@pytest.mark.parametrize("top_k", [64, 300])
def test_beside_and_against_say_the_same(pair, batch, top_k):
    reference, model = pair
    beside = score_beside(model, reference, batch, top_k)
    known = score_reference(reference, batch, top_k)
    for (score, learned), stored, against, one in zip(
        beside, known, score_against(model, batch, known), batch, strict=True
    ):
        for name in ("nll", "top_ids", "top_log_probs", "rest_log_mass"):
            assert np.array_equal(getattr(learned, name), getattr(stored, name)), name
        for name in ("nll", "reference_nll", "agree", "bound"):
            assert np.array_equal(getattr(score, name), getattr(against, name)), name
        assert score.weight == against.weight == one.weight
        assert score.scored == one.scored == len(score.kl)
        assert against.kl is None
        assert stored.top_ids.shape[1] == min(top_k, 256)


def test_the_bound_is_below_the_divergence_and_meets_it_where_all_tokens_are_kept(pair):
    reference, model = pair
    for top_k in (1, 16, 300):
        for score, _ in score_beside(model, reference, MIXED[0], top_k):
            assert (score.bound <= score.kl + 2e-3 * score.kl + 1e-5).all()
            assert score.kl.mean() > 1e-3
            if top_k == 300:
                assert score.bound == pytest.approx(score.kl, rel=0.02, abs=2e-4)


def test_eight_at_once_and_one_by_one_agree_to_rounding(pair):
    reference, model = pair
    many = [window(i, (32, 5)) for i in range(8)]
    together = score_beside(model, reference, many, 16)
    alone = [score_beside(model, reference, [one], 16)[0] for one in many]
    for (a, learned), (b, also) in zip(together, alone, strict=True):
        assert a.nll == pytest.approx(b.nll, abs=1e-4)
        assert a.kl == pytest.approx(b.kl, abs=1e-4)
        assert a.bound == pytest.approx(b.bound, abs=2e-4)
        assert learned.nll == pytest.approx(also.nll, abs=1e-4)
        assert (learned.top_ids[:, 0] == also.top_ids[:, 0]).mean() > 0.95


def test_pieces_are_scored_as_if_each_were_a_window(pair):
    _, model = pair
    [whole] = score_reference(model, [window(8, (24, 1), (17, 5), (3, 2))], 8)
    pieces = window(8, (24, 1), (17, 5), (3, 2)).pieces
    apart = [score_reference(model, [Window(0, (piece,), piece.scored)], 8)[0] for piece in pieces]
    for name in ("nll", "top_ids", "rest_log_mass"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(one, name) for one in apart]))
