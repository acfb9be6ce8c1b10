"""Accuracy by item: what was lost and gained, exactly and from a part."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_quant.errors import NotMeasured
from pytest_quant.metrics.accuracy import ItemScore, mcnemar, task_accuracy
from pytest_quant.stats import betting

BOTH, LOST, GAINED, NEITHER = ItemScore(1, 1), ItemScore(1, 0), ItemScore(0, 1), ItemScore(0, 0)


def test_all_items_give_the_exact_numbers():
    quantities, figures = task_accuracy([BOTH] * 12 + [LOST] * 3 + [GAINED] + [NEITHER] * 4, 20, 0.01)
    assert {name: (q.low, q.value, q.high, q.unit) for name, q in quantities.items()} == {
        "drop": (0.1, 0.1, 0.1, "share"),
        "recovery": (13 / 15, 13 / 15, 13 / 15, "x"),
        "reference_accuracy": (0.75, 0.75, 0.75, "share"),
    }
    expected = {"format_value": 0.65, "reference_value": 0.75, "lost": 3.0, "gained": 1.0, "mcnemar_p": 0.625}
    assert figures == pytest.approx(expected)


def test_a_limit_that_equals_the_drop_is_kept_to_the_bit():
    for lost in range(1, 40):
        quantities, _ = task_accuracy([BOTH] * (1000 - lost) + [LOST] * lost, 1000, 0.01)
        assert quantities["drop"].value == lost / 1000


def test_a_part_of_the_items_gives_intervals_that_hold_the_whole():
    population = [BOTH] * 240 + [LOST] * 30 + [GAINED] * 10 + [NEITHER] * 120
    order = np.random.default_rng(2).permutation(400)
    quantities, figures = task_accuracy([population[i] for i in order[:150]], 400, 0.01)
    for name, truth in (("drop", 0.05), ("recovery", 250 / 270), ("reference_accuracy", 0.675)):
        assert quantities[name].low < truth < quantities[name].high
        assert quantities[name].detectable > 0.0
    assert quantities["drop"].high < 0.2
    assert "mcnemar_p" not in figures


def test_a_few_items_that_all_agree_do_not_prove_that_nothing_was_lost():
    quantities, figures = task_accuracy([BOTH] * 8, 2000, 0.01)
    assert (quantities["drop"].value, figures["lost"]) == (0.0, 0.0)
    assert quantities["drop"].high > 0.2
    assert quantities["recovery"].low < 0.8


def test_items_of_part_credit():
    quantities, figures = task_accuracy([ItemScore(0.5, 0.25), ItemScore(0.75, 1.0), ItemScore(1.0, 0.5)], 3, 0.01)
    assert quantities["drop"].value == pytest.approx(0.5 / 3)
    assert quantities["recovery"].value == pytest.approx(1.75 / 2.25)
    assert (figures["lost"], figures["gained"]) == (2.0, 1.0)


def test_weights_count():
    quantities, figures = task_accuracy([ItemScore(1, 0, 0.25), ItemScore(1, 1, 1.0), ItemScore(0, 0, 0.75)], 3, 0.01)
    assert quantities["drop"].value == quantities["drop"].low == quantities["drop"].high == 0.125
    assert quantities["reference_accuracy"].value == 0.625
    assert quantities["recovery"].value == 0.8
    assert figures["format_value"] == 0.5


def test_intervals_of_weighted_items_hold_the_whole():
    random = np.random.default_rng(5)
    population = [ItemScore(float(i % 3 > 0), float(i % 4 > 0), random.uniform(0.2, 1.0)) for i in range(600)]
    weight = math.fsum(s.weight for s in population)
    truth = math.fsum(s.weight * (s.reference - s.format) for s in population) / weight
    recovery = math.fsum(s.weight * s.format for s in population) / math.fsum(
        s.weight * s.reference for s in population
    )
    drawn = [population[i] for i in random.permutation(600)]
    for count in (20, 100, 400, 599):
        quantities, _ = task_accuracy(drawn[:count], 600, 0.01)
        assert quantities["drop"].low <= truth <= quantities["drop"].high
        assert quantities["recovery"].low <= recovery <= quantities["recovery"].high
        assert quantities["reference_accuracy"].high <= 1.0
    assert quantities["drop"].high - quantities["drop"].low < 0.01


def test_equal_weights_are_no_weights():
    plain = task_accuracy([BOTH] * 30 + [LOST] * 10, 100, 0.01)[0]["drop"]
    halved = task_accuracy([ItemScore(s.reference, s.format, 0.5) for s in [BOTH] * 30 + [LOST] * 10], 100, 0.01)
    assert halved[0]["drop"].value == plain.value
    assert halved[0]["drop"].low <= plain.value <= halved[0]["drop"].high


def test_weights_of_one_that_were_drawn_say_nothing_of_the_others():
    """Before any of the light items was drawn, the interval already counts with them."""
    drawn = [BOTH] * 30 + [LOST] * 10
    accuracy = task_accuracy(drawn, 100, 0.01)[0]["reference_accuracy"]
    ratio = betting.ratio([score.reference for score in drawn], [1.0] * 40, 100, 0.01)
    assert accuracy.low == ratio.low
    known = task_accuracy(drawn, 100, 0.01, equal=True)[0]["reference_accuracy"]
    assert known.low == betting.mean([score.reference for score in drawn], 100, 0.01, low=0.0, high=1.0).low
    assert known.low != accuracy.low


def test_a_task_that_nobody_can_do_is_not_measured():
    assert task_accuracy([NEITHER] * 8, 9, 0.01)[0]["drop"].value == 0.0
    with pytest.raises(NotMeasured, match="neither model has any of the 9 items right"):
        task_accuracy([NEITHER] * 9, 9, 0.01)


def test_recovery_of_nothing_is_no_number():
    quantities, _ = task_accuracy([NEITHER] * 8 + [GAINED], 9, 0.01)
    assert "recovery" not in quantities
    assert quantities["drop"].value == -1 / 9


def test_scores_beyond_one_are_refused():
    with pytest.raises(ValueError, match="within"):
        task_accuracy([ItemScore(1.5, 0.5)], 4, 0.01)


@pytest.mark.parametrize(
    "lost, gained, p",
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (0, 5, 0.0625), (3, 1, 0.625), (2, 2, 1.0), (10, 2, 158 / 4096)],
)
def test_mcnemar_is_exact(lost, gained, p):
    assert mcnemar(lost, gained) == pytest.approx(p)


def test_mcnemar_of_many_is_exact_too():
    for lost, gained in ((200, 150), (149, 201), (300, 300)):
        ways = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1))
        assert mcnemar(lost, gained) == min(2 * ways / 2 ** (lost + gained), 1.0)
