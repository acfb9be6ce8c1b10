"""Ratio of medians: known answers by enumerating every resample, coverage on simulated rounds, errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pytest_quant.stats.ratio import ratio_of_medians


def every_resample(top: list[float], bottom: list[float]) -> list[float]:
    """The bootstrap distribution itself, not a sample of it."""
    picks = itertools.product(range(len(top)), repeat=len(top))
    return sorted(float(np.median([top[i] for i in p]) / np.median([bottom[i] for i in p])) for p in picks)


def test_the_value_is_the_ratio_of_medians():
    # medians 4 and 2; the median of the ratios would be 1.5, the ratio of the means 2.04
    value, low, high = ratio_of_medians([3.0, 4.0, 90.0], [2.0, 40.0, 1.0], 0.9)
    assert value == 2.0
    assert low <= value <= high


def test_even_rounds_take_the_middle():
    assert ratio_of_medians([1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0], 0.9)[0] == 3.0


def test_two_rounds_by_hand():
    # resamples give 1, 2, 2, 3 with a quarter each
    assert ratio_of_medians([1.0, 3.0], [1.0, 1.0], 0.90) == (2.0, 1.0, 3.0)
    assert ratio_of_medians([1.0, 3.0], [1.0, 1.0], 0.40) == (2.0, 2.0, 2.0)


def test_three_rounds_by_hand():
    # the lowest is the median of a resample in 7 of 27, 26 %
    assert ratio_of_medians([1.0, 2.0, 4.0], [1.0] * 3, 0.60) == (2.0, 1.0, 4.0)
    assert ratio_of_medians([1.0, 2.0, 4.0], [1.0] * 3, 0.40) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
def test_five_rounds_against_every_resample(confidence):
    top, bottom = [10.1, 11.7, 9.2, 10.9, 14.3], [5.0, 5.6, 4.1, 6.3, 5.2]
    every = every_resample(top, bottom)
    _, low, high = ratio_of_medians(top, bottom, confidence)
    tail = (1 - confidence) / 2

    def near(share: float) -> float:
        return every[min(len(every) - 1, max(0, round(share * (len(every) - 1))))]

    # 4,000 resamples place a quantile to about 4 standard errors of a share of 4,000
    slack = 4 * math.sqrt(tail * (1 - tail) / 4000)
    assert near(tail - slack) <= low <= near(tail + slack)
    assert near(1 - tail - slack) <= high <= near(1 - tail + slack)


def test_rounds_are_resampled_as_pairs():
    """The machine slows both by the same factor in each round: then the ratio is known exactly."""
    moments = [1.0, 1.3, 4.0, 0.2, 2.5]
    value, low, high = ratio_of_medians([3 * m for m in moments], [2 * m for m in moments], 0.99)
    assert (value, low, high) == pytest.approx((1.5, 1.5, 1.5), rel=1e-12)


def test_noise_of_one_side_widens_it():
    quiet = ratio_of_medians([2.0, 2.01, 1.99, 2.0, 2.02], [1.0] * 5, 0.95)
    loud = ratio_of_medians([2.0, 2.5, 1.5, 2.2, 1.8], [1.0] * 5, 0.95)
    assert (quiet[1], quiet[2]) == pytest.approx((1.99, 2.02))
    assert (loud[1], loud[2]) == pytest.approx((1.5, 2.5))


def test_one_wild_round_of_seven_does_not_decide():
    value, low, high = ratio_of_medians([2.0, 2.0, 2.1, 1.9, 2.0, 2.05, 900.0], [1.0] * 7, 0.90)
    assert value == 2.0
    assert low >= 1.9
    assert high <= 2.1


def test_more_confidence_is_never_narrower():
    rng = np.random.default_rng(5)
    top, bottom = list(rng.lognormal(1, 0.2, 9)), list(rng.lognormal(0, 0.2, 9))
    intervals = [ratio_of_medians(top, bottom, c)[1:] for c in (0.5, 0.8, 0.9, 0.95, 0.99)]
    for inner, outer in itertools.pairwise(intervals):
        assert outer[0] <= inner[0] <= inner[1] <= outer[1]
    assert intervals[0][1] - intervals[0][0] < intervals[-1][1] - intervals[-1][0]


def test_the_same_rounds_always_give_the_same_answer():
    top, bottom = [3.1, 2.9, 3.3, 3.0, 3.2], [1.0, 1.1, 0.9, 1.0, 1.05]
    np.random.seed(1)
    first = ratio_of_medians(top, bottom, 0.95)
    np.random.seed(2)
    assert ratio_of_medians(top, bottom, 0.95) == first


@pytest.mark.parametrize("rounds, confidence, least", [(7, 0.90, 0.86), (15, 0.90, 0.86), (25, 0.95, 0.92)])
def test_coverage(rounds, confidence, least):
    """Of simulated runs with a known ratio, the interval holds it as often as it says, and is not vacuously wide."""
    rng = np.random.default_rng(rounds)
    runs, truth, held, widths = 400, 1.5, 0, []
    for _ in range(runs):
        top = truth * rng.lognormal(0, 0.05, rounds)
        bottom = rng.lognormal(0, 0.05, rounds)
        _, low, high = ratio_of_medians(list(top), list(bottom), confidence)
        held += low <= truth <= high
        widths.append(high - low)
    assert held / runs >= least
    # the standard error of a median is 1.2533 sigma / sqrt(n), of a ratio of two sqrt(2) times that
    expected = 2 * {0.90: 1.645, 0.95: 1.96}[confidence] * truth * 0.05 * 1.2533 * math.sqrt(2 / rounds)
    assert 0.6 * expected < np.mean(widths) < 1.8 * expected


def test_the_wrong_ratio_is_mostly_outside():
    rng = np.random.default_rng(8)
    outside = 0
    for _ in range(100):
        top, bottom = 1.5 * rng.lognormal(0, 0.05, 7), rng.lognormal(0, 0.05, 7)
        _, low, high = ratio_of_medians(list(top), list(bottom), 0.99)
        outside += not low <= 1.0 <= high
    assert outside == 100


@pytest.mark.parametrize(
    "top, bottom",
    [([], []), ([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0], [1.0, 2.0]), ([1.0, 2.0, 3.0], [1.0, 2.0])],
)
def test_too_few_rounds_are_refused(top, bottom):
    with pytest.raises(ValueError, match="two or more rounds of both"):
        ratio_of_medians(top, bottom, 0.9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_round_without_a_number_gives_no_finite_interval(bad):
    with np.errstate(all="ignore"):
        found = ratio_of_medians([bad, bad, bad], [1.0, 1.0, 1.0], 0.9)
    assert not any(math.isfinite(number) for number in found)
