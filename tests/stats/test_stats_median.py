"""The median's interval: exact probabilities of ever missing, its ranks, coverage on simulated rounds, errors."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.stats.median import fewest_values, median_interval

INF = math.inf


def rank(count: int, alpha: float) -> int:
    """Which of ``count`` values, from either end, bounds the interval; 0 where none does."""
    _, low, high = median_interval([float(value) for value in range(count)], alpha)
    if low == -INF:
        assert high == INF
        return 0
    assert low + high == count - 1, "as far from one end as from the other"
    return int(low) + 1


def wealth(below: int, count: int) -> Fraction:
    """What Krichevsky's and Trofimov's bets make of 1, as they are played: after each sign the next is staked by the
    share of its kind so far, half a sign of each being there at the start. Signs may come in any order."""
    signs = [True] * below + [False] * (count - below)
    money, seen = Fraction(1), {True: Fraction(1, 2), False: Fraction(1, 2)}
    for sign in signs:
        money *= 2 * seen[sign] / (seen[True] + seen[False])
        seen[sign] += 1
    return money


@pytest.mark.parametrize("alpha", ["0.5", "0.1", "0.05", "0.01", "0.005", "0.0001"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 10, 11, 12, 25, 60])
def test_the_ends_are_where_the_bets_have_not_won_yet(count, alpha):
    survivors = [below for below in range(count + 1) if wealth(below, count) < 1 / Fraction(alpha)]
    assert rank(count, float(alpha)) == min(survivors)


def missed(alpha: float, longest: int) -> float:
    """The probability that the interval misses the median after any of so many values, exactly: a value is above or
    below it with one half each, and a way that has missed once is counted and left."""
    alive, gone = {0: 1.0}, 0.0
    for count in range(1, longest + 1):
        nearest = rank(count, alpha)
        after: dict[int, float] = {}
        for below, share in alive.items():
            for now in (below, below + 1):
                after[now] = after.get(now, 0.0) + share / 2
        alive = {}
        for below, share in after.items():
            if min(below, count - below) < nearest:
                gone += share
            else:
                alive[below] = share
    assert gone + math.fsum(alive.values()) == pytest.approx(1.0, abs=1e-9)
    return gone


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01, 0.005, 0.0025])
def test_it_misses_the_median_at_any_of_300_looks_as_seldom_as_promised(alpha):
    found = missed(alpha, 300)
    assert found <= alpha
    assert found > alpha / 6, "and is not vacuously wide"


@pytest.mark.parametrize("alpha", [0.3, 0.05])
def test_the_probability_is_that_of_all_patterns_of_signs(alpha):
    longest, out = 10, 0
    for signs in itertools.product((-1.0, 1.0), repeat=longest):
        values = [sign * (1.0 + place) for place, sign in enumerate(signs)]
        looks = (median_interval(values[:count], alpha) for count in range(1, longest + 1))
        out += any(not low <= 0.0 <= high for _, low, high in looks)
    assert out / 2**longest == missed(alpha, longest)
    assert 0 < out / 2**longest <= alpha


def test_looking_once_at_a_fixed_share_would_miss_far_more_often():
    """The usual interval of a median is not made to be looked at after every value: this is what it costs to ignore."""

    def fixed(count: int, alpha: float) -> int:
        shares = itertools.accumulate(math.comb(count, below) / 2**count for below in range(count + 1))
        return sum(1 for share in shares if share <= alpha / 2)

    random.seed(1)
    runs, out, ours = 400, 0, 0
    for _ in range(runs):
        below, missed_once, missed_ours = 0, False, False
        for count in range(1, 121):
            below += random.random() < 0.5
            missed_once |= min(below, count - below) < fixed(count, 0.05)
            missed_ours |= min(below, count - below) < rank(count, 0.05)
        out, ours = out + missed_once, ours + missed_ours
    assert out / runs > 0.15
    assert ours / runs <= 0.05


@pytest.mark.parametrize("alpha, fewest", [(0.05, 7), (0.01, 10), (0.005, 11)])
def test_how_many_values_bound_it(alpha, fewest):
    assert fewest_values(alpha) == fewest
    assert rank(fewest - 1, alpha) == 0
    assert rank(fewest, alpha) == 1


def test_ten_values_by_hand():
    values = [5.0, 3.0, 9.0, 1.0, 7.0, 2.0, 8.0, 4.0, 6.0, 100.0]
    assert median_interval(values[:9], 0.01) == (5.0, -INF, INF)
    assert median_interval(values, 0.01) == (5.5, 1.0, 100.0)
    assert median_interval(values, 0.005) == (5.5, -INF, INF)


def test_one_wild_value_moves_neither_end_for_long():
    values = [1.0 + 0.001 * i for i in range(29)] + [900.0]
    _, low, high = median_interval(values, 0.01)
    assert 1.0 < low < high < 1.03


@pytest.mark.parametrize("count", [10, 11, 40])
def test_constant_values_are_known_exactly(count):
    assert median_interval([1.5] * count, 0.01) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_ties_with_the_median_make_it_no_less_sure(alpha):
    """Half of the values are the median itself; the rest lie on both sides."""
    source, out, runs = random.Random(3), 0, 400
    for _ in range(runs):
        values, bad = [], False
        for _ in range(40):
            values.append(source.choice([0.0, 0.0, -1.0, 1.0]))
            _, low, high = median_interval(values, alpha)
            bad |= not low <= 0.0 <= high
        out += bad
    assert out / runs <= alpha


VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


@given(VALUES, st.sampled_from([0.2, 0.05, 0.01, 0.005]))
def test_it_holds_the_sample_s_median_and_its_order_plays_no_part(values, alpha):
    value, low, high = median_interval(values, alpha)
    assert value == median(values)
    assert low <= value <= high
    assert median_interval(values[::-1], alpha) == (value, low, high)
    mirrored = median_interval([-one for one in values], alpha)
    assert mirrored == (-value, -high, -low)


@given(VALUES)
def test_more_confidence_is_never_narrower(values):
    ends = [median_interval(values, alpha)[1:] for alpha in (0.2, 0.05, 0.01, 0.001)]
    for (low, high), (lower, higher) in itertools.pairwise(ends):
        assert lower <= low <= high <= higher


def test_more_values_are_narrower_in_the_end():
    shares = [1 - 2 * rank(count, 0.01) / count for count in (10, 30, 100, 1000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.14


def test_nothing_has_no_median():
    with pytest.raises(ValueError, match="the median of nothing"):
        median_interval([], 0.01)


# rounds as machines give them


def normal(source: random.Random) -> float:
    return source.gauss(0.0, 0.03)


def cauchy(source: random.Random) -> float:
    """No mean and no variance."""
    return 0.02 * math.tan(math.pi * (source.random() - 0.5))


def interrupted(source: random.Random) -> float:
    """One run in ten takes up to three times as long."""
    return source.gauss(0.0, 0.01) - (math.log(1 + 2 * source.random()) if source.random() < 0.1 else 0.0)


@pytest.mark.parametrize("noise", [normal, cauchy, interrupted])
@pytest.mark.parametrize("truth", [1.0, 3.1])
def test_coverage_at_every_round_while_the_machine_drifts(noise, truth):
    """Speeds of both, with a drift that both share and grows to a factor of many: the median of the ratios is within
    the interval at each of 80 rounds, as seldom as promised without; and the interval becomes narrow."""
    source, alpha, runs, out, widths = random.Random(11), 0.05, 300, 0, []
    for _ in range(runs):
        machine, ratios, bad = 0.0, [], False
        for _ in range(80):
            machine += source.gauss(-0.01, 0.1)
            ours, theirs = machine + noise(source), machine + noise(source)
            ratios.append(truth * math.exp(ours - theirs))
            _, low, high = median_interval(ratios, alpha)
            bad |= not low <= truth <= high
        out += bad
        widths.append((high - low) / truth)
    assert out / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert median(widths) < 0.1


def test_an_order_that_a_coin_decides_takes_away_what_going_first_costs():
    """Whichever runs first finds cold caches and is a tenth slower. Two models of the same speed stay so."""
    source, alpha, runs, out = random.Random(5), 0.05, 300, 0
    for _ in range(runs):
        ratios, bad = [], False
        for _ in range(60):
            penalty = 0.9 if source.random() < 0.5 else 1 / 0.9
            ratios.append(penalty * math.exp(source.gauss(0.0, 0.01)))
            _, low, high = median_interval(ratios, alpha)
            bad |= not low <= 1.0 <= high
        out += bad
    assert out / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def test_a_ratio_that_is_not_the_true_one_is_found_out():
    source, found = random.Random(8), 0
    for _ in range(100):
        ratios = [1.5 * math.exp(source.gauss(0.0, 0.07)) for _ in range(20)]
        _, low, high = median_interval(ratios, 0.01)
        found += not low <= 1.2 <= high
    assert found == 100
