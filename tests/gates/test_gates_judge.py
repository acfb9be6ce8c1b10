"""Limits: each kind, each verdict, and the interval that decides it."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.gates.gate import LIMITS, Gate, Judgement, decided, judge, needs_full_kl
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.verdict import Verdict

PASSED, FAILED, INCONCLUSIVE = Verdict.PASSED, Verdict.FAILED, Verdict.INCONCLUSIVE


def measured(metric: str, **quantities: Quantity) -> Measurement:
    return Measurement(metric, "org/model", "nf4", "transformers", next(iter(quantities)), quantities, {})


def of_windows(metric: str, quantities: dict[str, Quantity], windows=(32, 32), bounds=(), caveat="") -> Measurement:
    main = next(iter(quantities))
    more = {"windows": windows, "lower_bounds": frozenset(bounds), "caveat": caveat}
    return Measurement(metric, "org/model", "nf4", "transformers", main, quantities, {}, **more)


def nats(*number: float, detectable: float = 0.0) -> Quantity:
    return Quantity(*(number * 3 if len(number) == 1 else number), "nats", detectable)


def divergence(windows=(32, 32), bounds=(), caveat="", **quantities: Quantity) -> Measurement:
    return of_windows("kl_divergence", quantities, windows, bounds, caveat)


def agreement(*share: float, detectable: float = 0.0) -> Measurement:
    numbers = share * 3 if len(share) == 1 else share
    return of_windows("token_agreement", {"share": Quantity(*numbers, "share", detectable)})


def perplexity(*delta: float, ratio: float = 1.0) -> Measurement:
    given = Quantity(*(delta * 3 if len(delta) == 1 else delta), "ppl")
    return measured("perplexity_delta", delta=given, ratio=Quantity.exact(ratio, "x"))


def speed(*ratio: float) -> Measurement:
    return measured("throughput_ratio", ratio=Quantity(*(ratio * 3 if len(ratio) == 1 else ratio), "x"))


def energy(*ratio: float, joules: float = 0.5) -> Measurement:
    numbers = ratio * 3 if len(ratio) == 1 else ratio
    return measured("energy_ratio", ratio=Quantity(*numbers, "x"), joules=Quantity.exact(joules, "J/tok"))


def cost(*ratio: float, usd: float = 2.0) -> Measurement:
    numbers = ratio * 3 if len(ratio) == 1 else ratio
    return measured("cost_ratio", ratio=Quantity(*numbers, "x"), usd=Quantity.exact(usd, "$/Mtok"))


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
        (energy(0.5), ("max", 0.5), PASSED),
        (energy(0.499), ("max", 0.5), PASSED),
        (energy(0.501), ("max", 0.5), FAILED),
        (energy(9.0, joules=0.25), ("max_joules", 0.25), PASSED),
        (energy(0.1, joules=0.2501), ("max_joules", 0.25), FAILED),
        (cost(0.5), ("max", 0.5), PASSED),
        (cost(0.501), ("max", 0.5), FAILED),
        (cost(9.0, usd=0.25), ("max_usd", 0.25), PASSED),
        (cost(0.1, usd=0.2501), ("max_usd", 0.25), FAILED),
        (memory(6_000_000_000), ("max_gb", 6.0), PASSED),
        (memory(6_000_000_001), ("max_gb", 6.0), FAILED),
        (memory(6 * 2**30), ("max_gib", 6.0), PASSED),
        (memory(6 * 2**30 + 1), ("max_gib", 6.0), FAILED),
        (memory(6 * 2**30), ("max_gb", 6.0), FAILED),
        (memory(9e9, ratio=0.35), ("max_ratio", 0.35), PASSED),
        (memory(1.0, ratio=0.36), ("max_ratio", 0.35), FAILED),
        (divergence(mean=nats(0.05)), ("max", 0.05), PASSED),
        (divergence(mean=nats(0.0501)), ("max", 0.05), FAILED),
        (divergence(mean=nats(9.0), p90=nats(0.1)), ("p90", 0.1), PASSED),
        (divergence(mean=nats(0.0), p90=nats(0.1001)), ("p90", 0.1), FAILED),
        (divergence(mean=nats(9.0), p95=nats(0.2)), ("p95", 0.2), PASSED),
        (divergence(mean=nats(0.0), p95=nats(0.2001)), ("p95", 0.2), FAILED),
        (divergence(mean=nats(9.0), p99=nats(0.5)), ("p99", 0.5), PASSED),
        (divergence(mean=nats(0.0), p99=nats(0.5001)), ("p99", 0.5), FAILED),
        (divergence(mean=nats(9.0), p999=nats(2.0)), ("p999", 2.0), PASSED),
        (divergence(mean=nats(0.0), p999=nats(2.001)), ("p999", 2.0), FAILED),
        (divergence(mean=nats(9.0), bound=nats(0.04)), ("max_bound", 0.04), PASSED),
        (divergence(mean=nats(0.0), bound=nats(0.0401)), ("max_bound", 0.04), FAILED),
        (agreement(0.9), ("min", 0.9), PASSED),
        (agreement(1.0), ("min", 1.0), PASSED),
        (agreement(0.901), ("min", 0.9), PASSED),
        (agreement(0.899), ("min", 0.9), FAILED),
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


@pytest.mark.parametrize("make", [energy, cost])
@pytest.mark.parametrize(
    "interval, verdict",
    [
        ((0.6, 0.5, 0.69), PASSED),
        ((0.6, 0.5, 0.7), PASSED),
        ((0.6, 0.5, 0.71), INCONCLUSIVE),
        ((0.8, 0.7, 0.9), INCONCLUSIVE),
        ((0.8, 0.71, 0.9), FAILED),
        ((0.6, 0.0, 0.69), PASSED),
        ((0.6, 0.5, math.inf), INCONCLUSIVE),
        ((0.6, 0.0, math.inf), INCONCLUSIVE),
    ],
)
def test_less_energy_and_fewer_dollars_are_better(make, interval, verdict):
    assert judge(make(*interval), (("max", 0.7),)).verdict is verdict


@pytest.mark.parametrize("make, second", [(energy, ("max_joules", 1.0)), (cost, ("max_usd", 1.0))])
def test_a_ratio_and_an_amount_are_two_limits(make, second):
    name = {"max_joules": "joules", "max_usd": "usd"}[second[0]]
    for ratio, amount, verdict in (
        (0.5, 0.9, PASSED),
        (0.8, 0.9, FAILED),
        (0.5, 1.1, FAILED),
    ):
        found = judge(make(ratio, **{name: amount}), (("max", 0.7), second))
        assert found.verdict is verdict
    assert judge(make(0.6, 0.5, 0.9, **{name: 0.9}), (("max", 0.7), second)).verdict is INCONCLUSIVE


MAKERS = [
    (perplexity, ("max", 1.0), 0.5),
    (speed, ("min", 1.5), 2.0),
    (energy, ("max", 0.7), 0.5),
    (cost, ("max", 0.7), 0.5),
    (lambda *numbers: divergence(mean=nats(*numbers)), ("max", 0.1), 0.05),
    (agreement, ("min", 0.9), 0.95),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make, limit, good", MAKERS)
def test_no_value_that_is_not_finite_passes(make, limit, good, bad):
    for numbers in ((bad, good, good), (bad, -math.inf, math.inf), (bad, bad, bad)):
        found = judge(make(*numbers), (limit,))
        assert found.verdict is FAILED
        assert "not a finite number" in found.reason


@pytest.mark.parametrize("where", [1, 2])
@pytest.mark.parametrize("make, limit, good", MAKERS)
def test_no_interval_with_nan_passes(make, limit, good, where):
    numbers = [good, good, good]
    numbers[where] = math.nan
    found = judge(make(*numbers), (limit,))
    assert found.verdict is FAILED
    assert "not a finite number" in found.reason


@pytest.mark.parametrize("make, limit, good", MAKERS)
def test_an_end_that_is_not_bounded_matters_on_the_harmful_side_only(make, limit, good):
    """A percentile of few tokens has no lower end; that says nothing against an upper limit."""
    downwards, upwards = make(good, -math.inf, good), make(good, good, math.inf)
    harmless, harmful = (upwards, downwards) if limit[0] == "min" else (downwards, upwards)
    assert judge(harmless, (limit,)) == Judgement(PASSED)
    assert judge(harmful, (limit,)).verdict is INCONCLUSIVE
    assert "inf" in judge(harmful, (limit,)).reason
    assert judge(make(good, -math.inf, math.inf), (limit,)).verdict is INCONCLUSIVE


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
    assert judge(energy(0.8), (("max", 0.7),)).reason == "0.8 x is above the limit (at most 0.7 x)"
    assert (
        judge(energy(0.8, joules=2.5), (("max_joules", 2.0),)).reason
        == "2.5 J/tok is above the limit (at most 2 J/tok)"
    )
    assert judge(cost(0.8, usd=2.5), (("max_usd", 2.0),)).reason == "2.5 $/Mtok is above the limit (at most 2 $/Mtok)"
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
        ("kl_divergence", "max"): ("mean", 1.0),
        ("kl_divergence", "p90"): ("p90", 1.0),
        ("kl_divergence", "p95"): ("p95", 1.0),
        ("kl_divergence", "p99"): ("p99", 1.0),
        ("kl_divergence", "p999"): ("p999", 1.0),
        ("kl_divergence", "max_bound"): ("bound", 1.0),
        ("token_agreement", "min"): ("share", 1.0),
        ("task_accuracy", "max_drop"): ("drop", 1.0),
        ("task_accuracy", "min_recovery"): ("recovery", 1.0),
        ("task_accuracy", "min_accuracy"): ("reference_accuracy", 1.0),
        ("generation_match", "min"): ("share", 1.0),
        ("generation_match", "min_prefix"): ("prefix", 1.0),
        ("generation_match", "min_same"): ("same", 1.0),
        ("layer_sensitivity", "max"): ("nats", 1.0),
        ("layer_sensitivity", "max_kl"): ("kl", 1.0),
        ("throughput_ratio", "min"): ("ratio", 1.0),
        ("energy_ratio", "max"): ("ratio", 1.0),
        ("energy_ratio", "max_joules"): ("joules", 1.0),
        ("cost_ratio", "max"): ("ratio", 1.0),
        ("cost_ratio", "max_usd"): ("usd", 1.0),
        ("memory_budget", "max_gb"): ("bytes", 10**9),
        ("memory_budget", "max_gib"): ("bytes", 2**30),
        ("memory_budget", "max_ratio"): ("ratio", 1.0),
    }
    assert LIMITS["memory_budget"]["max_gib"].shown("max_gib", 1.5) == "max 1.5 GiB"
    assert LIMITS["throughput_ratio"]["min"].shown("min", 1.5) == "min 1.5x"
    assert LIMITS["energy_ratio"]["max"].shown("max", 0.7) == "max 0.7x"
    assert LIMITS["energy_ratio"]["max_joules"].shown("max_joules", 0.5) == "max 0.5 J/tok"
    assert LIMITS["cost_ratio"]["max_usd"].shown("max_usd", 0.5) == "max 0.5 $/Mtok"
    assert LIMITS["kl_divergence"]["p99"].shown("p99", 0.5) == "p99 0.5 nats"
    assert LIMITS["kl_divergence"]["max_bound"].shown("max_bound", 0.05) == "bound 0.05 nats"
    assert LIMITS["token_agreement"]["min"].shown("min", 0.9) == "min 0.9"


def test_only_a_minimum_is_better_when_it_is_larger():
    larger = {
        (metric, name) for metric, kinds in LIMITS.items() for name, k in kinds.items() if not k.smaller_is_better(name)
    }
    assert larger == {(metric, name) for metric, kinds in LIMITS.items() for name in kinds if name.startswith("min")}
    assert {metric for metric, _ in larger} == {
        *("throughput_ratio", "token_agreement", "task_accuracy", "generation_match")
    }


def test_an_unknown_limit_is_not_passed_over():
    with pytest.raises(KeyError):
        judge(perplexity(0.0), (("maximum", 1.0),))


@pytest.mark.parametrize(
    "gate, needs",
    [
        (Gate("perplexity_delta"), True),
        (Gate("perplexity_delta", (("max", 1.0),)), True),
        (Gate("throughput_ratio", (("min", 1.0),)), True),
        (Gate("energy_ratio", (("max_joules", 1.0),)), True),
        (Gate("cost_ratio", (("max_usd", 1.0),)), True),
        (Gate("kl_divergence", (("max_bound", 1.0),)), True),
        (Gate("token_agreement", (("min", 1.0),)), True),
        (Gate("memory_budget"), False),
        (Gate("memory_budget", (("max_gb", 1.0), ("max_gib", 1.0))), False),
        (Gate("memory_budget", (("max_gb", 1.0), ("max_ratio", 0.5))), True),
    ],
)
def test_which_gates_need_the_reference(gate, needs):
    assert gate.needs_reference is needs


@pytest.mark.parametrize(
    "metric, windows, rounds",
    [
        ("perplexity_delta", True, False),
        ("kl_divergence", True, False),
        ("token_agreement", True, False),
        ("throughput_ratio", False, True),
        ("energy_ratio", False, True),
        ("cost_ratio", False, True),
        ("memory_budget", False, False),
    ],
)
def test_which_gates_are_answered_from_windows_and_which_from_rounds(metric, windows, rounds):
    assert (Gate(metric).is_quality, Gate(metric).is_timed) == (windows, rounds)


@pytest.mark.parametrize(
    "gate, needs",
    [
        (Gate("kl_divergence", (("max_bound", 0.1),)), False),
        (Gate("kl_divergence", (("max_bound", 0.1),), min_effect=0.002), False),
        (Gate("kl_divergence", (("max", 0.1),)), True),
        (Gate("kl_divergence", (("p99", 0.1),)), True),
        (Gate("kl_divergence", (("max", 0.1), ("max_bound", 0.1))), True),
        (Gate("kl_divergence"), True),
        (Gate("kl_divergence", min_effect=0.002), True),
        (Gate("perplexity_delta"), False),
        (Gate("token_agreement", (("min", 0.9),)), False),
    ],
)
def test_which_gates_need_both_models_beside_each_other(gate, needs):
    assert needs_full_kl(gate) is needs


# several limits


FINITE = st.floats(-1e6, 1e6)


@st.composite
def intervals(draw) -> Quantity:
    low, value, high = sorted(draw(st.tuples(FINITE, FINITE, FINITE)))
    ends = draw(st.sampled_from([(low, high), (-math.inf, high), (low, math.inf), (value, value)]))
    return nats(value, *ends)


@given(intervals(), FINITE)
def test_an_upper_limit_splits_all_intervals_in_three(quantity, limit):
    verdict = judge(divergence(mean=quantity), (("max", limit),)).verdict
    assert (verdict is PASSED) is (quantity.high <= limit)
    assert (verdict is FAILED) is (quantity.low > limit)


@given(intervals(), FINITE)
def test_a_lower_limit_splits_all_intervals_in_three(quantity, limit):
    share = Quantity(quantity.value, quantity.low, quantity.high, "share")
    verdict = judge(of_windows("token_agreement", {"share": share}), (("min", limit),)).verdict
    assert (verdict is PASSED) is (quantity.low >= limit)
    assert (verdict is FAILED) is (quantity.high < limit)


LIMITED = {"max": "mean", "p90": "p90", "p99": "p99", "max_bound": "bound"}


@given(
    st.fixed_dictionaries({name: intervals() for name in LIMITED.values()}), st.lists(FINITE, min_size=4, max_size=4)
)
def test_several_limits_are_as_good_as_the_worst_of_them_in_any_order(quantities, bounds):
    limits = tuple(zip(LIMITED, bounds, strict=True))
    one = divergence(**quantities)
    alone = {judge(one, (limit,)).verdict for limit in limits}
    worst = next(verdict for verdict in (FAILED, INCONCLUSIVE, PASSED) if verdict in alone)
    assert {judge(one, order).verdict for order in itertools.permutations(limits)} == {worst}
    assert decided(one, limits) is (worst is not INCONCLUSIVE)


def test_every_limit_that_breaks_is_named():
    one = divergence(mean=nats(0.2), p99=nats(3.0), p90=nats(0.1))
    reason = judge(one, (("max", 0.1), ("p90", 0.5), ("p99", 1.0))).reason
    assert reason == "0.2 nats is above the limit (at most 0.1 nats); 3 nats is above the limit (at most 1 nats)"


def test_where_one_limit_breaks_the_undecided_ones_are_not_explained():
    one = divergence(mean=nats(0.2, 0.05, 0.3), p99=nats(3.0))
    assert judge(one, (("max", 0.1), ("p99", 1.0))).reason == "3 nats is above the limit (at most 1 nats)"


# lower bounds


CAVEAT = "from the stored reference only a lower bound is known"


def bounded(*bound: float) -> Measurement:
    """What a stored reference gives: the divergence is at least this."""
    return divergence(bound=nats(*bound), mean=nats(*bound), p99=nats(2.0), bounds=("mean", "p99"), caveat=CAVEAT)


def test_a_lower_bound_above_the_limit_fails():
    found = judge(bounded(0.2), (("max", 0.1),))
    assert (found.verdict, found.reason) == (FAILED, "0.2 nats is above the limit (at most 0.1 nats)")
    assert judge(bounded(0.2, 0.15, 0.25), (("max", 0.1),)).verdict is FAILED
    assert judge(bounded(0.2), (("p99", 1.9),)).verdict is FAILED


@pytest.mark.parametrize("bound", [(0.0001,), (0.05, 0.04, 0.06), (0.05, 0.04, 0.2), (0.1,)])
def test_a_lower_bound_below_the_limit_decides_nothing_and_says_why(bound):
    found = judge(bounded(*bound), (("max", 0.1),))
    assert found.verdict is INCONCLUSIVE
    assert found.reason.endswith(f"; {CAVEAT}")


def test_the_bound_itself_is_no_bound_of_itself():
    assert judge(bounded(0.05), (("max_bound", 0.1),)) == Judgement(PASSED)
    assert judge(bounded(0.2), (("max_bound", 0.1),)).verdict is FAILED
    assert judge(bounded(0.1, 0.05, 0.2), (("max_bound", 0.1),)).verdict is INCONCLUSIVE


def test_a_bound_that_holds_does_not_close_the_limit_beside_it():
    found = judge(bounded(0.05), (("max", 0.1), ("max_bound", 0.1)))
    assert found.verdict is INCONCLUSIVE
    assert found.reason.count(CAVEAT) == 1


def test_a_limit_that_breaks_needs_no_caveat():
    assert CAVEAT not in judge(bounded(0.2), (("max", 0.1), ("max_bound", 0.3))).reason


def test_without_a_bound_there_is_no_caveat():
    assert judge(divergence(mean=nats(0.1, 0.05, 0.2), caveat=""), (("max", 0.1),)).reason.endswith("at most 0.1 nats")


def test_more_windows_help_only_while_the_bound_may_still_break_the_limit():
    limit = (("max", 0.1),)
    assert decided(bounded(0.05, 0.04, 0.06), limit)
    assert not decided(bounded(0.05, 0.04, 0.2), limit)
    assert decided(bounded(0.2, 0.15, 0.25), limit)
    assert not decided(bounded(0.05, 0.04, 0.15), (("max", 0.2), ("max_bound", 0.1)))
    assert decided(bounded(0.05), ())


@given(intervals(), FINITE)
def test_what_is_decided_of_a_bound_is_not_to_be_passed(quantity, limit):
    one = divergence(mean=quantity, bounds=("mean",), caveat=CAVEAT)
    verdict = judge(one, (("max", limit),)).verdict
    assert verdict in (FAILED, INCONCLUSIVE)
    assert (verdict is FAILED) is (quantity.low > limit)
    assert decided(one, (("max", limit),)) is (quantity.high <= limit or quantity.low > limit)


# limits that are too tight


def test_a_limit_tighter_than_the_text_can_test_is_told_whatever_the_verdict():
    for value, verdict in (((0.1,), PASSED), ((0.3,), FAILED), ((0.2, 0.1, 0.3), INCONCLUSIVE)):
        quantity = Quantity(*(value * 3 if len(value) == 1 else value), "ppl", detectable=0.5)
        found = judge(of_windows("perplexity_delta", {"delta": quantity}), (("max", 0.2),))
        assert found.verdict is verdict
        assert found.note == (
            "max 0.2 ppl is tighter than 32 windows can test: as a sample of such text they detect differences "
            "from 0.5 ppl up; give more text or a wider limit"
        )


@pytest.mark.parametrize("detectable, told", [(0.0, False), (0.0499, False), (0.05, False), (0.0501, True)])
@pytest.mark.parametrize(
    "metric, quantity, unit, name, limit",
    [
        ("perplexity_delta", "delta", "ppl", "max", 0.05),
        ("perplexity_delta", "ratio", "x", "max_ratio", 1.05),
        ("perplexity_delta", "ratio", "x", "max_ratio", 0.95),
        ("kl_divergence", "mean", "nats", "max", 0.05),
        ("kl_divergence", "bound", "nats", "max_bound", 0.05),
        ("token_agreement", "share", "share", "min", 0.95),
    ],
)
def test_tight_is_meant_from_where_a_perfect_format_would_be(metric, quantity, unit, name, limit, detectable, told):
    if detectable == 0.05:  # on the edge the arithmetic of 1.05 - 1 decides
        detectable -= 1e-9
    one = of_windows(metric, {quantity: Quantity(1.0, 1.0, 1.0, unit, detectable)}, windows=(20, 40))
    note = judge(one, ((name, limit),)).note
    assert bool(note) is told
    assert ("40 windows" in note) is told


def test_each_limit_that_is_too_tight_is_told():
    ratio, delta = Quantity(1.0, 1.0, 1.0, "x", 0.1), Quantity(0.0, 0.0, 0.0, "ppl", 0.5)
    one = of_windows("perplexity_delta", {"delta": delta, "ratio": ratio})
    both = judge(one, (("max", 0.1), ("max_ratio", 1.05))).note
    assert both.count("is tighter than") == 2
    assert judge(one, (("max", 0.1), ("max_ratio", 1.2))).note.count("is tighter than") == 1


def test_a_detectable_difference_of_nan_is_no_note():
    one = of_windows("perplexity_delta", {"delta": Quantity(0.0, 0.0, 0.0, "ppl", math.nan)})
    assert judge(one, (("max", 0.1),)).note == ""


def test_a_note_on_token_agreement_reads_as_a_sentence():
    note = judge(agreement(0.99, detectable=0.05), (("min", 0.99),)).note
    assert "they detect differences from 0.05 of tokens up" in note
    assert "  " not in note


def test_one_window_detects_nothing_and_not_differences_from_infinity_up():
    one = of_windows("perplexity_delta", {"delta": Quantity(0.1, 0.1, 0.1, "ppl", math.inf)}, windows=(1, 1))
    note = judge(one, (("max", 1.0),)).note
    assert note == "max 1 ppl is tested on a single window, which is no sample of anything; give more text"
