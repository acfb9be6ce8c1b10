"""What is known of a divergence from two lists of most probable tokens: never more than the divergence itself."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_quant.engines.vllm.scoring import compared, known_kl, lead, looked_up, top_of
from pytest_quant.reference.bound import coarse_kl


def distributions(rng, rows, size, spread):
    logits = rng.normal(size=(rows, size)) * spread
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def listed(log_probs, labels, count):
    """As an engine lists them: the token that came, then the most probable ones."""
    best = np.argsort(-log_probs, axis=1)[:, :count]
    ids = np.column_stack([labels, best])
    return ids.astype(np.uint32), np.take_along_axis(log_probs, ids, 1).astype(np.float32)


@pytest.mark.parametrize("kept", [1, 3, 8, 16])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_the_bound_is_never_above_the_divergence(kept, spread):
    rng = np.random.default_rng(kept)
    p, q = distributions(rng, 200, 32, spread), distributions(rng, 200, 32, spread)
    labels = rng.integers(0, 32, 200)
    _, top = top_of(*listed(p, labels, 8))
    found = compared(*listed(q, labels, kept), top.ids)
    whole = (np.exp(p) * (p - q)).sum(-1)
    bound = known_kl(top.log_probs, top.rest, found.at_top)
    assert (bound <= whole + 2e-3 * spread).all()  # the reference is kept in float16
    assert (bound >= 0).all()
    exact = known_kl(np.take_along_axis(p, top.ids.astype(int), 1), top.rest, found.at_top)
    assert (exact <= whole + 1e-5).all()
    everything = np.take_along_axis(q, top.ids.astype(int), 1)
    assert (bound <= coarse_kl(top.log_probs, top.rest, everything) + 1e-6).all()
    if kept < 16 and spread > 0.5:
        assert np.isnan(found.at_top).any()


def test_the_bound_is_the_usual_one_where_all_is_known():
    rng = np.random.default_rng(0)
    p, q = distributions(rng, 50, 32, 2.0), distributions(rng, 50, 32, 2.0)
    _, top = top_of(*listed(p, np.zeros(50, int), 8))
    at_top = np.take_along_axis(q, top.ids.astype(int), 1)
    assert (known_kl(top.log_probs, top.rest, at_top) == coarse_kl(top.log_probs, top.rest, at_top)).all()


def test_nothing_known_is_no_divergence():
    top = np.log(np.array([[0.5, 0.25]]))
    assert known_kl(top, np.log([0.25]), np.full((1, 2), np.nan)) == pytest.approx(0.0, abs=1e-6)


def test_a_token_that_is_not_listed_is_not_known():
    ids = np.array([[7, 1, 2], [9, 3, 4]], dtype=np.uint32)
    log_probs = np.array([[-5.0, -0.5, -1.0], [-0.1, -0.1, -3.0]], dtype=np.float32)
    wanted = np.array([[2, 9], [9, 5]], dtype=np.uint32)
    found = looked_up(wanted, ids, log_probs)
    assert found[0, 0] == np.float32(-1.0)
    assert found[1, 0] == np.float32(-0.1)
    assert np.isnan(found[[0, 1], [1, 1]]).all()
    # equally probable counts as the most probable one
    assert lead(ids, log_probs, np.array([2, 9], dtype=np.uint32)).tolist() == [False, True]
    assert lead(ids, log_probs, np.array([1, 8], dtype=np.uint32)).tolist() == [True, False]
