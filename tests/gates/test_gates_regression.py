"""What moved since the baseline: by windows, by intervals, by bytes; and what cannot be compared."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.gates.gate import QUALITY
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.regression import MIN_EFFECT, change, reference_change
from pytest_quant.gates.verdict import Verdict

SCORES = (3.1, 2.9, 3.4, 3.0)
REFERENCE = (3.0, 2.85, 3.3, 2.95)
WEIGHTS = (511.0, 511.0, 511.0, 511.0)
MANY = tuple(3.0 + 0.05 * (i * 7 % 13 - 6) for i in range(64))
"""Scores of 64 windows, in the drawn order."""


@dataclass(frozen=True)
class Then:
    value: float
    low: float | None = None
    high: float | None = None
    scores: tuple[float, ...] | None = None
    reference_scores: tuple[float, ...] | None = None


def moved(scores: tuple[float, ...], by: float) -> tuple[float, ...]:
    return tuple(score + by for score in scores)


def noisy(scores: tuple[float, ...], by: float, spread: float, seed: int = 0) -> tuple[float, ...]:
    """Scores that moved by ``by`` on average over all, and each by much more."""
    source = random.Random(seed)
    noise = [source.gauss(0.0, spread) for _ in scores]
    mean = math.fsum(noise) / len(noise)
    return tuple(score + by + one - mean for score, one in zip(scores, noise, strict=True))


def quality(
    scores=SCORES,
    weights=WEIGHTS,
    value: float = 1.5,
    *,
    total: int | None = 4,
    metric: str = "perplexity_delta",
    alpha: float | None = 0.01,
) -> Measurement:
    main, unit = {"perplexity_delta": ("delta", "ppl"), "kl_divergence": ("mean", "nats")}.get(metric, ("share",) * 2)
    return Measurement(
        metric,
        "m",
        "nf4",
        "transformers",
        main,
        {main: Quantity.exact(value, unit)},
        {"metric": {"name": metric}},
        scores=scores,
        weights=weights,
        windows=None if total is None else (len(scores or ()), total),
        alpha=alpha,
    )


def seen(scores: tuple[float, ...], used: int, metric: str = "perplexity_delta", alpha: float = 0.01) -> Measurement:
    """The first windows of all."""
    return quality(scores[:used], (511.0,) * used, total=len(scores), metric=metric, alpha=alpha)


def accepted(scores=SCORES, value: float = 1.5) -> Then:
    return Then(value, scores=scores)


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


def timed(metric: str, value: float, low: float, high: float) -> Measurement:
    """Of a metric of which less is better."""
    quantity = {"ratio": Quantity(value, low, high, "x")}
    return Measurement(metric, "m", "nf4", "transformers", "ratio", quantity, {"metric": {"name": metric}}, rounds=12)


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


# quality, all windows scored


@pytest.mark.parametrize("metric", QUALITY)
def test_unchanged_scores_are_exactly_zero(metric):
    unit = "" if metric == "token_agreement" else " nats"
    found = change(quality(metric=metric), accepted())
    assert (found.verdict, found.shown, found.reason) == (Verdict.PASSED, f"+0.0000{unit}", "")


@pytest.mark.parametrize("metric", ["perplexity_delta", "kl_divergence"])
def test_two_thousandths_of_a_nat_are_seen(metric):
    found = change(quality(moved(SCORES, 0.002), metric=metric), accepted())
    assert found.verdict is Verdict.REGRESSED
    assert found.shown == "+0.0020 nats"
    assert "+0.00200 nats a token" in found.reason


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_two_thousandths_of_a_nat_are_seen_whatever_the_noise(spread, seed):
    now = noisy(MANY, 0.002, spread, seed)
    assert change(seen(now, 64), accepted(MANY)).verdict is Verdict.REGRESSED
    assert change(seen(noisy(MANY, 0.0005, spread, seed), 64), accepted(MANY)).verdict is Verdict.PASSED


@pytest.mark.parametrize("by", [1e-9, -1e-9, -0.00004])
def test_a_change_that_rounds_to_nothing_has_no_sign(by):
    assert change(quality(moved(SCORES, by)), accepted()).shown == "+0.0000 nats"


def test_half_a_thousandth_breaks_nothing_and_is_shown():
    found = change(quality(moved(SCORES, 0.0005)), accepted())
    assert (found.verdict, found.shown) == (Verdict.PASSED, "+0.0005 nats")


@pytest.mark.parametrize("metric", ["perplexity_delta", "kl_divergence"])
def test_an_improvement_is_told(metric):
    found = change(quality(moved(SCORES, -0.002), metric=metric), accepted(value=1.7))
    main = "delta" if metric == "perplexity_delta" else "mean"
    assert (found.verdict, found.shown) == (Verdict.IMPROVED, "-0.0020 nats")
    assert f"({main} 1.7 before, 1.5 now)" in found.reason


@pytest.mark.parametrize(
    "by, verdict",
    [
        (-0.0025, Verdict.REGRESSED),
        (-0.0015, Verdict.PASSED),
        (0.0015, Verdict.PASSED),
        (0.0025, Verdict.IMPROVED),
    ],
)
def test_less_agreement_is_worse(by, verdict):
    shares = (0.95, 0.9, 0.97, 0.93)
    found = change(quality(moved(shares, by), metric="token_agreement"), accepted(shares))
    assert (found.verdict, found.shown) == (verdict, f"{by:+.4f}")
    assert (f"{by:+.5f} of tokens against the baseline's windows" in found.reason) is (verdict is not Verdict.PASSED)


def test_windows_are_paired_one_by_one():
    """Windows that go opposite ways by as much leave the mean where it was."""
    assert change(quality((3.2, 2.8, 3.4, 3.0)), accepted()).verdict is Verdict.PASSED


def test_a_window_counts_by_its_weight():
    # 4 nats of 1,000 in one window of 1 token out of 1,534: 2.6e-6 a token
    worse = (*SCORES[:3], SCORES[3] + 0.004)
    assert change(quality(worse, (511.0, 511.0, 511.0, 1.0)), accepted()).shown == "+0.0000 nats"
    assert change(quality(worse, (1.0, 1.0, 1.0, 511.0)), accepted()).verdict is Verdict.REGRESSED


def test_the_delta_of_another_day_does_not_decide():
    """The windows do: the value may be rounded, or written by hand."""
    assert change(quality(value=9.0), accepted(value=1.0)).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    "now, then",
    [
        (quality(), accepted(None)),
        (quality(), accepted(SCORES[:3])),
        (quality(), accepted((*SCORES, 3.0))),
        (quality(), accepted(())),
        (quality(None), accepted()),
        (quality(weights=None), accepted()),
        (quality(None), accepted(None)),
        (quality(total=None), accepted()),
        (quality(total=5), accepted()),
    ],
    ids=[
        "none kept",
        "fewer kept",
        "more kept",
        "empty kept",
        "none measured",
        "no weights",
        "neither",
        "of how many is not known",
        "kept of a prefix only",
    ],
)
@pytest.mark.parametrize("min_effect", [None, 10.0])
def test_without_scores_of_the_same_windows_nothing_is_compared(now, then, min_effect):
    found = change(now, then, min_effect)
    assert found.verdict is Verdict.INCOMPARABLE
    assert "record it anew" in found.reason


def test_no_windows_at_all_are_incomparable():
    assert change(quality((), (), total=0), accepted(())).verdict is Verdict.INCOMPARABLE


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", QUALITY)
def test_scores_that_are_not_finite_are_incomparable(bad, metric):
    for now, then in (
        (quality((bad, *SCORES[1:]), metric=metric), accepted()),
        (quality(metric=metric), accepted((bad, *SCORES[1:]))),
        (quality(value=bad, metric=metric), accepted()),
        (quality(metric=metric), accepted(value=bad)),
        (quality(SCORES[:2], WEIGHTS[:2], metric=metric), accepted((*SCORES[:3], bad))),
    ):
        found = change(now, then)
        assert (found.verdict, found.shown) == (Verdict.INCOMPARABLE, "not finite")


# quality, window by window


@pytest.mark.parametrize("metric", QUALITY)
@pytest.mark.parametrize("used", [7, 8, 63, 64])
def test_the_same_code_has_passed_after_few_windows(metric, used):
    found = change(seen(MANY, used, metric), accepted(MANY))
    assert (found.verdict, float(found.shown.split()[0])) == (Verdict.PASSED, 0.0)


@pytest.mark.parametrize("used", [1, 2, 6])
def test_six_windows_of_many_tell_nothing_yet(used):
    assert change(seen(MANY, used), accepted(MANY)).verdict is Verdict.INCONCLUSIVE
    assert change(seen(moved(MANY, 5.0), used), accepted(MANY)).verdict is Verdict.INCONCLUSIVE


def test_one_window_of_one_tells_all():
    assert change(quality((3.0,), (511.0,), total=1), accepted((3.0,))).verdict is Verdict.PASSED


def test_a_large_change_is_seen_early_and_a_small_one_when_the_noise_allows():
    early = change(seen(noisy(MANY, 0.1, 0.01), 8), accepted(MANY))
    assert early.verdict is Verdict.REGRESSED
    assert change(seen(noisy(MANY, -0.1, 0.01), 8), accepted(MANY)).verdict is Verdict.IMPROVED
    open_still = change(seen(noisy(MANY, 0.002, 0.01), 8), accepted(MANY))
    assert open_still.verdict is Verdict.INCONCLUSIVE
    assert "against the baseline's windows" in open_still.reason


def test_less_agreement_is_worse_in_a_prefix_too():
    shares = tuple(0.9 + 0.001 * (i * 5 % 11) for i in range(64))
    for by, verdict in ((-0.05, Verdict.REGRESSED), (0.05, Verdict.IMPROVED), (-0.002, Verdict.INCONCLUSIVE)):
        now = seen(noisy(shares, by, 0.004), 16, "token_agreement")
        assert change(now, accepted(shares)).verdict is verdict


def test_only_the_prefix_is_compared():
    """The scores that the baseline holds of later windows play no part yet."""
    then = (*MANY[:8], *moved(MANY[8:], 5.0))
    assert change(seen(MANY, 8), accepted(then)).verdict is Verdict.PASSED
    assert change(seen(MANY, 64), accepted(then)).verdict is Verdict.IMPROVED


def test_fewer_errors_allowed_take_more_windows():
    now = noisy(MANY, 0.012, 0.01)
    assert change(seen(now, 10, alpha=0.2), accepted(MANY)).verdict is Verdict.REGRESSED
    assert change(seen(now, 10, alpha=1e-9), accepted(MANY)).verdict is Verdict.INCONCLUSIVE


def test_a_measurement_without_an_error_rate_is_judged_at_one_in_a_hundred():
    now = noisy(MANY, 0.012, 0.01)
    for used in range(2, 65):
        known, unknown = (quality(now[:used], (511.0,) * used, total=64, alpha=alpha) for alpha in (0.01, None))
        assert change(known, accepted(MANY)) == change(unknown, accepted(MANY))


DRIFTS = st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=20)


@given(DRIFTS, st.data(), st.sampled_from(QUALITY), st.sampled_from([None, 0.0, 0.01, 1.0]))
def test_all_windows_always_decide_and_what_they_say_is_the_mean(drifts, data, metric, min_effect):
    weights = data.draw(st.lists(st.floats(1.0, 1000.0), min_size=len(drifts), max_size=len(drifts)))
    then = (3.0,) * len(drifts)
    now = tuple(3.0 + drift for drift in drifts)
    found = change(quality(now, tuple(weights), total=len(drifts), metric=metric), accepted(then), min_effect)
    assert found.verdict in (Verdict.PASSED, Verdict.REGRESSED, Verdict.IMPROVED)
    exact = math.fsum(w * (a - 3.0) for w, a in zip(weights, now, strict=True)) / math.fsum(weights)
    worse = -exact if metric == "token_agreement" else exact
    effect = MIN_EFFECT[metric] if min_effect is None else min_effect
    if abs(abs(worse) - effect) > 1e-9:
        verdict = Verdict.REGRESSED if worse > effect else Verdict.IMPROVED if worse < -effect else Verdict.PASSED
        assert found.verdict is verdict


@given(DRIFTS.filter(lambda drifts: len(drifts) > 2), st.data(), st.sampled_from(QUALITY))
def test_what_is_worse_in_one_direction_is_better_in_the_other(drifts, data, metric):
    used = data.draw(st.integers(1, len(drifts)))
    then = (3.0,) * len(drifts)
    there = change(seen(tuple(3.0 + d for d in drifts), used, metric), accepted(then)).verdict
    back = change(seen(then, used, metric), accepted(tuple(3.0 + d for d in drifts))).verdict
    assert (there is Verdict.REGRESSED) is (back is Verdict.IMPROVED)
    assert (there is Verdict.IMPROVED) is (back is Verdict.REGRESSED)


# the change that matters


@pytest.mark.parametrize("metric", QUALITY)
def test_the_change_that_matters_can_be_set(metric):
    worse = moved(SCORES, -0.01 if metric == "token_agreement" else 0.01)
    better = moved(SCORES, 0.01 if metric == "token_agreement" else -0.01)
    assert change(quality(worse, metric=metric), accepted()).verdict is Verdict.REGRESSED
    assert change(quality(worse, metric=metric), accepted(), 0.02).verdict is Verdict.PASSED
    assert change(quality(worse, metric=metric), accepted(), 0.005).verdict is Verdict.REGRESSED
    assert change(quality(better, metric=metric), accepted(), 0.02).verdict is Verdict.PASSED
    assert change(quality(better, metric=metric), accepted(), 0.005).verdict is Verdict.IMPROVED


@pytest.mark.parametrize("metric", QUALITY)
def test_a_change_of_nothing_may_be_demanded(metric):
    least = -1e-9 if metric == "token_agreement" else 1e-9
    assert change(quality(metric=metric), accepted(), 0.0).verdict is Verdict.PASSED
    assert change(quality(moved(SCORES, least), metric=metric), accepted(), 0.0).verdict is Verdict.REGRESSED
    assert change(quality(moved(SCORES, -least), metric=metric), accepted(), 0.0).verdict is Verdict.IMPROVED


def test_a_wider_effect_is_decided_sooner():
    now = seen(noisy(MANY, 0.001, 0.01), 16)
    assert change(now, accepted(MANY)).verdict is Verdict.INCONCLUSIVE
    assert change(now, accepted(MANY), 0.05).verdict is Verdict.PASSED


def test_each_metric_has_a_change_that_matters():
    assert MIN_EFFECT == {
        "perplexity_delta": 0.001,
        "kl_divergence": 0.001,
        "token_agreement": 0.002,
        "task_accuracy": 0.01,
        "generation_match": 0.02,
        "layer_sensitivity": 0.001,
        "throughput_ratio": 0.10,
        "energy_ratio": 0.10,
        "cost_ratio": 0.10,
        "memory_budget": 0.01,
    }


# the reference's part


def test_the_reference_s_change_is_the_mean_over_the_windows_that_both_know():
    weights = WEIGHTS
    assert reference_change(moved(REFERENCE, 0.008), REFERENCE, weights) == pytest.approx(0.008)
    assert reference_change(REFERENCE, REFERENCE, weights) == 0.0
    assert reference_change(moved(REFERENCE[:2], 0.008), REFERENCE, weights) == pytest.approx(0.008)
    assert reference_change(moved(REFERENCE, 0.008), REFERENCE[:2], weights) == pytest.approx(0.008)
    assert reference_change((3.0, 9.0), REFERENCE, (511.0,)) == 0.0


def test_the_reference_s_windows_count_by_their_weight():
    assert reference_change((3.0, 3.0), (3.0, 2.0), (3.0, 1.0)) == pytest.approx(0.25)


@pytest.mark.parametrize("now, then", [((), REFERENCE), (REFERENCE, ())])
def test_without_windows_of_the_reference_there_is_no_change_to_tell(now, then):
    with pytest.raises(ValueError, match="at least one"):
        reference_change(now, then, WEIGHTS)


# speed


@pytest.mark.parametrize(
    "now, then, verdict",
    [
        ((2.0, 1.9, 2.1), (2.0, 1.9, 2.1), Verdict.PASSED),
        ((1.8, 1.75, 1.85), (2.0, 1.9, 2.1), Verdict.PASSED),  # below both, but by less than a tenth of 1.9
        ((1.715, 1.711, 1.72), (2.0, 1.9, 2.1), Verdict.PASSED),  # just above 1.71
        ((1.71, 1.70, 1.72), (2.0, 1.9, 2.1), Verdict.INCONCLUSIVE),  # on both sides of it
        ((1.7, 1.65, 1.70), (2.0, 1.9, 2.1), Verdict.REGRESSED),  # just below it
        ((1.0, 0.5, 1.95), (2.0, 1.9, 2.1), Verdict.INCONCLUSIVE),  # half as fast, and too noisy to tell
        ((2.0, 0.5, 3.95), (2.0, 1.9, 2.1), Verdict.INCONCLUSIVE),  # as fast, and too noisy to tell
        ((3.0, 1.5, 3.95), (2.0, 1.9, 2.1), Verdict.INCONCLUSIVE),
        ((1.0, 0.0, math.inf), (2.0, 1.9, 2.1), Verdict.INCONCLUSIVE),  # too few rounds to say anything
        ((1.0, 0.9, 1.1), (2.0, 0.8, 3.0), Verdict.PASSED),  # the baseline was the noisy one
        ((1.0, 0.9, 1.1), (2.0, 1.9, 2.1), Verdict.REGRESSED),
        ((2.4, 2.3, 2.5), (2.0, 1.9, 2.1), Verdict.PASSED),  # just below 2.31
        ((2.4, 2.32, 2.5), (2.0, 1.9, 2.1), Verdict.IMPROVED),
        ((2.4, 2.32, math.inf), (2.0, 1.9, 2.1), Verdict.IMPROVED),
    ],
)
def test_speed_moves_only_beyond_both_intervals(now, then, verdict):
    found = change(speed(*now), Then(*then))
    assert found.verdict is verdict
    assert bool(found.reason) is (verdict is not Verdict.PASSED)


@pytest.mark.parametrize("metric", ["energy_ratio", "cost_ratio"])
@pytest.mark.parametrize(
    "now, verdict",
    [
        ((0.5, 0.47, 0.53), Verdict.PASSED),
        ((0.56, 0.54, 0.57), Verdict.PASSED),  # above both, but by less than a tenth of 0.52
        ((0.57, 0.56, 0.58), Verdict.INCONCLUSIVE),  # on both sides of 0.572
        ((0.60, 0.58, 0.62), Verdict.REGRESSED),
        ((0.90, 0.58, math.inf), Verdict.REGRESSED),
        ((0.90, 0.40, math.inf), Verdict.INCONCLUSIVE),
        ((0.40, 0.10, 0.58), Verdict.INCONCLUSIVE),
        ((0.45, 0.44, 0.46), Verdict.PASSED),  # below, but by less than a tenth of 0.48
        ((0.40, 0.38, 0.43), Verdict.IMPROVED),
        ((0.40, 0.0, 0.43), Verdict.IMPROVED),
    ],
)
def test_more_energy_and_more_dollars_are_worse(metric, now, verdict):
    found = change(timed(metric, *now), Then(0.5, 0.48, 0.52))
    assert found.verdict is verdict
    assert bool(found.reason) is (verdict is not Verdict.PASSED)


@given(st.floats(0.1, 10.0), st.floats(1.0, 2.0), st.floats(1.0, 2.0), st.sampled_from([0.0, 0.02, 0.1]))
def test_a_cost_that_regressed_is_a_speed_that_did(value, below, above, effect):
    """The same rounds, told as speed and as cost: they may differ by the square of the effect, not in direction."""
    then = Then(1.0, 0.95, 1.05)
    upside_down = Then(1.0, 1 / 1.05, 1 / 0.95)
    as_speed = change(speed(value, value / below, value * above), then, effect).verdict
    as_cost = change(timed("cost_ratio", 1 / value, 1 / (value * above), below / value), upside_down, effect).verdict
    assert {as_speed, as_cost} != {Verdict.REGRESSED, Verdict.IMPROVED}
    if as_cost is Verdict.REGRESSED:
        assert value * above < 0.95, "the intervals of the speeds are apart, too"
    if as_speed is Verdict.REGRESSED:
        assert as_cost is Verdict.REGRESSED or effect > 0.0, "1 / 0.9 is more than 1.1"


def test_what_is_undecided_says_what_is_asked():
    found = change(speed(1.0, 0.5, 1.95), Then(2.0, 1.9, 2.1))
    assert found.shown == "-50.0%"
    assert found.reason == ("1 x [0.5 to 1.95] now, 2 [1.9 to 2.1] before: whether it is worse by 10% is not decided")


def test_speed_says_both_intervals():
    found = change(speed(1.0, 0.9, 1.1), Then(2.0, 1.9, 2.1))
    assert found.shown == "-50.0%"
    assert found.reason == "1 x [0.9 to 1.1] now, 2 [1.9 to 2.1] before"


def test_a_baseline_without_an_interval_is_its_value():
    assert change(speed(1.7, 1.6, 1.79), Then(2.0)).verdict is Verdict.REGRESSED
    assert change(speed(1.7, 1.6, 1.81), Then(2.0)).verdict is Verdict.INCONCLUSIVE
    assert change(speed(1.9, 1.81, 2.0), Then(2.0)).verdict is Verdict.PASSED
    assert change(speed(2.3, 2.21, 2.4), Then(2.0)).verdict is Verdict.IMPROVED
    assert change(timed("cost_ratio", 2.3, 2.21, 2.4), Then(2.0)).verdict is Verdict.REGRESSED


@pytest.mark.parametrize("metric", ["throughput_ratio", "energy_ratio", "cost_ratio"])
def test_the_same_rounds_again_have_passed_or_are_undecided(metric):
    """However wide an interval is, it is never worse or better than itself."""
    for low, high in ((1.0, 1.0), (0.97, 1.03), (0.5, 2.0), (0.0, math.inf)):
        then = Then(1.0, low if math.isfinite(high) else 0.9, high if math.isfinite(high) else 1.1)
        assert change(timed(metric, 1.0, low, high), then).verdict in (Verdict.PASSED, Verdict.INCONCLUSIVE)
    assert change(timed(metric, 1.0, 0.97, 1.03), Then(1.0, 0.97, 1.03)).verdict is Verdict.PASSED


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_speed_that_is_not_finite_never_passes(bad):
    for metric in ("energy_ratio", "cost_ratio"):
        assert change(timed(metric, bad, bad, bad), Then(2.0, 1.9, 2.1)).verdict is Verdict.INCOMPARABLE
    assert change(speed(bad, bad, bad), Then(2.0, 1.9, 2.1)).verdict not in (Verdict.PASSED, Verdict.IMPROVED)
    assert change(speed(2.0, 1.9, 2.1), Then(bad, bad, bad)).verdict not in (Verdict.PASSED, Verdict.IMPROVED)


def test_speed_with_an_interval_of_nan_never_passes():
    """Of a gate without limits, nothing else looks at the interval."""
    assert change(speed(1.0, math.nan, math.nan), Then(2.0, 1.9, 2.1)).verdict is Verdict.INCOMPARABLE


def test_the_change_of_speed_that_matters_can_be_set():
    now, then = speed(1.8, 1.75, 1.85), Then(2.0, 1.9, 2.1)
    assert change(now, then, 0.02).verdict is Verdict.REGRESSED
    assert change(now, then, 0.03).verdict is Verdict.INCONCLUSIVE
    assert change(now, then, 0.08).verdict is Verdict.PASSED
    assert change(speed(2.2, 2.15, 2.25), then, 0.02).verdict is Verdict.IMPROVED
    assert change(speed(1.0, 0.96, 1.1), then, 0.5).verdict is Verdict.PASSED
    cost = timed("cost_ratio", 2.2, 2.15, 2.25)
    assert [change(cost, then, effect).verdict for effect in (0.02, 0.05, 0.08)] == [
        Verdict.REGRESSED,
        Verdict.INCONCLUSIVE,
        Verdict.PASSED,
    ]


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


@pytest.mark.parametrize("of", ["weights", "kv_cache", "peak"])
def test_the_change_of_memory_that_matters_can_be_set(of):
    assert change(memory(1_030_000, of), Then(1_000_000), 0.05).verdict is Verdict.PASSED
    assert change(memory(1_030_000, of), Then(1_000_000), 0.02).verdict is Verdict.REGRESSED
    assert change(memory(970_000, of), Then(1_000_000), 0.02).verdict is Verdict.IMPROVED
    assert change(memory(1_000_001, of), Then(1_000_000), 0.0).verdict is Verdict.REGRESSED
    assert change(memory(1_000_000, of), Then(1_000_000), 0.0).verdict is Verdict.PASSED
