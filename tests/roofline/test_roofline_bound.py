"""The bound on decode and prefill, against divisions done by hand."""

from __future__ import annotations

import pytest

from pytest_quant.roofline import bound
from pytest_quant.roofline.rates import Rates

A100 = Rates(2e12, {"fp16": 312e12, "int8": 624e12})


@pytest.mark.parametrize(
    ("gigabytes", "milliseconds"), [(280, 140), (140, 70), (70, 35), (35, 17.5)], ids=["fp32", "fp16", "int8", "4-bit"]
)
def test_the_lesson_s_table(gigabytes, milliseconds):
    found = bound.decode(weights=gigabytes * 1e9, kv=0, operations=140e9, rates=A100, numeric="fp16")
    assert found.seconds == pytest.approx(milliseconds / 1e3)
    assert found.regime == "bandwidth"
    assert found.arithmetic() == f"{gigabytes:.1f} GB of weights at 2.00 TB/s = {milliseconds:.1f} ms (bandwidth)"


def test_a_large_batch_is_limited_by_the_units():
    found = bound.decode(weights=140e9, kv=10e9, operations=1000 * 140e9, rates=A100, numeric="fp16")
    assert (found.bandwidth_seconds, found.compute_seconds) == pytest.approx((0.075, 140e12 / 312e12))
    assert (found.regime, found.seconds) == ("compute", found.compute_seconds)
    assert found.arithmetic() == "140.0 trillion operations at 312.0 trillion operations/s in fp16 = 448.7 ms (compute)"


def test_intensity_crosses_the_ridge_where_the_regime_changes():
    for operations in (1e12, 20e12, 21.8e12, 21.9e12, 30e12):
        found = bound.prefill(weights=140e9, kv=0, operations=operations, rates=A100, numeric="fp16")
        assert found.ridge == pytest.approx(156)
        assert found.intensity == pytest.approx(operations / 140e9)
        assert found.regime == ("compute" if found.intensity > found.ridge else "bandwidth")


def test_the_cache_is_part_of_what_is_read():
    found = bound.decode(weights=168.4e6, kv=1.5e6, operations=1.0, rates=Rates(23.5e9), numeric="fp32")
    assert found.read == pytest.approx(169.9e6)
    assert found.arithmetic() == "168.4 MB of weights + 1.50 MB of KV cache at 23.5 GB/s = 7.23 ms (bandwidth)"


def test_what_is_not_known_does_not_bound():
    only_bytes = bound.decode(weights=1e9, kv=0, operations=1e15, rates=A100, numeric="fp32")
    assert (only_bytes.regime, only_bytes.compute_seconds, only_bytes.ridge) == ("bandwidth", None, None)
    only_units = bound.decode(weights=1e15, kv=0, operations=1e12, rates=Rates(None, {"fp16": 1e12}), numeric="fp16")
    assert (only_units.regime, only_units.seconds, only_units.bandwidth_seconds) == ("compute", 1.0, None)
    assert bound.decode(weights=1e9, kv=0, operations=1e9, rates=Rates(), numeric="fp16") is None
    assert bound.prefill(weights=1e9, kv=0, operations=1e9, rates=Rates(), numeric="fp16") is None


def test_the_share_that_a_run_reached():
    found = bound.decode(weights=140e9, kv=0, operations=140e9, rates=A100, numeric="fp16")
    assert found.share(0.07) == pytest.approx(1.0)
    assert found.share(0.18) == pytest.approx(0.3889, abs=1e-4)
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="more than 0 seconds"):
            found.share(seconds)


@pytest.mark.parametrize(
    ("seconds", "words"), [(2.5, "2.50 s"), (0.0721, "72.1 ms"), (0.00234, "2.34 ms"), (4.2e-5, "42.0 us")]
)
def test_times_in_words(seconds, words):
    assert bound.milliseconds(seconds) == words
