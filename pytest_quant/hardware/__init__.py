"""Which device this is, and what it can do."""

from pytest_quant.hardware.detect import detect
from pytest_quant.hardware.device import Device

__all__ = ["Device", "detect"]
