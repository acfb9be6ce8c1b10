"""When an interval is narrow enough to be kept."""

from __future__ import annotations

import math

import pytest

from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.narrow import NARROW, is_narrow


@pytest.mark.parametrize(
    "value, low, high, narrow",
    [
        (1.0, 0.96, 1.05, True),
        (1.0, 0.96, 1.07, False),
        (3.0, 2.9, 3.19, True),
        (3.0, 2.9, 3.21, False),
        (0.3, 0.29, 0.31, True),
        (0.3, 0.25, 0.34, False),
        (1.5, 1.5, 1.5, True),
        (1.0, 0.0, math.inf, False),
        (1.0, 0.99, math.inf, False),
    ],
)
def test_a_tenth_of_the_value(value, low, high, narrow):
    assert NARROW == 0.10
    quantities = {"ratio": Quantity(value, low, high, "x"), "usd": Quantity(1.0, 0.0, math.inf, "$/Mtok")}
    now = Measurement("cost_ratio", "m", "nf4", "transformers", "ratio", quantities, {}, rounds=12)
    assert is_narrow(now) is narrow
