"""Confidence sequences of a finite population: what they say by hand, and how often they hold in simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quant.stats import sequence
from pytest_quant.stats.sequence import MIN_WINDOWS, Estimate


def normal(count: int) -> np.ndarray:
    """As regular as a sample can be: the quantiles themselves."""
    return np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])


def skewed(count: int) -> np.ndarray:
    return -np.log1p(-(np.arange(count) + 0.5) / count)


def heavy(count: int) -> np.ndarray:
    """A t distribution with 5 degrees of freedom."""
    return np.random.default_rng(5).standard_t(5, count)


def two_points(count: int) -> np.ndarray:
    return (np.arange(count) % 2).astype(float)


def looks(total: int) -> list[int]:
    """Every one at first, where most goes wrong; then ever fewer."""
    return [n for n in range(MIN_WINDOWS, total) if n < 24 or n % 8 == 0]


def ever_outside(
    population: np.ndarray, alpha: float, orders: int, weights: np.ndarray | None = None, seed: int = 1
) -> float:
    """Share of random orders in which some look's interval excludes the population's mean."""
    rng = np.random.default_rng(seed)
    shares = np.ones(len(population)) if weights is None else weights
    truth = float(np.average(population, weights=shares))
    missed = 0
    for _ in range(orders):
        order = rng.permutation(len(population))
        values, counted = population[order], shares[order]
        for n in looks(len(population)):
            found = sequence.mean(values[:n], counted[:n], len(population), alpha)
            if not found.low <= truth <= found.high:
                missed += 1
                break
    return missed / orders


def at_most(alpha: float, orders: int) -> float:
    """What a share that is ``alpha`` exceeds once in a thousand simulations."""
    return alpha + 3.1 * math.sqrt(alpha * (1 - alpha) / orders)


def test_all_windows_give_the_mean_itself():
    found = sequence.mean([1.0, 2.0, 6.0], [1, 1, 1], 3, 0.05)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_a_window_counts_by_its_weight():
    assert sequence.mean([1.0, 5.0], [3, 1], 2, 0.05).value == pytest.approx(2.0, rel=1e-14)


def test_influences_by_hand():
    # mean (3 x 1 + 1 x 5) / 4 = 2; distances -1 and 3, times 3 / 2 and 1 / 2
    assert sequence.influences([1.0, 5.0], [3, 1]) == pytest.approx([-1.5, 1.5], rel=1e-14)


def test_one_window_of_many_says_nothing():
    found = sequence.mean([3.0], [511], 10, 0.05)
    assert (found.value, found.low, found.high) == (3.0, -math.inf, math.inf)
    assert found.detectable == math.inf


def test_one_window_of_one_is_exact():
    found = sequence.mean([3.0], [511], 1, 0.05)
    assert (found.low, found.high) == (3.0, 3.0)


@pytest.mark.parametrize("values, weights", [([], []), ([1.0], []), ([1.0, 2.0], [1.0]), ([1.0], [1.0, 1.0])])
def test_a_weight_for_each_window_or_an_error(values, weights):
    with pytest.raises(ValueError, match="a weight for each of one or more windows"):
        sequence.mean(values, weights, 10, 0.05)


def test_windows_that_do_not_differ_leave_no_width():
    found = sequence.mean([2.0] * 9, [1] * 9, 20, 0.01)
    assert (found.low, found.high) == (2.0, 2.0)


def test_a_least_variance_keeps_a_width():
    found = sequence.mean([2.0] * 9, [1] * 9, 20, 0.01, least_variance=0.04)
    spread = sequence.mean([2.0 + 0.2 * s for s in (1, -1) * 4] + [2.0], [1] * 9, 20, 0.01)
    assert found.high - found.low == pytest.approx(spread.high - spread.low, rel=1e-12)


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=30),
    st.floats(-50, 50),
    st.floats(0.01, 50),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_mean_moves_and_scales_with_the_scores_and_forgets_order_and_unit_of_weights(values, move, scale, seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 500, len(values)).astype(float)
    one = sequence.mean(values, weights, 40, 0.05)
    order = rng.permutation(len(values))
    other = sequence.mean(np.array(values)[order] * scale + move, weights[order] * 7, 40, 0.05)
    close = {"rel": 1e-6, "abs": 1e-6 * (1 + scale)}
    for name in ("value", "low", "high"):
        assert getattr(other, name) == pytest.approx(getattr(one, name) * scale + move, **close)
    assert other.detectable == pytest.approx(one.detectable * scale, **close)
    assert one.low <= one.value <= one.high


def test_not_finite_is_never_hidden():
    for bad in (math.nan, math.inf):
        with np.errstate(all="ignore"):
            found = sequence.mean([1.0, bad, 2.0], [1, 1, 1], 9, 0.05)
        assert not math.isfinite(found.value)


def test_the_width_shrinks_with_every_two_windows():
    widths = [sequence.half_width(np.array([1.0, -1.0] * k), 100, 0.01) for k in range(2, 51)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 0.0
    assert widths[-2] > 0.0


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.001])
@pytest.mark.parametrize("drawn", [8, 16, 64])
def test_at_the_ends_the_normal_mixture_has_grown_to_one_over_alpha(alpha, drawn):
    """The likelihood of each effect size, over that of none, on average over the mixture; the variance is unknown."""
    errors = np.array([1.0, -1.0] * (drawn // 2))
    half = sequence.half_width(errors, 10**12, alpha)
    t_square = half**2 * drawn / (errors @ errors / (drawn - 1))
    spread = -2.0 * math.log(alpha)
    wide = 1.0 + drawn * (spread + math.log(spread) + 1.0) / sequence.TUNED_FOR
    grown = ((1.0 + t_square / (drawn - 1)) / (1.0 + t_square / (drawn - 1) / wide)) ** (drawn / 2) / math.sqrt(wide)
    assert grown == pytest.approx(1.0 / alpha, rel=1e-6)


@pytest.mark.parametrize("alpha, few, more", [(0.05, 5, 6), (0.01, 6, 7), (0.0001, 8, 9)])
def test_so_few_windows_say_nothing_that_even_equal_ones_have_no_width(alpha, few, more):
    for errors in (np.zeros(few), np.ones(few)):
        assert sequence.half_width(errors, 100, alpha) == math.inf
    assert sequence.half_width(np.zeros(more), 100, alpha) == 0.0
    assert sequence.half_width(np.zeros(few), few, alpha) == 0.0


def test_a_larger_population_is_known_less():
    errors = np.array([1.0, -1.0] * 8)
    widths = [sequence.half_width(errors, total, 0.01) for total in (16, 17, 20, 50, 1000)]
    assert widths == sorted(widths)
    assert widths[0] == 0.0


@pytest.mark.parametrize("drawn", [8, 16, 40])
def test_the_width_shrinks_as_alpha_grows(drawn):
    errors = np.array([1.0, -1.0] * (drawn // 2))
    widths = [sequence.half_width(errors, 100, alpha) for alpha in (0.2, 0.1, 0.05, 0.01, 0.001, 1e-6)]
    assert widths == sorted(widths)
    assert len(set(widths)) == len(widths)


@pytest.mark.parametrize("drawn", [8, 16, 32, 64, 256])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_looking_always_costs_more_than_looking_once(drawn, alpha):
    """Wider than the normal interval of a single look, and not vacuously so once a few dozens were seen."""
    errors = np.array([1.0, -1.0] * (drawn // 2))
    variance = drawn / (drawn - 1) / drawn
    once = NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(variance)
    found = sequence.half_width(errors, 10**9, alpha)
    assert once < found
    assert drawn < 32 or found < 2 * once


@pytest.mark.parametrize("count", [40, 120])
@pytest.mark.parametrize("make", [normal, heavy, two_points])
def test_regular_populations_are_ever_missed_as_seldom_as_alpha_says(make: Callable, count):
    orders = 1200
    assert ever_outside(make(count), 0.01, orders) <= at_most(0.01, orders)


@pytest.mark.parametrize("count", [40, 200])
def test_a_normal_population_at_a_larger_alpha(count):
    orders = 1500
    assert ever_outside(normal(count), 0.05, orders) <= at_most(0.05, orders)


def test_weighted_windows_are_ever_missed_as_seldom_as_alpha_says():
    rng = np.random.default_rng(3)
    weights = rng.integers(200, 600, 60).astype(float)
    orders = 800
    assert ever_outside(rng.permutation(normal(60)), 0.01, orders, weights) <= at_most(0.01, orders)


@pytest.mark.parametrize("alpha, most", [(0.05, 0.15), (0.01, 0.09)])
def test_a_skewed_population_is_missed_more_often_but_not_by_much(alpha, most):
    """Eight windows of an exponential distribution do not yet have a mean that behaves as means do."""
    assert ever_outside(skewed(100), alpha, 400) <= most


def test_the_interval_is_not_vacuous():
    """A difference of one standard deviation is seen long before the end."""
    rng = np.random.default_rng(0)
    found = [sequence.mean(rng.normal(1.0, 1.0, 40), [1] * 40, 400, 0.01) for _ in range(100)]
    assert sum(estimate.low > 0.0 for estimate in found) >= 95


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("total", [100, 400])
def test_a_sample_sees_such_a_difference_four_times_in_five(alpha, total):
    rng = np.random.default_rng(11)
    pilot = rng.normal(0.0, 0.7, 4000)
    smallest = sequence.detectable(pilot - pilot.mean(), total, alpha)
    samples = rng.normal(smallest, 0.7, (4000, total))
    z = samples.mean(1) / samples.std(1, ddof=1) * math.sqrt(total)
    assert np.mean(np.abs(z) > NormalDist().inv_cdf(1 - alpha / 2)) == pytest.approx(0.8, abs=0.03)


def test_four_times_the_windows_see_half_of_it():
    errors = normal(30)
    assert sequence.detectable(errors, 400, 0.01) == pytest.approx(sequence.detectable(errors, 100, 0.01) / 2)


def test_one_window_detects_nothing():
    assert sequence.detectable(np.zeros(1), 10, 0.01) == math.inf


def test_what_is_detectable_is_told_where_all_is_known_too():
    assert sequence.mean([1.0, 2.0, 4.0], [1, 1, 1], 3, 0.01).detectable > 0.0


def test_all_tokens_of_all_windows_count_alike():
    # 1 of 1 and 1 of 9: 2 of 10, where the mean of the windows' shares is 0.56
    found = sequence.share([1, 1], [1, 9], 2, 0.01)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2), rel=1e-14)


def test_no_miss_so_far_is_not_no_miss_at_all():
    found = sequence.share([16] * 10, [16] * 10, 100, 0.01)
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.9 < found.low < 1.0


def test_no_hit_so_far_is_not_no_hit_at_all():
    found = sequence.share([0] * 10, [16] * 10, 100, 0.01)
    assert (found.value, found.low) == (0.0, 0.0)
    assert 0.0 < found.high < 0.1


def test_all_or_nothing_mirror_each_other():
    hit, missed = (sequence.share([k * 16] * 10, [16] * 10, 100, 0.01) for k in (1, 0))
    assert 1.0 - hit.low == pytest.approx(missed.high, rel=1e-9)


def test_no_miss_at_all_is_exact():
    found = sequence.share([16] * 10, [16] * 10, 10, 0.01)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=20), st.integers(0, 30))
@settings(max_examples=80, deadline=None)
def test_a_share_stays_a_share(windows, more):
    hits, tokens = [min(hit, size) for hit, size in windows], [size for _, size in windows]
    found = sequence.share(hits, tokens, len(windows) + more, 0.01)
    assert 0.0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1.0
    assert found.value == pytest.approx(sum(hits) / sum(tokens), rel=1e-12)
    assert more or found.low == found.high == found.value


@pytest.mark.parametrize("p", [0.5, 0.9, 0.97])
def test_the_interval_of_a_share_holds_the_population(p):
    rng = np.random.default_rng(7)
    sizes = rng.integers(20, 60, 80)
    hits = rng.binomial(sizes, p)
    truth, missed = hits.sum() / sizes.sum(), 0
    for _ in range(300):
        order = rng.permutation(80)
        ever = (sequence.share(hits[order[:n]], sizes[order[:n]], 80, 0.01) for n in looks(80))
        missed += any(not found.low <= truth <= found.high for found in ever)
    assert missed / 300 <= at_most(0.01, 300)


@pytest.mark.parametrize("total", [10, 100])
def test_windows_without_a_miss_do_not_claim_to_detect_everything(total):
    """160 tokens without a miss: as if one of 162 were missed, in independent tokens."""
    guess = 161 / 162
    z = NormalDist().inv_cdf(0.995) + NormalDist().inv_cdf(0.8)
    found = sequence.share([16] * 10, [16] * 10, total, 0.01).detectable
    assert found == pytest.approx(z * math.sqrt(guess * (1 - guess) / (16 * total)), rel=1e-12)


def test_windows_that_differ_more_than_tokens_do_detect_what_they_can():
    found = sequence.share([16, 8] * 5, [16] * 10, 100, 0.01)
    assert found.detectable == sequence.mean([1.0, 0.5] * 5, [16] * 10, 100, 0.01).detectable


LEVELS = (0.01, 0.25, 0.5, 0.9, 0.99, 0.999)


@pytest.fixture(scope="module")
def population() -> list[np.ndarray]:
    """Windows of unequal length whose tokens share something."""
    rng = np.random.default_rng(2)
    return [rng.exponential(rng.lognormal(0, 0.2), rng.integers(24, 40)).astype(np.float32) for _ in range(60)]


@pytest.mark.parametrize("level", LEVELS)
def test_all_windows_give_numpys_quantile(population, level):
    tokens = np.concatenate(population).astype(float)
    found = sequence.quantile(population, level, len(population), 0.01)
    assert found == Estimate(*[pytest.approx(float(np.quantile(tokens, level)), rel=1e-12)] * 3)


@pytest.mark.parametrize("level", LEVELS)
def test_order_says_nothing_of_a_quantile(population, level):
    rng = np.random.default_rng(3)
    some = population[:20]
    mixed = [rng.permutation(some[i]) for i in rng.permutation(20)]
    assert sequence.quantile(mixed, level, 60, 0.01) == sequence.quantile(some, level, 60, 0.01)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.0]), min_size=1, max_size=9), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_value_is_inside_even_with_ties(lists):
    windows = [np.array(tokens) for tokens in lists]
    for level in LEVELS:
        found = sequence.quantile(windows, level, 20, 0.05)
        assert found.low <= found.value <= found.high
        assert found.value == pytest.approx(float(np.quantile(np.concatenate(windows), level)))


def test_an_end_of_a_quantile_is_open_where_too_few_tokens_were_seen(population):
    few = population[:8]
    top, bottom = (sequence.quantile(few, level, 60, 0.01) for level in (0.999, 0.001))
    assert top.high == math.inf
    assert math.isfinite(top.low)
    assert bottom.low == -math.inf
    assert math.isfinite(bottom.high)
    assert sequence.quantile(population[:1], 0.5, 60, 0.01) == Estimate(
        pytest.approx(float(np.median(population[0]))), -math.inf, math.inf
    )


def test_the_median_is_bounded_on_both_sides(population):
    found = sequence.quantile(population[:16], 0.5, 60, 0.01)
    assert 0.0 < found.low < found.value < found.high < 2.0


def test_tokens_that_do_not_differ():
    found = sequence.quantile([np.full(30, 2.0)] * 40, 0.5, 60, 0.01)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_interval_of_a_quantile_holds_the_population(population, level):
    rng = np.random.default_rng(4)
    truth = float(np.quantile(np.concatenate(population).astype(float), level))
    orders, missed = 100, 0
    for _ in range(orders):
        order = rng.permutation(60)
        ever = (sequence.quantile([population[i] for i in order[:n]], level, 60, 0.01) for n in (8, 12, 20, 40))
        missed += any(not found.low <= truth <= found.high for found in ever)
    assert missed / orders <= at_most(0.01, orders)
