"""What two engines make of the same weights."""

from __future__ import annotations

import math

import pytest

from pytest_quant.metrics.engine_floor import between


def test_by_hand():
    """Two windows of 10 and 30 tokens, of 20 and 90 nats; the second engine gives 1 and 0.3 nats more and less."""
    found = between([20.0, 90.0], [21.0, 89.7], [10.0, 30.0])
    assert found.windows == 2
    assert found.first == pytest.approx(110 / 40)
    assert found.mean == pytest.approx(0.7 / 40)
    assert found.second == pytest.approx(110.7 / 40)
    assert found.worst == pytest.approx(0.1)
    assert found.perplexity == pytest.approx(math.exp(110.7 / 40) - math.exp(110 / 40))


def test_the_same_answers_are_no_distance():
    found = between([20.0, 90.0], [20.0, 90.0], [10.0, 30.0])
    assert (found.mean, found.worst, found.perplexity) == (0.0, 0.0, 0.0)


def test_windows_of_one_engine_only_are_a_mistake():
    with pytest.raises(ValueError, match="argument 2"):
        between([20.0, 90.0], [20.0], [10.0, 30.0])
