"""Numbers as people type them on a command line. Pure; every mistake is a :class:`UsageError` with an example."""

from __future__ import annotations

import math
import re

from pytest_quant.errors import UsageError

_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_NUMBER = r"(?P<number>[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)"
_COUNT = re.compile(_NUMBER + r"\s*(?P<scale>[kmbt]?)", re.IGNORECASE)
_RATE = re.compile(_NUMBER + r"\s*(?:(?P<scale>[kKmMgGtT]?)B(?:/|p)[sS])?")
_BITS = re.compile(_NUMBER + r"\s*[kKmMgGtT]?(?:b|[bB]its?)(?:/|p)[sS]")


def parameters(text: str) -> float:
    """A number of parameters: ``70e9``, ``70B``, ``135M``, ``1.5b``. At least one."""
    found = _COUNT.fullmatch(text.strip())
    number = _value(found)
    if number is None or number < 1:
        raise UsageError(f"--parameters={text}: not a number of parameters; write 70e9, 70B or 135M")
    return number


def bandwidth(text: str) -> float:
    """Bytes a second: ``2e12``, ``2TB/s``, ``936 GB/s``. Above 0; a bare number counts bytes, so a small one is refused
    as a forgotten unit, and bits are refused as such."""
    if _BITS.fullmatch(text.strip()):
        raise UsageError(f"--bandwidth={text}: these are bits; write bytes a second, with a capital B: 2TB/s, 936GB/s")
    found = _RATE.fullmatch(text.strip())
    number = _value(found)
    if number is None or number <= 0:
        raise UsageError(f"--bandwidth={text}: not a bandwidth; write 2TB/s, 936GB/s or 2e12 (bytes a second)")
    if number < 1e6:
        raise UsageError(f"--bandwidth={text}: {number:g} bytes a second? Give the unit, such as {text.strip()}TB/s")
    return number


def whole(option: str, text: str, least: int = 1) -> int:
    """A whole number of at least ``least``."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise UsageError(f"{option}={text}: not a whole number of at least {least}")
    return number


def positive(option: str, text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f"{option}={text}: not a number above 0")
    return number


def _value(found: re.Match[str] | None) -> float | None:
    """``None`` for what did not match, and for what is no finite number."""
    if found is None:
        return None
    number = float(found["number"]) * _SCALES[(found["scale"] or "").lower()]
    return number if math.isfinite(number) else None
