"""Speed, energy and cost: how many rounds are enough, what conditions keep from being judged, and the record."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from verdicts_examples import DEVICE, OTHER, entry, record, timed

from pytest_quant import baseline
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Quantity
from pytest_quant.gates.verdict import Verdict
from pytest_quant.report.below import below
from pytest_quant.report.figures import shown_value
from pytest_quant.verdicts import Judge, Policy, not_measured

LIMITS = {"throughput_ratio": ("min", 0.5), "energy_ratio": ("max", 9.0), "cost_ratio": ("max", 9.0)}
TIMED = [*LIMITS]
CONDITIONS = (("thermal-throttling", "the GPU slowed down at 88 C"), ("cpu-load", "others took 40 % of the CPUs"))
POLICIES = [
    {"missing": missing, "update": update} for missing in ("record", "fail") for update in (None, "new", "all", "prune")
]
RECORDS = [policy for policy in POLICIES if policy["missing"] == "record" or policy["update"] in ("new", "all")]
ONLY_COMPARES = [policy for policy in POLICIES if policy not in RECORDS]


def judge(root, metric: str = "throughput_ratio", *limits, compares: bool = True, effect=None, **policy) -> Judge:
    asked = Gate(metric, limits or (LIMITS[metric],), (("phase", "decode"),), effect)
    return Judge("test_it.py::test_it[nf4]", asked, DEVICE, Policy(compares=compares, root=root, **policy))


def worse(metric: str, half: float = 0.05, **more):
    return timed(metric, 1.0 if metric == "throughput_ratio" else 2.2, half, **more)


def better(metric: str, **more):
    return timed(metric, 2.2 if metric == "throughput_ratio" else 1.0, **more)


# enough


@pytest.mark.parametrize("metric", TIMED)
def test_without_baselines_the_limits_alone_decide(tmp_path, metric):
    record(tmp_path, entry(timed(metric)))
    for policy in POLICIES:
        assert judge(tmp_path, metric, compares=False, **policy).enough(worse(metric, half=0.6))


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", RECORDS)
def test_what_will_be_recorded_is_played_until_it_is_narrow_or_the_budget_is_spent(tmp_path, metric, policy):
    asked = judge(tmp_path, metric, **policy)
    assert not asked.enough(timed(metric, half=0.08))
    assert asked.enough(timed(metric, half=0.07))
    assert asked.enough(timed(metric, half=0.08, spent=True))


@pytest.mark.parametrize("policy", ONLY_COMPARES)
def test_where_none_is_there_and_none_will_be_recorded_nothing_waits(tmp_path, policy):
    assert judge(tmp_path, **policy).enough(timed(half=0.6))


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy["update"] != "all"])
def test_with_a_baseline_it_is_enough_once_it_is_decided_in_either_direction(tmp_path, metric, policy):
    record(tmp_path, entry(timed(metric)))
    asked = judge(tmp_path, metric, **policy)
    assert asked.enough(timed(metric, half=0.09)), "no worse, however wide"
    assert asked.enough(worse(metric))
    assert asked.enough(better(metric))
    for undecided in (timed(metric, half=0.45), worse(metric, half=0.95)):
        assert not asked.enough(undecided)
        assert asked.enough(replace(undecided, spent=True))


def test_the_change_that_matters_decides_what_is_enough(tmp_path):
    record(tmp_path, entry(timed()))
    now = timed(half=0.4)
    assert not judge(tmp_path).enough(now)
    assert judge(tmp_path, effect=0.5).enough(now)


@pytest.mark.parametrize("missing", ["record", "fail"])
def test_a_baseline_that_is_to_be_replaced_must_be_narrow(tmp_path, missing):
    record(tmp_path, entry(timed()))
    asked = judge(tmp_path, update="all", missing=missing)
    assert not asked.enough(timed(half=0.09))
    assert asked.enough(timed(half=0.07))


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_broken_limit_is_enough_for_every_policy(tmp_path, metric, policy):
    name = LIMITS[metric][0]
    broken = judge(tmp_path, metric, (name, 9.0 if name == "min" else 0.1), **policy)
    assert broken.enough(timed(metric, half=0.6))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_damaged_baseline_is_not_waited_for(tmp_path, policy):
    record(tmp_path, entry(timed())).write_text("{")
    assert judge(tmp_path, **policy).enough(timed(half=0.6))


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize(
    "limits, compares, questions", [(0, False, 1), (0, True, 1), (1, False, 1), (1, True, 2), (2, True, 3)]
)
def test_each_limit_is_a_question_and_the_baseline_is_one(tmp_path, metric, limits, compares, questions):
    names = {"energy_ratio": ("max", "max_joules"), "cost_ratio": ("max", "max_usd")}.get(metric, ("min", "min"))
    asked = Gate(metric, tuple((name, 1.0) for name in names[:limits]))
    assert Judge("t", asked, DEVICE, Policy(compares=compares, root=tmp_path)).questions == questions


# what is recorded


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", RECORDS)
@pytest.mark.parametrize("spent", [False, True])
def test_a_first_measurement_is_recorded_with_its_interval_and_compares_as_unchanged(tmp_path, metric, policy, spent):
    first = judge(tmp_path, metric, **policy).decide(timed(metric, spent=spent))
    assert (first.record["baseline"], first.breaks) == ({"verdict": "new"}, False)
    assert (first.entry["value"], first.entry["low"], first.entry["high"]) == (1.5, 1.45, 1.55)
    record(tmp_path, baseline.Entry(**first.entry))
    again = judge(tmp_path, metric, **policy).decide(timed(metric, spent=spent))
    assert again.record["baseline"] == {"verdict": "passed", "value": 1.5, "change": "+0.0%"}
    assert (again.entry, again.breaks) == (None, False)


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_regression_breaks_the_build_unless_it_is_accepted(tmp_path, metric, policy):
    record(tmp_path, entry(timed(metric)))
    found = judge(tmp_path, metric, **policy).decide(worse(metric))
    accepted = policy["update"] == "all"
    assert found.record["baseline"]["verdict"] == "regressed"
    assert (found.breaks, found.entry is not None) == (not accepted, accepted)


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_budget_left_undecided_breaks_nothing_and_is_said(tmp_path, metric, policy):
    record(tmp_path, entry(timed(metric)))
    found = judge(tmp_path, metric, **policy).decide(timed(metric, half=0.45, spent=True))
    assert (found.record["baseline"]["verdict"], found.breaks) == ("inconclusive", False)
    assert found.record["baseline"]["reason"].endswith("whether it is worse by 10% is not decided")


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", POLICIES)
def test_another_device_s_speed_says_nothing(tmp_path, metric, policy):
    record(tmp_path, entry(timed(metric)), device=OTHER)
    found = judge(tmp_path, metric, **policy).decide(worse(metric))
    records = policy in RECORDS
    assert found.record["baseline"]["verdict"] == ("new" if records else "missing")
    assert found.breaks is not records


def test_another_counter_of_energy_is_another_question(tmp_path):
    def by(counter: str):
        one = timed("energy_ratio")
        return replace(one, identity={"metric": {**one.identity["metric"], "counter": counter}})

    record(tmp_path, entry(by("RAPL (package-0)")))
    for policy, verdict in (({"missing": "record"}, "new"), ({"missing": "fail"}, "missing")):
        found = judge(tmp_path, "energy_ratio", **policy).decide(by("NVML (total energy of the board)"))
        assert found.record["baseline"]["verdict"] == verdict


# conditions


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_regression_under_conditions_is_not_judged_and_not_recorded(tmp_path, metric, policy):
    record(tmp_path, entry(timed(metric)))
    found = judge(tmp_path, metric, **policy).decide(worse(metric, conditions=CONDITIONS))
    said = found.record["baseline"]
    assert (said["verdict"], found.breaks, found.entry) == ("inconclusive", False, None)
    assert said["reason"].endswith("; not judged: the GPU slowed down at 88 C; others took 40 % of the CPUs")
    assert said["change"] in ("-33.3%", "+46.7%"), "and is shown all the same"


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", RECORDS)
def test_a_first_measurement_under_conditions_is_missing_and_says_why(tmp_path, metric, policy):
    found = judge(tmp_path, metric, **policy).decide(timed(metric, conditions=CONDITIONS))
    assert found.record["baseline"] == {
        "verdict": "missing",
        "reason": "not recorded: measured while the GPU slowed down at 88 C; others took 40 % of the CPUs",
    }
    assert (found.breaks, found.entry) == (False, None)


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("policy", ONLY_COMPARES)
def test_where_a_baseline_is_required_conditions_excuse_nothing(tmp_path, metric, policy):
    found = judge(tmp_path, metric, **policy).decide(timed(metric, conditions=CONDITIONS))
    assert (found.record["baseline"]["verdict"], found.breaks, found.entry) == ("missing", True, None)


@pytest.mark.parametrize("metric", TIMED)
@pytest.mark.parametrize("make, verdict", [(timed, "passed"), (better, "inconclusive"), (worse, "inconclusive")])
def test_under_conditions_not_even_what_is_accepted_replaces_a_baseline(tmp_path, metric, make, verdict):
    """And nothing is called better, either."""
    record(tmp_path, entry(timed(metric)))
    found = judge(tmp_path, metric, update="all").decide(make(metric, conditions=CONDITIONS))
    assert (found.record["baseline"]["verdict"], found.breaks, found.entry) == (verdict, False, None)


@pytest.mark.parametrize("policy", POLICIES)
def test_another_identity_under_conditions_is_not_recorded(tmp_path, policy):
    record(tmp_path, entry(timed(), identity={**timed().identity, "engine": "vllm"}))
    found = judge(tmp_path, **policy).decide(timed(conditions=CONDITIONS))
    assert (found.record["baseline"]["verdict"], found.entry) == ("incomparable", None)


@pytest.mark.parametrize("metric", TIMED)
def test_conditions_excuse_no_limit(tmp_path, metric):
    name = LIMITS[metric][0]
    asked = judge(tmp_path, metric, (name, 9.0 if name == "min" else 0.1))
    found = asked.decide(timed(metric, conditions=CONDITIONS))
    assert (found.record["verdict"], found.breaks) == ("failed", True)


def test_conditions_are_in_the_record(tmp_path):
    found = judge(tmp_path, compares=False).decide(timed(conditions=CONDITIONS)).record
    assert found["conditions"] == [
        {"name": "thermal-throttling", "text": "the GPU slowed down at 88 C"},
        {"name": "cpu-load", "text": "others took 40 % of the CPUs"},
    ]
    assert "conditions" not in judge(tmp_path, compares=False).decide(timed()).record


# the record, and what is shown of it

BOUND = {
    "tokens_per_second": 140.0,
    "share": 0.8571,
    "regime": "bandwidth",
    "intensity": 1.9,
    "arithmetic": "168.4 MB of weights at 23.5 GB/s = 7.2 ms (bandwidth)",
}
FIGURES = {
    "format_value": 120.0,
    "reference_value": 80.0,
    "format_inter_token_p50_ms": 8.333,
    "format_inter_token_p90_ms": 9.0,
    "format_inter_token_p99_ms": 12.01,
}


def test_a_record_of_a_speed_in_full(tmp_path):
    now = timed(bounds={"format": BOUND}, figures=FIGURES)
    found = judge(tmp_path, compares=False).decide(now).record
    assert found == {
        "test": "test_it.py::test_it[nf4]",
        "metric": "throughput_ratio",
        "model": "org/model",
        "format": "nf4",
        "engine": "transformers",
        "value": 1.5,
        "low": 1.45,
        "high": 1.55,
        "unit": "x",
        "limit": {"min": 0.5},
        "limit_shown": "min 0.5x",
        "verdict": "passed",
        "identity": {"metric": {"name": "throughput_ratio", "phase": "decode"}},
        "proof": {},
        "parameters": {"phase": "decode"},
        "reference": "fp32",
        "confidence": 0.99,
        "rounds": {"played": 14, "budget_spent": False},
        "bounds": {"format": BOUND},
        **FIGURES,
    }
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "metric, limit, name, shown, limit_shown",
    [
        ("energy_ratio", ("max_joules", 3.0), "joules", "2 J/tok [1.9, 2.1]", "max 3 J/tok"),
        ("cost_ratio", ("max_usd", 3.0), "usd", "2 $/Mtok [1.9, 2.1]", "max 3 $/Mtok"),
        ("energy_ratio", ("max", 3.0), None, "1.5x [1.45, 1.55]", "max 3x"),
        ("cost_ratio", ("max", 3.0), None, "1.5x [1.45, 1.55]", "max 3x"),
    ],
)
def test_what_alone_is_limited_is_what_is_shown(tmp_path, metric, limit, name, shown, limit_shown):
    found = judge(tmp_path, metric, limit, compares=False).decide(timed(metric)).record
    assert (found.get("limited"), shown_value(found), found["limit_shown"]) == (name, shown, limit_shown)
    both = judge(tmp_path, metric, limit, LIMITS[metric], compares=False).decide(timed(metric)).record
    assert shown_value(both) == "1.5x [1.45, 1.55]"


def test_an_interval_without_ends_is_plain_data(tmp_path):
    now = timed("cost_ratio", quantities={"ratio": Quantity(0.5, 0.0, float("inf"), "x")})
    found = judge(tmp_path, "cost_ratio", compares=False).decide(now).record
    assert (found["low"], "high" in found, found["verdict"]) == (0.0, False, "inconclusive")
    assert shown_value(found) == "0.5x [0, inf]"
    json.dumps(found, allow_nan=False)


def test_a_gate_that_has_no_number_is_shown_without_one(tmp_path):
    asked = Gate("energy_ratio", (("max", 1.0),), (("phase", "decode"),))
    found = not_measured("t", asked, "m", "nf4", Verdict.NOT_MEASURED, "the counter did not move", "transformers")
    assert found.breaks
    assert below(found.record) == ()


def lines(tmp_path, metric: str = "throughput_ratio", **more) -> tuple[str, ...]:
    return below(judge(tmp_path, metric, compares=False).decide(timed(metric, **more)).record)


def test_speeds_stand_beside_their_bound(tmp_path):
    found = lines(tmp_path, bounds={"format": BOUND}, figures=FIGURES)
    assert len(found) == 2
    ours, theirs = found
    for word in ("nf4 120 tokens/s", "86% of at most 140", "bandwidth", "8.33 ms", "12", "14 rounds"):
        assert word in ours
    assert "fp32 80 tokens/s" in theirs
    assert "at most" not in theirs, "its bound is not known"
    assert "ms" not in theirs, "and its steps were not timed"


@pytest.mark.parametrize("share, shown", [(0.9949, "99%"), (0.1, "10%"), (0.0512, "5.1%"), (1.034, "103%")])
def test_a_small_share_of_the_bound_has_a_digit_more(tmp_path, share, shown):
    ours, _ = lines(tmp_path, bounds={"format": {**BOUND, "share": share}}, figures=FIGURES)
    assert f" {shown} of at most 140" in ours


def test_energy_says_its_joules_and_watts(tmp_path):
    figures = {"format_value": 0.5, "reference_value": 2.0, "format_watts": 25.0, "reference_watts": 50.0}
    assert lines(tmp_path, "energy_ratio", figures=figures) == ("nf4 0.5 J/tok, 25 W", "fp32 2 J/tok, 50 W")


def test_other_metrics_have_no_speeds():
    assert below({"metric": "memory_budget", "format_value": 1.0}) == ()
    assert below({"metric": "perplexity_delta", "format_value": 1.0, "reference_value": 1.0}) == ()
