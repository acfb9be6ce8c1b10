"""What moved since the baseline: by windows, by intervals, by bytes; and what cannot be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.regression import change
from pytest_quant.gates.verdict import Verdict

SCORES = (3.1, 2.9, 3.4, 3.0)
REFERENCE = (3.0, 2.85, 3.3, 2.95)
TOKENS = (511, 511, 511, 511)


@dataclass(frozen=True)
class Then:
    value: float
    low: float | None = None
    high: float | None = None
    scores: tuple[float, ...] | None = None
    reference_scores: tuple[float, ...] | None = None


def moved(scores: tuple[float, ...], by: float) -> tuple[float, ...]:
    return tuple(score + by for score in scores)


def quality(scores=SCORES, reference=REFERENCE, tokens=TOKENS, value: float = 1.5) -> Measurement:
    return Measurement(
        "perplexity_delta",
        "m",
        "nf4",
        "transformers",
        "delta",
        {"delta": Quantity.exact(value, "ppl")},
        {"metric": {"name": "perplexity_delta"}},
        scores=scores,
        reference_scores=reference,
        tokens=tokens,
    )


def accepted(scores=SCORES, reference=REFERENCE, value: float = 1.5) -> Then:
    return Then(value, scores=scores, reference_scores=reference)


def speed(value: float, low: float, high: float) -> Measurement:
    return Measurement(
        "throughput_ratio",
        "m",
        "nf4",
        "transformers",
        "ratio",
        {"ratio": Quantity(value, low, high, "x")},
        {"metric": {"name": "throughput_ratio", "phase": "decode"}},
    )


def memory(number: float, of: str = "weights") -> Measurement:
    return Measurement(
        "memory_budget",
        "m",
        "nf4",
        "transformers",
        "bytes",
        {"bytes": Quantity.exact(number, "bytes")},
        {"metric": {"name": "memory_budget", "of": of}},
    )


# quality


def test_unchanged_scores_are_exactly_zero():
    found = change(quality(), accepted())
    assert (found.verdict, found.shown, found.reason, found.reference_moved) == (
        Verdict.PASSED,
        "+0.0000 nats",
        "",
        False,
    )


def test_two_thousandths_of_a_nat_are_seen():
    found = change(quality(moved(SCORES, 0.002)), accepted())
    assert found.verdict is Verdict.REGRESSED
    assert found.shown == "+0.0020 nats"
    assert "+0.00200 nats a token" in found.reason
    assert found.reference_moved is False


def test_half_a_thousandth_breaks_nothing_and_is_shown():
    found = change(quality(moved(SCORES, 0.0005)), accepted())
    assert (found.verdict, found.shown) == (Verdict.PASSED, "+0.0005 nats")


def test_an_improvement_is_told():
    found = change(quality(moved(SCORES, -0.002)), accepted(value=1.7))
    assert (found.verdict, found.shown) == (Verdict.IMPROVED, "-0.0020 nats")
    assert "perplexity delta +1.7 before, +1.5 now" in found.reason


def test_windows_are_paired_one_by_one():
    """Windows that go opposite ways by as much leave the mean where it was."""
    assert change(quality((3.2, 2.8, 3.4, 3.0)), accepted()).verdict is Verdict.PASSED


def test_a_window_counts_by_its_tokens():
    # 4 nats of 1,000 in one window of 1 token out of 1,534: 2.6e-6 a token
    worse = (*SCORES[:3], SCORES[3] + 0.004)
    assert change(quality(worse, tokens=(511, 511, 511, 1)), accepted()).shown == "+0.0000 nats"
    assert change(quality(worse, tokens=(1, 1, 1, 511)), accepted()).verdict is Verdict.REGRESSED


def test_the_delta_of_another_day_does_not_decide():
    """The windows do: the value may be rounded, or written by hand."""
    assert change(quality(value=9.0), accepted(value=1.0)).verdict is Verdict.PASSED


def test_the_reference_moved_too():
    found = change(quality(moved(SCORES, 0.01), moved(REFERENCE, 0.008)), accepted())
    assert found.verdict is Verdict.REGRESSED
    assert found.reference_moved is True
    assert "the reference moved too, by +0.00800 nats: the stack drifted" in found.reason


def test_a_reference_that_stood_still_is_not_blamed():
    found = change(quality(moved(SCORES, 0.01), moved(REFERENCE, 0.0005)), accepted())
    assert (found.verdict, found.reference_moved) == (Verdict.REGRESSED, False)
    assert "drifted" not in found.reason


def test_a_reference_that_is_not_kept_is_not_blamed():
    for now, then in ((None, REFERENCE), (REFERENCE, None)):
        found = change(quality(moved(SCORES, 0.01), now), accepted(reference=then))
        assert (found.verdict, found.reference_moved) == (Verdict.REGRESSED, False)


@pytest.mark.parametrize(
    "now, then",
    [
        (quality(), accepted(scores=None)),
        (quality(), accepted(scores=SCORES[:3], reference=REFERENCE[:3])),
        (quality(), accepted(scores=())),
        (quality(scores=None), accepted()),
        (quality(tokens=None), accepted()),
        (quality(scores=None), accepted(scores=None)),
    ],
    ids=["none kept", "fewer kept", "empty kept", "none measured", "no tokens", "neither"],
)
def test_without_scores_of_the_same_windows_nothing_is_compared(now, then):
    found = change(now, then)
    assert found.verdict is Verdict.INCOMPARABLE
    assert "record it anew" in found.reason


def test_no_windows_at_all_are_incomparable():
    assert change(quality((), (), ()), accepted((), ())).verdict is Verdict.INCOMPARABLE


def test_a_kept_reference_of_other_windows_is_no_crash():
    found = change(quality(moved(SCORES, 0.01)), accepted(reference=REFERENCE[:2]))
    assert (found.verdict, found.reference_moved) == (Verdict.REGRESSED, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_never_pass(bad):
    for now, then in (
        (quality((bad, *SCORES[1:])), accepted()),
        (quality(), accepted((bad, *SCORES[1:]))),
    ):
        assert change(now, then).verdict not in (Verdict.PASSED, Verdict.IMPROVED)


# speed


@pytest.mark.parametrize(
    "now, then, verdict",
    [
        ((2.0, 1.9, 2.1), (2.0, 1.9, 2.1), Verdict.PASSED),
        ((1.8, 1.75, 1.85), (2.0, 1.9, 2.1), Verdict.PASSED),  # below both, but by less than a tenth of 1.9
        ((1.7, 1.65, 1.72), (2.0, 1.9, 2.1), Verdict.PASSED),  # just above 1.71
        ((1.7, 1.65, 1.70), (2.0, 1.9, 2.1), Verdict.REGRESSED),  # just below it
        ((1.0, 0.5, 1.95), (2.0, 1.9, 2.1), Verdict.PASSED),  # half as fast, and too noisy to tell
        ((1.0, 0.9, 1.1), (2.0, 0.8, 3.0), Verdict.PASSED),  # the baseline was the noisy one
        ((1.0, 0.9, 1.1), (2.0, 1.9, 2.1), Verdict.REGRESSED),
        ((2.4, 2.3, 2.5), (2.0, 1.9, 2.1), Verdict.PASSED),  # just below 2.31
        ((2.4, 2.32, 2.5), (2.0, 1.9, 2.1), Verdict.IMPROVED),
    ],
)
def test_speed_moves_only_beyond_both_intervals(now, then, verdict):
    found = change(speed(*now), Then(*then))
    assert found.verdict is verdict
    assert bool(found.reason) is (verdict is not Verdict.PASSED)


def test_speed_says_both_intervals():
    found = change(speed(1.0, 0.9, 1.1), Then(2.0, 1.9, 2.1))
    assert found.shown == "-50.0%"
    assert found.reason == "1 x [0.9 to 1.1] now, 2 [1.9 to 2.1] before"


def test_a_baseline_without_an_interval_is_its_value():
    assert change(speed(1.7, 1.6, 1.79), Then(2.0)).verdict is Verdict.REGRESSED
    assert change(speed(1.7, 1.6, 1.81), Then(2.0)).verdict is Verdict.PASSED
    assert change(speed(2.3, 2.21, 2.4), Then(2.0)).verdict is Verdict.IMPROVED


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_speed_that_is_not_finite_never_passes(bad):
    assert change(speed(bad, bad, bad), Then(2.0, 1.9, 2.1)).verdict not in (Verdict.PASSED, Verdict.IMPROVED)
    assert change(speed(2.0, 1.9, 2.1), Then(bad, bad, bad)).verdict not in (Verdict.PASSED, Verdict.IMPROVED)


# memory


@pytest.mark.parametrize(
    "now, then, verdict, shown",
    [
        (1_000_000, 1_000_000, Verdict.PASSED, "+0.0%"),
        (1_009_000, 1_000_000, Verdict.PASSED, "+0.9%"),
        (1_011_000, 1_000_000, Verdict.REGRESSED, "+1.1%"),
        (989_000, 1_000_000, Verdict.IMPROVED, "-1.1%"),
        (991_000, 1_000_000, Verdict.PASSED, "-0.9%"),
        (2_000_000, 1_000_000, Verdict.REGRESSED, "+100.0%"),
    ],
)
@pytest.mark.parametrize("of", ["weights", "kv_cache"])
def test_memory_by_a_hundredth(now, then, verdict, shown, of):
    found = change(memory(now, of), Then(then))
    assert (found.verdict, found.shown) == (verdict, shown)


@pytest.mark.parametrize(
    "now, verdict", [(1_090_000, Verdict.PASSED), (1_110_000, Verdict.REGRESSED), (890_000, Verdict.IMPROVED)]
)
def test_a_peak_by_a_tenth(now, verdict):
    assert change(memory(now, "peak"), Then(1_000_000)).verdict is verdict


def test_memory_says_both_numbers():
    assert change(memory(2_500_000), Then(1_250_000)).reason == "2,500,000 bytes now, 1,250,000 before"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_memory_that_is_not_finite_never_passes(bad):
    assert change(memory(bad), Then(1_000_000)).verdict not in (Verdict.PASSED, Verdict.IMPROVED)
    assert change(memory(1_000_000), Then(bad)).verdict not in (Verdict.PASSED, Verdict.IMPROVED)


@pytest.mark.parametrize("now", [speed(1.0, 0.9, 1.1), memory(1_000_000)], ids=["speed", "memory"])
def test_a_baseline_of_zero_is_no_crash(now):
    """A share of nothing is no number, and no pass."""
    assert change(now, Then(0.0)).verdict in (Verdict.INCOMPARABLE, Verdict.REGRESSED)
