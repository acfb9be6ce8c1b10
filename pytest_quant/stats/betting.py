"""Confidence sequences for numbers with bounds, by betting: intervals that hold at every look at once, for any such
numbers, however skewed, and after any number of them.

Units are drawn in random order without replacement. A gambler who knows what was drawn so far bets against the claim
that the population's mean is m; were it true, the capital K would be a nonnegative martingale of mean 1, so by Ville's
inequality K ever reaches 1/alpha with a probability of at most alpha. The interval holds every m for which it did not
(Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024, section 5 for sampling
without replacement; half of alpha for the bets on either side). When the first t - 1 of N units sum to S, the rest has
the mean m_t = (N m - S) / (N - t + 1), and the next x, at least 0, multiplies the capital by 1 + l (x - m_t) with any l
within [0, 1 / m_t] that was fixed before.

The capital is the mean of several such games, each with the bets that are best for one horizon T of :data:`_HORIZONS`:
l = sqrt(2 log(1/alpha) / (V T)) N / (N - t + 1), where V is the variance seen before. The last factor is not theirs: by
it the rest's mean m_t departs from that of a true claim, and with it the interval narrows as the finite population
correction says. No l depends on m but by its cap at a share of 1 / m_t, so each factor, and with it the capital, falls
as m rises: the interval's ends are found by bisection. What the rest can still be bounds them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pytest_quant.stats import sequence
from pytest_quant.stats.sequence import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = Sequence[float] | NDArray[np.float64]

_HORIZONS = (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0, 4.0)
"""Shares of the population after which a game is tightest; with the finite population correction, which makes the last
tenth of all units worth nine times the population."""
_CAP = 0.85
"""The largest share of its capital that a game can lose with one unit."""
_PRIOR_VARIANCE = 0.25
"""What the variance is taken to be before the first unit, and counted as one: the largest that there is."""
_BLOCK = 64
"""Units after which the capital is looked at, besides the last: a product of so many factors stays within a float."""
_HALVINGS = 22


def mean(values: Numbers, total: int, alpha: float, *, low: float, high: float) -> Estimate:
    """Mean of ``total`` numbers within [``low``, ``high``], from the first of them in a random order; exact when all
    are drawn. Its ``detectable`` counts one unit more than was drawn, as far from the mean as can be.

    :class:`ValueError` without any, with more than there are, and for one beyond the bounds.
    """
    import numpy as np

    numbers = _checked(values, total, low, high)
    drawn, rest, width = len(numbers), total - len(numbers), high - low
    known = math.fsum(numbers)
    value, unit = known / drawn, max(high - known / drawn, known / drawn - low)
    errors = np.append(numbers - value, unit)
    found = sequence.detectable(errors, total, alpha)
    if rest == 0:
        return Estimate(value, value, value, found)
    shares = (numbers - low) / width
    below, above = _least_mean(shares, total, alpha / 2.0), _least_mean(1.0 - shares, total, alpha / 2.0)
    least, most = (known + rest * low) / total, (known + rest * high) / total
    lower = least if below is None else max(low + width * below, least)
    upper = most if above is None else min(high - width * above, most)
    return Estimate(value, min(lower, value), max(upper, value), found)


def weighted_mean(
    values: Numbers, weights: Numbers, total: int, alpha: float, *, low: float, high: float, equal: bool = False
) -> Estimate:
    """As :func:`mean`, of numbers that count by weights within (0, 1]: a ratio of sums, unless the weights of the whole
    population are known to be ``equal``. Those that were drawn may be alike by chance."""
    import numpy as np

    shares, numbers = np.asarray(weights, dtype=float), np.asarray(values, dtype=float)
    if equal:
        return mean(numbers, total, alpha, low=low, high=high)
    width = high - low
    found = ratio(shares * (numbers - low) / width, shares, total, alpha)
    value = average(numbers, shares)
    if len(numbers) == total:
        return Estimate(value, value, value, width * found.detectable)
    ends = low + width * found.low, min(low + width * found.high, high)
    return Estimate(value, min(ends[0], value), max(ends[1], value), width * found.detectable)


def average(values: Numbers, weights: Numbers) -> float:
    """Mean of the numbers themselves, each counted by its weight."""
    import numpy as np

    return math.fsum(np.multiply(values, weights)) / math.fsum(weights)


def ratio(numerators: Numbers, denominators: Numbers, total: int, alpha: float) -> Estimate:
    """sum(a) / sum(b) over ``total`` pairs of numbers within [0, 1], from the first of them in a random order; exact
    when all are drawn.

    The interval holds every r for which mean(a - r b) = 0 is not refuted; its high end is infinite while all b that
    were drawn are 0, and the value is then what one pair of (1, 1) more would make it. :class:`ValueError` as
    :func:`mean` raises it, and where all b of the population are 0.
    """
    import numpy as np

    a, b = _checked(numerators, total, 0.0, 1.0), _checked(denominators, total, 0.0, 1.0)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} numerators and {len(b)} denominators are no pairs")
    over, under = math.fsum(a), math.fsum(b)
    if under == 0.0:
        if len(b) == total:
            raise ValueError("the denominators of the whole population are 0")
        value, found = over + 1.0, math.inf
    else:
        value = over / under
        errors = np.append(a - value * b, max(1.0, value)) * (len(b) / under)
        found = sequence.detectable(errors, total, alpha)
    if len(a) == total:
        return Estimate(value, value, value, found)
    below, above = _least_part(a, b, total, alpha / 2.0), _least_part(b, a, total, alpha / 2.0)
    upper = math.inf if above == 0.0 else (1.0 - above) / above
    return Estimate(value, min(below / (1.0 - below), value), max(upper, value), found)


def _checked(values: Numbers, total: int, low: float, high: float) -> NDArray[np.float64]:
    import numpy as np

    numbers = np.asarray(values, dtype=float)
    if not 1 <= len(numbers) <= total:
        raise ValueError(f"{len(numbers)} of {total} units were drawn; need at least one, and no more than there are")
    if not (np.isfinite(numbers).all() and low <= numbers.min() and numbers.max() <= high):
        raise ValueError(f"numbers from {numbers.min()} to {numbers.max()} are not within {low} to {high}")
    return numbers


def _least_mean(shares: NDArray[np.float64], total: int, alpha: float) -> float | None:
    """The least mean of numbers within [0, 1] that bets on a higher one do not refute; None where they refute none that
    is possible."""
    import numpy as np

    before, rest = _before(shares), total - np.arange(len(shares), dtype=float)
    counts = np.arange(len(shares))
    spread = _before((shares - (before + shares + 0.5) / (counts + 2.0)) ** 2)
    bets = _bets((spread + _PRIOR_VARIANCE) / (counts + 1.0), total, alpha)

    def refuted(m: float) -> bool:
        return _ruined(shares, (total * m - before) / rest, bets, alpha)

    known = float(shares.sum())
    return _edge(refuted, known / total, known / len(shares))


def _least_part(a: NDArray[np.float64], b: NDArray[np.float64], total: int, alpha: float) -> float:
    """The least s = sum(a) / (sum(a) + sum(b)) that is not refuted by bets on a higher one: on a sum above 0 of
    (1 - s) a - s b, which is at least -s."""
    import numpy as np

    sum_a, sum_b, rest = _before(a), _before(b), total - np.arange(len(a), dtype=float)
    guess = (sum_a + 1.0) / (sum_a + sum_b + 2.0)
    squares = (1.0 - guess) ** 2 * _before(a * a) - 2.0 * guess * (1.0 - guess) * _before(a * b)
    squares += guess**2 * _before(b * b)
    bets = _bets((np.maximum(squares, 0.0) + _PRIOR_VARIANCE) / (np.arange(len(a)) + 1.0), total, alpha)

    def refuted(s: float) -> bool:
        gained = (1.0 - s) * a + s * (1.0 - b)
        return _ruined(gained, s + (s * sum_b - (1.0 - s) * sum_a) / rest, bets, alpha)

    over, under = float(a.sum()), float(b.sum())
    least = over / (over + under + total - len(a))
    edge = _edge(refuted, least, over / (over + under) if over + under > 0.0 else 1.0)
    return least if edge is None else edge


def _before(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of the values before each."""
    import numpy as np

    return np.concatenate([np.zeros(1), np.cumsum(values)[:-1]])


def _bets(variances: NDArray[np.float64], total: int, alpha: float) -> NDArray[np.float64]:
    """The stakes l of each game before each unit, ``(units, games)``, without the cap."""
    import numpy as np

    horizons = total * np.array(_HORIZONS)
    growth = total / (total - np.arange(len(variances), dtype=float))
    found: NDArray[np.float64] = np.sqrt(-2.0 * math.log(alpha) / (variances[:, None] * horizons)) * growth[:, None]
    return found


def _ruined(
    gained: NDArray[np.float64], expected: NDArray[np.float64], bets: NDArray[np.float64], alpha: float
) -> bool:
    """Whether bets that ``gained``, each at least 0, is above what a claim ``expected`` of it ever reached 1/alpha."""
    import numpy as np

    fair = np.maximum(expected, 1e-300)[:, None]
    factors = 1.0 + np.minimum(bets, _CAP / fair) * (gained[:, None] - fair)
    factors = np.concatenate([factors, np.ones((-len(factors) % _BLOCK, factors.shape[1]))])
    logs = np.cumsum(np.log(factors.reshape(-1, _BLOCK, factors.shape[1]).prod(axis=1)), axis=0)
    most = logs.max(axis=1)
    capital = most + np.log(np.exp(logs - most[:, None]).mean(axis=1))
    return bool(capital.max() >= -math.log(alpha))


def _edge(refuted: Callable[[float], bool], low: float, high: float) -> float | None:
    """Where refutation ends within [``low``, ``high``], from its own side; None where it does not begin."""
    if not refuted(low):
        return None
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
