"""Numbers as people type them."""

from __future__ import annotations

import pytest

from pytest_quant.errors import UsageError
from pytest_quant.planning import quantities


@pytest.mark.parametrize(
    ("text", "number"),
    [("70e9", 70e9), ("70B", 70e9), ("70b", 70e9), ("135M", 135e6), ("1.5B", 1.5e9), (" 7 B ", 7e9), ("0.5T", 5e11)],
)
def test_parameters(text, number):
    assert quantities.parameters(text) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize("text", ["", "many", "-7B", "0", "0.2", "nan", "inf", "1e999", "7X", "7BB", "7B/s"])
def test_what_is_no_number_of_parameters(text):
    with pytest.raises(UsageError, match=r"--parameters=.*write 70e9, 70B or 135M"):
        quantities.parameters(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2e12", 2e12),
        ("2TB/s", 2e12),
        ("936 GB/s", 936e9),
        ("0.9tBps", 9e11),
        ("1e3GB/s", 1e12),
        ("500MB/s", 5e8),
        ("2000000", 2e6),
    ],
)
def test_bandwidth(text, number):
    assert quantities.bandwidth(text) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize("text", ["", "fast", "-2TB/s", "0", "2TB", "2T", "nan", "1e999"])
def test_what_is_no_bandwidth(text):
    with pytest.raises(UsageError, match=r"--bandwidth=.*write 2TB/s"):
        quantities.bandwidth(text)


@pytest.mark.parametrize("text", ["16Gbps", "900Gb/s", "2Tb/s", "800 gbps", "100Gbit/s", "5e9b/s"])
def test_bits_are_no_bytes(text):
    with pytest.raises(UsageError, match=r"these are bits; write bytes a second, with a capital B: 2TB/s"):
        quantities.bandwidth(text)


def test_a_bandwidth_without_its_unit():
    with pytest.raises(UsageError, match=r"2 bytes a second\? Give the unit, such as 2TB/s"):
        quantities.bandwidth("2")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_counts(text):
    assert quantities.whole("--count", "3") == 3
    with pytest.raises(UsageError, match=r"--count=.*at least 1"):
        quantities.whole("--count", text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_limits(text):
    assert quantities.positive("--max-ms", "0.5") == 0.5
    with pytest.raises(UsageError, match=r"--max-ms=.*above 0"):
        quantities.positive("--max-ms", text)
