"""Paired differences of windows: known answers, their error, and what may not be asked."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_quant.stats.paired import PairedDifference, paired_difference, weighted_mean


def test_equal_windows_by_hand():
    # differences 1, 2, 6: mean 3, sample variance ((-2)² + (-1)² + 3²) / 2 = 7
    found = paired_difference([2.0, 4.0, 9.0], [1.0, 2.0, 3.0], [511, 511, 511])
    assert found.mean == pytest.approx(3.0, rel=1e-14)
    assert found.standard_error == pytest.approx(math.sqrt(7 / 3), rel=1e-14)
    assert found.windows == 3


def test_a_window_counts_by_its_tokens():
    # (3 x 1 + 1 x 5) / 4 = 2, where the plain mean would be 3
    assert paired_difference([1.0, 5.0], [0.0, 0.0], [3, 1]).mean == pytest.approx(2.0, rel=1e-14)


def test_mean_is_that_of_single_tokens():
    rng = np.random.default_rng(3)
    windows = [(rng.normal(3, 1, n), rng.normal(2.9, 1, n)) for n in (1, 7, 64, 511, 23)]
    a, b = ([float(pair[i].mean()) for pair in windows] for i in (0, 1))
    found = paired_difference(a, b, [len(pair[0]) for pair in windows])
    every = np.concatenate([x - y for x, y in windows])
    assert found.mean == pytest.approx(every.mean(), rel=1e-12)
    assert weighted_mean(a, [len(pair[0]) for pair in windows]) == pytest.approx(
        np.concatenate([x for x, _ in windows]).mean(), rel=1e-12
    )


def test_the_sign_is_a_minus_b():
    assert paired_difference([1.0, 1.0], [3.0, 4.0], [5, 5]).mean == -2.5


def test_scaling_all_tokens_changes_nothing():
    a, b = [3.1, 2.9, 3.3], [3.0, 3.0, 3.0]
    one, many = paired_difference(a, b, [1, 2, 3]), paired_difference(a, b, [100, 200, 300])
    assert one.mean == pytest.approx(many.mean, rel=1e-14)
    assert one.standard_error == pytest.approx(many.standard_error, rel=1e-14)


def test_the_same_scores_differ_by_exactly_zero():
    scores = [3.123456789, 2.987654321, 0.1 + 0.2]
    assert paired_difference(scores, list(scores), [511, 511, 37]) == PairedDifference(0.0, 0.0, 3)


def test_pairing_removes_what_windows_share():
    rng = np.random.default_rng(0)
    base = rng.normal(3.0, 0.5, 100)
    found = paired_difference(list(base + 0.01), list(base), [511] * 100)
    assert found.mean == pytest.approx(0.01, rel=1e-9)
    assert found.standard_error < 1e-12


def test_one_window_has_no_error_to_tell():
    assert paired_difference([2.0], [1.5], [511]) == PairedDifference(0.5, 0.0, 1)


def test_the_standard_error_covers():
    """mean ± 1.96 standard errors holds the truth in about 95 % of samples, neither much more nor less."""
    rng = np.random.default_rng(42)
    runs, truth, held = 2000, 0.02, 0
    for _ in range(runs):
        base = rng.normal(3.0, 0.4, 60)
        found = paired_difference(list(base + rng.normal(truth, 0.05, 60)), list(base), [511] * 60)
        held += abs(found.mean - truth) <= 1.96 * found.standard_error
    assert 0.93 < held / runs < 0.965


def test_the_standard_error_of_unequal_windows_covers():
    """One window of many tokens and many of few, as a strided protocol cuts them."""
    rng = np.random.default_rng(42)
    runs, held = 2000, 0
    tokens = [320] + [16] * 60
    for _ in range(runs):
        differences = [float(rng.normal(0.0, 1.0 / math.sqrt(n))) for n in tokens]
        found = paired_difference(differences, [0.0] * len(tokens), tokens)
        held += abs(found.mean) <= 1.96 * found.standard_error
    assert 0.90 < held / runs < 0.98


@pytest.mark.parametrize(
    "a, b, tokens",
    [([], [], []), ([1.0], [1.0, 2.0], [5]), ([1.0, 2.0], [1.0], [5, 5]), ([1.0, 2.0], [1.0, 2.0], [5])],
    ids=["empty", "more of b", "more of a", "tokens missing"],
)
def test_scores_of_other_windows_are_refused(a, b, tokens):
    with pytest.raises(ValueError, match="same windows, and at least one"):
        paired_difference(a, b, tokens)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_never_hidden(bad):
    assert not math.isfinite(paired_difference([1.0, bad], [1.0, 1.0], [5, 5]).mean)
    assert not math.isfinite(weighted_mean([1.0, bad], [5, 5]))


def test_weighted_mean_by_hand():
    assert weighted_mean([1.0, 2.0, 10.0], [1, 2, 1]) == 3.75


def test_weighted_mean_of_other_windows_is_refused():
    with pytest.raises((ValueError, TypeError)):
        weighted_mean([1.0, 2.0], [5])
