"""From a measurement to a limit: it holds for what it came from, and no broken model keeps it."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_quant.gates.gate import LIMITS, judge
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.verdict import Verdict
from pytest_quant.init.limits import ARGUMENTS, Limit, Refused, derive, is_settled

QUALITY = ("perplexity_delta", "token_agreement", "kl_divergence")


def ratio(value: float, low: float, high: float, detectable: float = 0.0) -> Quantity:
    return Quantity(value, low, high, "x", detectable)


def judged(metric: str, quantity: Quantity, limit: Limit) -> Verdict:
    kind = LIMITS[metric][limit.argument]
    measurement = Measurement(metric, "m", "nf4", "transformers", kind.quantity, {kind.quantity: quantity}, {})
    return judge(measurement, ((limit.argument, limit.value),)).verdict


@pytest.mark.parametrize(
    "metric, quantity, bits, limit",
    [
        ("perplexity_delta", ratio(1.264, 1.15, 1.39), 4, 1.53),  # .39 + .132
        ("perplexity_delta", ratio(1.019, 0.9932, 1.045), 8, 1.055),  # .045 + .0095
        ("perplexity_delta", ratio(1.0001, 1.0001, 1.0001), 8, 1.01),  # the least
        ("perplexity_delta", ratio(0.98, 0.97, 0.99), 8, 1.01),  # better than the reference
        ("perplexity_delta", ratio(1.02, 1.02, 1.02, 0.042), 8, 1.042),  # what the text can detect
        ("token_agreement", Quantity(0.736, 0.683, 0.789, "share"), 4, 0.55),  # .317 + .132
        ("token_agreement", Quantity(1.0, 1.0, 1.0, "share"), 8, 0.99),
        ("kl_divergence", Quantity(0.02, 0.015, 0.025, "nats"), 8, 0.035),
        ("memory_budget", Quantity.exact(0.409, "x"), 8, 0.422),
        ("throughput_ratio", ratio(1.6, 1.52, 1.7), 4, 1.2),
        ("throughput_ratio", ratio(0.27, 0.25, 0.33), 8, 0.2),
    ],
)
def test_the_rule(metric, quantity, bits, limit):
    assert derive(metric, quantity, bits) == Limit(ARGUMENTS[metric], limit)


@pytest.mark.parametrize(
    "metric, quantity, bits, broken, words",
    [
        (
            "perplexity_delta",
            ratio(2.4, 2.3, 2.5),
            8,
            True,
            "2.4 has no room on this side of 1.5, where a format of 8 bits is broken",
        ),
        ("perplexity_delta", ratio(3.4, 3.3, 3.5), 4, True, "of 2.5, where a format of 4 bits"),
        ("perplexity_delta", ratio(1.36, 1.3, 1.42), 8, True, "1.36 has no room"),
        ("perplexity_delta", ratio(1.2, 0.7, 2.8), 8, False, "give more text, or a larger --budget"),
        ("perplexity_delta", ratio(1.2, 0.7, math.inf), 4, False, "only to lie between 0.7 and inf"),
        ("perplexity_delta", ratio(math.nan, 0.0, math.inf), 4, True, "nan is not a number"),
        ("token_agreement", Quantity(0.2, 0.18, 0.22, "share"), 4, True, "of 0.35"),
        ("kl_divergence", Quantity(5.0, 4.0, 6.0, "nats"), 8, True, "of 0.3"),
        ("memory_budget", Quantity.exact(0.98, "x"), 8, True, "take 0.98 of the reference's"),
        ("memory_budget", Quantity.exact(math.inf, "x"), 8, True, "inf is not a number"),
        ("throughput_ratio", ratio(1.0, 0.0, math.inf), 4, False, "--quant-speed-budget"),
    ],
)
def test_what_a_broken_model_would_keep_is_no_limit(metric, quantity, bits, broken, words):
    found = derive(metric, quantity, bits)
    assert isinstance(found, Refused)
    assert found.broken is broken
    assert words in found.reason


@given(
    st.sampled_from(tuple(ARGUMENTS)),
    st.floats(1e-6, 10.0),
    st.floats(0.0, 3.0),
    st.floats(0.0, 3.0),
    st.floats(0.0, 1.0),
    st.sampled_from((3, 4, 8)),
)
def test_a_limit_holds_for_its_measurement_and_can_be_tested(metric, value, below, above, detectable, bits):
    if metric == "token_agreement":
        assume(value <= 1.0)
        quantity = Quantity(value, max(value - below, 0.0), min(value + above, 1.0), "share", detectable)
    elif metric == "memory_budget":
        quantity = Quantity.exact(value, "x")
    else:
        quantity = Quantity(value, max(value - below, 0.0), value + above, "x", detectable)
    found = derive(metric, quantity, bits)
    if isinstance(found, Limit):
        assert judged(metric, quantity, found) is Verdict.PASSED
        assert found.value == float(f"{found.value:.4g}")  # one that a person can read
        if metric in QUALITY:
            nothing = LIMITS[metric][found.argument].nothing
            assert abs(found.value - nothing) >= quantity.detectable - 1e-12
            assert judged(metric, Quantity.exact(_broken(metric, bits), "x"), found) is Verdict.FAILED


def _broken(metric: str, bits: int) -> float:
    """Just beyond what the rule calls broken."""
    wide = bits < 8
    return {"perplexity_delta": 2.51 if wide else 1.51, "token_agreement": 0.34 if wide else 0.64}.get(
        metric, 1.21 if wide else 0.31
    )


def test_windows_are_enough_once_the_interval_adds_no_more_than_the_rule_does():
    assert not is_settled("perplexity_delta", ratio(1.2, 1.0, 1.4))
    assert is_settled("perplexity_delta", ratio(1.2, 1.11, 1.29))
    assert is_settled("perplexity_delta", ratio(1.002, 0.994, 1.01))
    assert not is_settled("token_agreement", Quantity(0.9, 0.8, 1.0, "share"))
    assert is_settled("token_agreement", Quantity(0.9, 0.86, 0.94, "share"))
    assert not is_settled("perplexity_delta", ratio(1.2, 0.0, math.inf))
