"""Dollars from speeds: by hand, for one price and for two."""

from __future__ import annotations

import math

import pytest

from pytest_quant.metrics.cost import Prices, cost, dollars
from pytest_quant.metrics.rounds import Rounds, Run
from pytest_quant.metrics.throughput import ratio


def played(ours: list[float], theirs: list[float]) -> Rounds:
    """Rounds of such speeds, tokens a second."""
    rounds = Rounds()
    for mine, other in zip(ours, theirs, strict=True):
        rounds.add(Run(1000, 1000 / mine), Run(1000, 1000 / other))
    return rounds


TEN = played([100.0 + i for i in range(10)], [50.0] * 10)


def test_dollars_by_hand():
    # a thousandth of a dollar a second buys 100 tokens
    assert dollars(100.0, 3.6) == pytest.approx(10.0)
    assert dollars(200.0, 3.6) == pytest.approx(5.0)
    assert dollars(100.0, 7.2) == pytest.approx(20.0)


def test_the_cost_of_a_format_by_hand():
    found = cost(played([100.0] * 10, [50.0] * 10), Prices(3.6, 3.6), 0.01)
    assert set(found) == {"ratio", "usd"}
    usd, of_reference = found["usd"], found["ratio"]
    assert (usd.value, usd.low, usd.high) == pytest.approx((10.0, 10.0, 10.0))
    assert usd.unit == "$/Mtok"
    assert (of_reference.value, of_reference.low, of_reference.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_ratio_is_the_speed_s_upside_down():
    speed, found = ratio(TEN, 0.01), cost(TEN, Prices(), 0.01)["ratio"]
    assert (found.value, found.low, found.high) == (1 / speed.value, 1 / speed.high, 1 / speed.low)
    assert found.low < found.value < found.high
    assert found.unit == "x"


def test_dollars_are_bounded_by_the_slowest_and_the_fastest_round():
    usd = cost(TEN, Prices(3.6), 0.01)["usd"]
    assert (usd.low, usd.high) == pytest.approx((1000.0 / 109.0, 1000.0 / 100.0))
    assert usd.low < usd.value < usd.high


@pytest.mark.parametrize("prices, times", [(Prices(1.0, 4.0), 0.25), (Prices(4.0, 1.0), 4.0), (Prices(2.0, 2.0), 1.0)])
def test_two_devices_of_two_prices(prices, times):
    alone, found = cost(TEN, Prices(), 0.01)["ratio"], cost(TEN, prices, 0.01)["ratio"]
    for end in ("value", "low", "high"):
        assert getattr(found, end) == pytest.approx(times * getattr(alone, end))


def test_without_a_price_there_are_no_dollars_and_time_is_money():
    assert set(cost(TEN, Prices(), 0.01)) == {"ratio"}
    assert cost(TEN, Prices(), 0.01)["ratio"] == cost(TEN, Prices(5.0, 5.0), 0.01)["ratio"]


def test_too_few_rounds_leave_the_dear_end_open():
    found = cost(played([100.0] * 9, [50.0] * 9), Prices(3.6), 0.01)
    assert (found["ratio"].value, found["ratio"].low, found["ratio"].high) == (0.5, 0.0, math.inf)
    assert (found["usd"].low, found["usd"].high) == (0.0, math.inf)
