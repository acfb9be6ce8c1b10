"""Intervals by betting: they hold at all looks at once, for whatever lies within the bounds."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from pytest_quant.stats import betting

ALPHA = 0.1
ROUNDS = 120
MISSES = 23
"""Of 120 rounds, in which an interval of error 0.1 misses; more have a probability below 0.001."""
LOOKS = (2, 8, 14, 24, 40, 52, 58)
TOTAL = 60

POPULATIONS = {
    "rare-losses": (np.array([1.0] * 3 + [0.0] * 57), -1.0, 1.0),
    "lost-and-gained": (np.array([1.0] * 9 + [-1.0] * 6 + [0.0] * 45), -1.0, 1.0),
    "one-way": (np.array([0.0] * 30 + [1.0] * 30), 0.0, 1.0),
    "rare-ones": (np.array([1.0] + [0.0] * 59), 0.0, 1.0),
    "nearly-all": (np.array([0.0] * 2 + [1.0] * 58), 0.0, 1.0),
    "skewed": (np.minimum(np.random.default_rng(7).exponential(0.05, TOTAL), 1.0), 0.0, 1.0),
    "all-equal": (np.full(TOTAL, 0.25), 0.0, 1.0),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_mean_is_missed_at_any_look_no_more_often_than_alpha(name):
    population, low, high = POPULATIONS[name]
    truth, order, missed = population.mean(), np.random.default_rng(11), 0
    for _ in range(ROUNDS):
        drawn = population[order.permutation(TOTAL)]
        found = [betting.mean(drawn[:n], TOTAL, ALPHA, low=low, high=high) for n in LOOKS]
        missed += any(not one.low - 1e-12 <= truth <= one.high + 1e-12 for one in found)
        assert all(low <= one.low <= one.value <= one.high <= high for one in found)
    assert missed <= MISSES


@pytest.mark.parametrize("lost, gained, solved", [(4, 1, 40), (0, 0, 30), (10, 8, 25), (2, 0, 6)])
def test_ratio_is_missed_at_any_look_no_more_often_than_alpha(lost, gained, solved):
    reference = np.array([1.0] * solved + [0.0] * (TOTAL - solved))
    format = reference.copy()
    format[:lost], format[-gained or TOTAL :] = 0.0, 1.0
    truth, order, missed = format.sum() / reference.sum(), np.random.default_rng(12), 0
    for _ in range(ROUNDS):
        drawn = order.permutation(TOTAL)
        found = [betting.ratio(format[drawn[:n]], reference[drawn[:n]], TOTAL, ALPHA) for n in LOOKS]
        missed += any(not one.low - 1e-9 <= truth <= one.high + 1e-9 for one in found)
        assert all(0.0 <= one.low <= one.value <= one.high for one in found)
    assert missed <= MISSES


def test_what_is_refuted_is_refuted_by_a_fair_game():
    """A single number of one in two: its mean capital is 1 whatever the bets."""
    bets = np.array([[0.3, 1.1, 1.7]])
    expected = np.array([0.5])
    games = [1.0 + np.minimum(bets, betting._CAP / 0.5) * (x - expected[:, None]) for x in (0.0, 1.0)]
    assert np.mean(games) == pytest.approx(1.0)
    assert np.min(games) >= 1.0 - betting._CAP - 1e-12


@pytest.mark.parametrize("name", POPULATIONS)
def test_all_drawn_is_exact(name):
    population, low, high = POPULATIONS[name]
    found = betting.mean(population, TOTAL, ALPHA, low=low, high=high)
    assert found.low == found.value == found.high == math.fsum(population) / TOTAL


def test_ratio_of_all_is_exact():
    found = betting.ratio([1.0, 0.5, 0.0], [1.0, 1.0, 0.25], 3, ALPHA)
    assert found.low == found.value == found.high == 1.5 / 2.25


def test_a_few_equal_units_do_not_claim_to_know_everything():
    found = betting.mean([0.0] * 8, 1000, 0.01, low=-1.0, high=1.0)
    assert found.value == 0.0
    assert found.low < -0.3
    assert found.high > 0.3
    assert found.low == pytest.approx(-found.high)


def test_after_zeros_the_end_is_near_the_best_that_there_is():
    n, alpha = 400, 0.02
    found = betting.mean([0.0] * n, 10**4, alpha, low=0.0, high=1.0)
    best = 1.0 - (alpha / 2.0) ** (1.0 / n)  # Clopper and Pearson, who look once
    assert best < found.high < 2.5 * best
    assert found.low == 0.0


def test_what_the_rest_can_still_be_bounds_the_mean():
    found = betting.mean([0.0, 0.0, 1.0], 4, 0.01, low=0.0, high=1.0)
    assert (found.low, found.high) == (0.25, 0.5)
    paired = betting.mean([1.0, 0.0, 0.0], 4, 0.01, low=-1.0, high=1.0)
    assert (paired.low, paired.high) == (0.0, 0.5)


def test_what_the_rest_can_still_be_bounds_the_ratio():
    found = betting.ratio([1.0, 0.0, 1.0], [1.0, 1.0, 1.0], 4, 0.01)
    assert (found.low, found.high) == (pytest.approx(2 / 4), pytest.approx(3 / 3))


def test_a_ratio_to_nothing_so_far_has_no_upper_end():
    found = betting.ratio([0.0] * 8, [0.0] * 8, 100, 0.01)
    assert (found.low, found.high, found.value) == (0.0, math.inf, 1.0)
    assert betting.ratio([1.0] * 8, [0.0] * 8, 100, 0.01).high == math.inf


def test_a_ratio_and_its_inverse_have_inverse_ends():
    random = np.random.default_rng(3)
    a, b = (random.random(200) < 0.6).astype(float), (random.random(200) < 0.5).astype(float)
    one, other = betting.ratio(a, b, 500, 0.05), betting.ratio(b, a, 500, 0.05)
    assert one.low == pytest.approx(1.0 / other.high)
    assert one.high == pytest.approx(1.0 / other.low)


def test_scaled_values_have_the_scaled_interval():
    random = np.random.default_rng(4)
    values = random.random(120)
    one = betting.mean(values, 300, 0.05, low=0.0, high=1.0)
    other = betting.mean(6.0 * values - 2.0, 300, 0.05, low=-2.0, high=4.0)
    assert (other.low, other.high) == (pytest.approx(6.0 * one.low - 2.0), pytest.approx(6.0 * one.high - 2.0))


def test_mirrored_values_have_the_mirrored_interval():
    values = np.random.default_rng(5).random(90)
    one = betting.mean(values, 300, 0.05, low=0.0, high=1.0)
    other = betting.mean(1.0 - values, 300, 0.05, low=0.0, high=1.0)
    assert (other.low, other.high) == (pytest.approx(1.0 - one.high), pytest.approx(1.0 - one.low))


def test_the_interval_narrows_to_the_mean():
    random = np.random.default_rng(6)
    values = random.choice([-1.0, 0.0, 1.0], p=[0.02, 0.94, 0.04], size=2000)
    found = [betting.mean(values[:n], 2000, 0.01, low=-1.0, high=1.0) for n in (50, 200, 600, 1200, 1800, 1990)]
    widths = [one.high - one.low for one in found]
    assert all(after < before for before, after in pairwise(widths))
    # the normal interval of one look without replacement, of the same error, is no more than twice as narrow
    fixed = 2 * 2.576 * math.sqrt(values.var() / 1200 * (1 - 1200 / 2000))
    assert fixed < widths[3] < 2.0 * fixed


def test_a_large_effect_is_seen_early():
    values = np.array(([1.0] * 4 + [0.0] * 6) * 200)
    drawn = values[np.random.default_rng(8).permutation(2000)]
    assert betting.mean(drawn[:150], 2000, 0.01, low=-1.0, high=1.0).low > 0.02


def test_less_error_makes_a_wider_interval():
    values = np.random.default_rng(9).random(64)
    narrow, wide = (betting.mean(values, 200, alpha, low=0.0, high=1.0) for alpha in (0.1, 0.001))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_detectable_counts_one_unit_more_than_was_seen():
    found = betting.mean([0.0] * 99, 1000, 0.05, low=-1.0, high=1.0)
    assert found.detectable == pytest.approx((1.95996 + 0.84162) * math.sqrt(1.0 / 99 / 1000), rel=1e-4)
    complete = betting.mean([1.0] + [0.0] * 99, 100, 0.05, low=-1.0, high=1.0)
    assert complete.detectable > (1.95996 + 0.84162) * math.sqrt(0.01 / 100)


@pytest.mark.parametrize(
    "values, total, low, high",
    [([], 5, 0.0, 1.0), ([0.5] * 6, 5, 0.0, 1.0), ([1.5], 5, 0.0, 1.0), ([-0.5], 5, 0.0, 1.0), ([math.nan], 5, 0, 1)],
)
def test_what_is_no_sample_is_refused(values, total, low, high):
    with pytest.raises(ValueError, match=r"drawn|within"):
        betting.mean(values, total, 0.01, low=low, high=high)


def test_ratios_that_are_none_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        betting.ratio([1.0], [1.0, 1.0], 5, 0.01)
    with pytest.raises(ValueError, match="are 0"):
        betting.ratio([1.0, 0.0], [0.0, 0.0], 2, 0.01)
