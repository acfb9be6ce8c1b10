"""When a ratio is known well enough to be kept."""

from __future__ import annotations

from pytest_quant.gates.measurement import Measurement

NARROW = 0.10
"""Width of an interval over its value. A wider one is kept when the budget is spent."""


def is_narrow(now: Measurement) -> bool:
    """Whether later runs can be compared with the measurement's value."""
    quantity = now.quantity
    return quantity.high - quantity.low <= NARROW * quantity.value
