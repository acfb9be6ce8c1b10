"""Tails of Student's t against tables."""

from __future__ import annotations

import math

import pytest

from pytest_quant.stats.student import two_sided


@pytest.mark.parametrize(
    "t, freedom, expected",
    [
        (12.7062047, 1, 0.05),
        (2.2281389, 10, 0.05),
        (3.1692727, 10, 0.01),
        (4.5868939, 10, 0.001),
        (1.9599640, 1e7, 0.05),
    ],
)
def test_the_quantiles_of_every_textbook(t, freedom, expected):
    assert two_sided(t, freedom) == pytest.approx(expected, rel=1e-6)
    assert two_sided(-t, freedom) == pytest.approx(expected, rel=1e-6)


def test_with_two_degrees_it_is_a_formula():
    for t in (0.0, 0.1, 1.0, 30.0, 1e4):
        assert two_sided(t, 2) == pytest.approx(1.0 - t / math.sqrt(2.0 + t * t), abs=1e-12)


def test_infinitely_far_is_impossible():
    assert two_sided(math.inf, 3) == 0.0
