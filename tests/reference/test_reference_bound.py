"""The divergence over the top tokens and the rest: a lower bound, whatever the distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quant.reference import FLOOR, coarse_kl


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def coarse(log_p, top_k):
    """Ids, log-probabilities and the rest's log-mass, each (T, ...)."""
    ids = np.argsort(-log_p, axis=1, kind="stable")[:, :top_k]
    others = np.exp(log_p)
    np.put_along_axis(others, ids, 0.0, axis=1)
    with np.errstate(divide="ignore"):
        rest = np.maximum(np.log(others.sum(axis=1)), FLOOR)
    return ids, np.take_along_axis(log_p, ids, axis=1), rest


def full_kl(log_p, log_q):
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


@st.composite
def pairs(draw):
    """log p, log q (T, V) and K."""
    vocabulary = draw(st.integers(2, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 40.0]))
    near = draw(st.sampled_from([0.0, 1e-3, 0.3, 3.0, 40.0]))
    logits = random.normal(size=(4, vocabulary)) * spread
    other = logits + random.normal(size=(4, vocabulary)) * near
    return log_softmax(logits), log_softmax(other), draw(st.integers(1, vocabulary))


@given(pairs())
@settings(deadline=None, max_examples=300)
def test_a_lower_bound_that_is_never_negative(pair) -> None:
    log_p, log_q, top_k = pair
    ids, top, rest = coarse(log_p, top_k)
    bound = coarse_kl(top, rest, np.take_along_axis(log_q, ids, axis=1))
    assert bound.shape == (4,)
    assert (bound >= 0).all()
    assert (bound <= full_kl(log_p, log_q) + 1e-9).all()


@given(pairs())
@settings(deadline=None)
def test_with_the_whole_vocabulary_it_is_the_divergence(pair) -> None:
    log_p, log_q, _ = pair
    ids, top, rest = coarse(log_p, log_p.shape[1])
    bound = coarse_kl(top, rest, np.take_along_axis(log_q, ids, axis=1))
    assert bound == pytest.approx(full_kl(log_p, log_q), rel=1e-9, abs=1e-9)


@given(pairs())
@settings(deadline=None, max_examples=300)
def test_as_it_is_stored_it_stays_a_bound_up_to_rounding(pair) -> None:
    log_p, log_q, top_k = pair
    ids, top, rest = coarse(log_p, top_k)
    at_top = np.take_along_axis(log_q, ids, axis=1)
    bound = coarse_kl(top.astype(np.float16), rest.astype(np.float32), at_top.astype(np.float32))
    assert (bound >= 0).all()
    # p moves by at most half a unit of float16 at its logarithm: 2**-11 of it; the terms it weighs move likewise
    moved = np.exp(log_p) * np.abs(log_p) * 2.0**-10
    allowed = (moved * (1 + np.abs(log_p - log_q))).sum(axis=1) * 2 + 2e-6
    assert (bound <= full_kl(log_p, log_q) * (1 + 1e-2) + allowed).all()


@given(pairs())
@settings(deadline=None, max_examples=300)
def test_the_reference_against_its_own_file_is_near_zero(pair) -> None:
    log_p, _, top_k = pair
    _, top, rest = coarse(log_p, top_k)
    bound = coarse_kl(top.astype(np.float16), rest.astype(np.float32), top.astype(np.float32))
    assert (bound >= 0).all()
    assert (bound < 3e-6).all()  # the worst case: every rounding error as large as it can be
    assert np.mean(bound) < 2e-6


@pytest.mark.parametrize("vocabulary, spread", [(1000, 0.3), (1000, 2.0), (20_000, 2.5)])
def test_the_floor_of_a_usual_vocabulary_is_below_a_millionth_of_a_nat(vocabulary, spread) -> None:
    log_p = log_softmax(np.random.default_rng(0).normal(size=(50, vocabulary)) * spread)
    _, top, rest = coarse(log_p, 64)
    bound = coarse_kl(top.astype(np.float16), rest.astype(np.float32), top.astype(np.float32))
    assert bound.max() < 1e-6


def test_by_hand() -> None:
    p, q = np.array([0.5, 0.25]), np.array([0.25, 0.25])
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.25 / 0.5)
    assert coarse_kl(np.log([p]), np.log([0.25]), np.log([q])) == pytest.approx(expected)


def test_one_hot_against_a_tiny_probability() -> None:
    bound = coarse_kl(np.float16([[0.0, FLOOR]]), np.float32([FLOOR]), np.float32([[-100.0, -0.5]]))
    assert bound == pytest.approx(100.0)


def test_a_single_token() -> None:
    assert coarse_kl(np.log([[0.5]]), np.log([0.5]), np.log([[0.5]])) == pytest.approx(0.0, abs=1e-12)
    assert coarse_kl(np.log([[0.5]]), np.log([0.5]), np.log([[0.1]])) == pytest.approx(
        0.5 * np.log(5) + 0.5 * np.log(0.5 / 0.9)
    )


def test_q_that_leaves_nothing_for_the_others_stays_finite() -> None:
    bound = coarse_kl(np.log([[0.5]]), np.log([0.5]), np.float32([[0.0]]))
    assert 0 < bound[0] < 0.5 * 20 * np.log(2)


def test_probabilities_that_exceed_one_by_rounding_are_no_error() -> None:
    assert coarse_kl(np.float32([[1e-7]]), np.float32([-20.0]), np.float32([[1e-7]])) == pytest.approx(0.0, abs=1e-6)


def test_no_probability_in_q_is_infinite_and_nan_stays_nan() -> None:
    p, rest = np.log([[0.5], [0.5], [0.5]]), np.log([0.5] * 3)
    bound = coarse_kl(p, rest, np.array([[-np.inf], [np.nan], [np.log(0.5)]]))
    assert bound[0] == np.inf
    assert np.isnan(bound[1])
    assert bound[2] == 0
    assert coarse_kl(np.float16([[0.0, FLOOR]]), np.float32([FLOOR]), np.array([[0.0, -np.inf]])) == 0
    assert np.isnan(coarse_kl(np.float16([[0.0, FLOOR]]), np.float32([FLOOR]), np.array([[0.0, np.nan]])))


def test_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="not logits"):
        coarse_kl(np.log([[0.5, 0.25]]), np.log([0.25]), np.array([[3.0, 2.0]]))


@pytest.mark.parametrize(
    "shapes", [((2, 3), (2,), (2, 2)), ((2, 3), (3,), (2, 3)), ((2, 0), (2,), (2, 0)), ((2,),) * 3]
)
def test_shapes_that_do_not_fit_are_refused(shapes) -> None:
    with pytest.raises(ValueError, match="are not"):
        coarse_kl(*(np.full(shape, -1.0) for shape in shapes))
