"""Limits: each kind, each verdict, and the interval that decides it."""

from __future__ import annotations

import math
import re

import pytest

from pytest_quant.gates.gate import LIMITS, Gate, Judgement, judge
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.verdict import Verdict

PASSED, FAILED, INCONCLUSIVE = Verdict.PASSED, Verdict.FAILED, Verdict.INCONCLUSIVE


def measured(metric: str, **quantities: Quantity) -> Measurement:
    return Measurement(metric, "org/model", "nf4", "transformers", next(iter(quantities)), quantities, {})


def perplexity(*delta: float, ratio: float = 1.0) -> Measurement:
    given = Quantity(*(delta * 3 if len(delta) == 1 else delta), "ppl")
    return measured("perplexity_delta", delta=given, ratio=Quantity.exact(ratio, "x"))


def speed(*ratio: float) -> Measurement:
    return measured("throughput_ratio", ratio=Quantity(*(ratio * 3 if len(ratio) == 1 else ratio), "x"))


def memory(number: float, ratio: float | None = None) -> Measurement:
    more = {} if ratio is None else {"ratio": Quantity.exact(ratio, "x")}
    return measured("memory_budget", bytes=Quantity.exact(number, "bytes"), **more)


@pytest.mark.parametrize(
    "one, limit, verdict",
    [
        (perplexity(0.999), ("max", 1.0), PASSED),
        (perplexity(1.0), ("max", 1.0), PASSED),
        (perplexity(1.001), ("max", 1.0), FAILED),
        (perplexity(-3.0), ("max", 0.0), PASSED),
        (perplexity(9.0, ratio=1.05), ("max_ratio", 1.05), PASSED),
        (perplexity(0.0, ratio=1.0501), ("max_ratio", 1.05), FAILED),
        (speed(1.5), ("min", 1.5), PASSED),
        (speed(1.501), ("min", 1.5), PASSED),
        (speed(1.499), ("min", 1.5), FAILED),
        (memory(6_000_000_000), ("max_gb", 6.0), PASSED),
        (memory(6_000_000_001), ("max_gb", 6.0), FAILED),
        (memory(6 * 2**30), ("max_gib", 6.0), PASSED),
        (memory(6 * 2**30 + 1), ("max_gib", 6.0), FAILED),
        (memory(6 * 2**30), ("max_gb", 6.0), FAILED),
        (memory(9e9, ratio=0.35), ("max_ratio", 0.35), PASSED),
        (memory(1.0, ratio=0.36), ("max_ratio", 0.35), FAILED),
    ],
)
def test_exact_values_on_both_sides_of_each_limit(one, limit, verdict):
    found = judge(one, (limit,))
    assert found.verdict is verdict
    assert bool(found.reason) is (verdict is FAILED)


@pytest.mark.parametrize(
    "interval, verdict",
    [
        ((0.5, 0.2, 0.9), PASSED),
        ((0.5, 0.2, 1.0), PASSED),
        ((0.5, 0.2, 1.1), INCONCLUSIVE),
        ((1.5, 1.0, 1.9), INCONCLUSIVE),
        ((1.5, 0.9, 1.9), INCONCLUSIVE),
        ((1.5, 1.1, 1.9), FAILED),
    ],
)
def test_the_interval_decides_an_upper_limit(interval, verdict):
    assert judge(perplexity(*interval), (("max", 1.0),)).verdict is verdict


@pytest.mark.parametrize(
    "interval, verdict",
    [
        ((1.8, 1.6, 1.9), PASSED),
        ((1.8, 1.5, 1.9), PASSED),
        ((1.8, 1.4, 1.9), INCONCLUSIVE),
        ((1.2, 1.1, 1.5), INCONCLUSIVE),
        ((1.2, 1.1, 1.6), INCONCLUSIVE),
        ((1.2, 1.1, 1.4), FAILED),
    ],
)
def test_the_interval_decides_a_lower_limit(interval, verdict):
    assert judge(speed(*interval), (("min", 1.5),)).verdict is verdict


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("make, limit, good", [(perplexity, ("max", 1.0), 0.5), (speed, ("min", 1.5), 2.0)])
def test_nothing_that_is_not_finite_passes(make, limit, good, bad, where):
    numbers = [good, good, good]
    numbers[where] = bad
    found = judge(make(*numbers), (limit,))
    assert found.verdict is FAILED
    assert "not a finite number" in found.reason


@pytest.mark.parametrize("where", [1, 2])
def test_the_reason_names_the_number_that_is_not_finite(where):
    numbers = [0.5, 0.5, 0.5]
    numbers[where] = math.nan
    assert "nan" in judge(perplexity(*numbers), (("max", 1.0),)).reason


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("limit", ["max_gb", "max_gib", "max_ratio"])
def test_no_memory_limit_passes_what_is_not_finite(limit, bad):
    assert judge(memory(bad, ratio=bad), ((limit, 1e300),)).verdict is FAILED


def test_of_two_limits_both_must_hold():
    one = perplexity(0.5, ratio=1.2)
    assert judge(one, (("max", 1.0), ("max_ratio", 1.3))).verdict is PASSED
    for limits in ((("max", 1.0), ("max_ratio", 1.1)), (("max_ratio", 1.1), ("max", 1.0))):
        found = judge(one, limits)
        assert found.verdict is FAILED
        assert "1.2 x" in found.reason


def test_a_broken_limit_outweighs_an_undecided_one():
    one = perplexity(1.0, 0.5, 1.5, ratio=1.2)
    for limits in ((("max", 1.0), ("max_ratio", 1.1)), (("max_ratio", 1.1), ("max", 1.0))):
        assert judge(one, limits).verdict is FAILED
    for limits in ((("max", 1.0), ("max_ratio", 1.3)), (("max_ratio", 1.3), ("max", 1.0))):
        assert judge(one, limits).verdict is INCONCLUSIVE


def test_without_limits_only_the_baseline_judges():
    assert judge(perplexity(99.0), ()) == Judgement(PASSED)


def test_reasons_in_full():
    assert judge(perplexity(1.25), (("max", 1.0),)).reason == "1.25 ppl is above the limit (at most 1 ppl)"
    assert judge(speed(1.25), (("min", 1.5),)).reason == "1.25 x is below the limit (at least 1.5 x)"
    assert judge(memory(7.5e9), (("max_gb", 6.0),)).reason == "7.5 GB is above the limit (at most 6 GB)"
    assert judge(memory(3 * 2**29), (("max_gib", 1.0),)).reason == "1.5 GiB is above the limit (at most 1 GiB)"
    assert (
        judge(speed(1.45, 1.31, 1.62), (("min", 1.5),)).reason
        == "1.45 x with the interval 1.31 to 1.62 does not decide the limit of at least 1.5 x"
    )


@pytest.mark.parametrize(
    "one, limit",
    [
        (perplexity(1.00004), ("max", 1.0)),
        (speed(1.49996), ("min", 1.5)),
        (memory(6.0004e9), ("max_gb", 6.0)),
        (perplexity(0.12346), ("max", 0.12345)),
    ],
)
def test_a_reason_never_says_that_a_number_is_above_itself(one, limit):
    found = judge(one, (limit,))
    assert found.verdict is FAILED
    value, bound = re.findall(r"[\d.]+", found.reason.replace("(", " "))[:2]
    assert float(value) != float(bound), found.reason


def test_every_limit_names_its_side_and_its_quantity():
    kinds = {(metric, name): (k.quantity, k.unit) for metric, all_ in LIMITS.items() for name, k in all_.items()}
    assert kinds == {
        ("perplexity_delta", "max"): ("delta", 1.0),
        ("perplexity_delta", "max_ratio"): ("ratio", 1.0),
        ("throughput_ratio", "min"): ("ratio", 1.0),
        ("memory_budget", "max_gb"): ("bytes", 10**9),
        ("memory_budget", "max_gib"): ("bytes", 2**30),
        ("memory_budget", "max_ratio"): ("ratio", 1.0),
    }
    assert LIMITS["memory_budget"]["max_gib"].shown("max_gib", 1.5) == "max 1.5 GiB"
    assert LIMITS["throughput_ratio"]["min"].shown("min", 1.5) == "min 1.5x"


def test_an_unknown_limit_is_not_passed_over():
    with pytest.raises(KeyError):
        judge(perplexity(0.0), (("maximum", 1.0),))


@pytest.mark.parametrize(
    "gate, needs",
    [
        (Gate("perplexity_delta"), True),
        (Gate("perplexity_delta", (("max", 1.0),)), True),
        (Gate("throughput_ratio", (("min", 1.0),)), True),
        (Gate("memory_budget"), False),
        (Gate("memory_budget", (("max_gb", 1.0), ("max_gib", 1.0))), False),
        (Gate("memory_budget", (("max_gb", 1.0), ("max_ratio", 0.5))), True),
    ],
)
def test_which_gates_need_the_reference(gate, needs):
    assert gate.needs_reference is needs
