"""The verdict against the limits and the baseline: what breaks the build, and what is recorded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from verdicts_examples import METRICS, OTHER, TOTAL, entry, gate, judge, measured, record

from pytest_quant import baseline
from pytest_quant.gates.measurement import Quantity
from pytest_quant.report.figures import shown_value

POLICIES = [
    {"missing": missing, "update": update} for missing in ("record", "fail") for update in (None, "new", "all", "prune")
]
RECORDS = [policy for policy in POLICIES if policy["missing"] == "record" or policy["update"] in ("new", "all")]
ONLY_COMPARES = [policy for policy in POLICIES if policy not in RECORDS]


def there(root, kind: str) -> None:
    """A baseline of some kind, or none."""
    if kind == "same":
        record(root, entry(measured()))
    elif kind == "another value":
        record(root, entry(measured(by=0.3)))
    elif kind == "another identity":
        record(root, entry(measured(), identity={"metric": {"name": "perplexity_delta"}, "protocol": {}}))
    elif kind == "another device":
        record(root, entry(measured()), device=OTHER)
    elif kind == "no scores":
        record(root, entry(measured(), scores=None, reference_scores=None))


KINDS = ["none", "same", "another value", "another identity", "another device", "no scores"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("used", [8, TOTAL - 1])
def test_a_part_of_the_windows_is_never_recorded(tmp_path, kind, policy, used):
    there(tmp_path, kind)
    assert judge(tmp_path, **policy).decide(measured(used=used)).entry is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("value, half", [(3.0, 0.0), (1.0, 0.5)], ids=["broken", "undecided"])
def test_a_value_that_does_not_keep_its_limit_is_never_recorded(tmp_path, kind, policy, value, half):
    there(tmp_path, kind)
    found = judge(tmp_path, **policy).decide(measured(value=value, half=half))
    assert found.entry is None
    assert found.breaks is (half == 0.0) or found.record["baseline"]["verdict"] in ("missing", "incomparable")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_without_baselines_nothing_is_compared_and_nothing_recorded(tmp_path, kind, policy):
    there(tmp_path, kind)
    found = judge(tmp_path, compares=False, **policy).decide(measured())
    assert (found.entry, found.breaks, "baseline" in found.record) == (None, False, False)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("policy", RECORDS)
def test_the_first_whole_measurement_is_recorded_and_compares_as_unchanged(tmp_path, metric, policy):
    first = judge(tmp_path, gate(metric), **policy).decide(measured(metric))
    assert first.record["baseline"] == {"verdict": "new"}
    assert not first.breaks
    record(tmp_path, baseline.Entry(**first.entry))
    again = judge(tmp_path, gate(metric), **policy).decide(measured(metric))
    assert again.record["baseline"]["verdict"] == "passed"
    assert float(again.record["baseline"]["change"].split()[0]) == 0.0
    assert again.entry is None


@pytest.mark.parametrize("policy", ONLY_COMPARES)
def test_where_one_is_required_none_breaks_the_build_and_says_how_to_record_it(tmp_path, policy):
    found = judge(tmp_path, **policy).decide(measured())
    assert found.breaks
    assert found.entry is None
    assert found.record["baseline"]["verdict"] == "missing"
    assert "record one with --quant-baseline-update=new" in found.record["baseline"]["reason"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_regression_breaks_the_build_unless_it_is_accepted(tmp_path, metric, policy):
    record(tmp_path, entry(measured(metric)))
    worse = measured(metric, by=-0.3 if metric == "token_agreement" else 0.3)
    found = judge(tmp_path, gate(metric), **policy).decide(worse)
    assert found.record["baseline"]["verdict"] == "regressed"
    accepted = policy["update"] == "all"
    assert found.breaks is not accepted
    assert (found.entry is not None) is accepted


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("policy", POLICIES)
def test_an_improvement_breaks_nothing_and_is_kept_only_on_purpose(tmp_path, metric, policy):
    record(tmp_path, entry(measured(metric)))
    better = measured(metric, by=0.3 if metric == "token_agreement" else -0.3)
    found = judge(tmp_path, gate(metric), **policy).decide(better)
    assert (found.record["baseline"]["verdict"], found.breaks) == ("improved", False)
    assert (found.entry is not None) is (policy["update"] == "all")


@pytest.mark.parametrize("metric", METRICS)
def test_the_change_that_matters_is_the_gate_s(tmp_path, metric):
    record(tmp_path, entry(measured(metric)))
    worse = measured(metric, by=-0.1 if metric == "token_agreement" else 0.1)
    for effect, verdict in ((None, "regressed"), (0.05, "regressed"), (0.2, "passed")):
        found = judge(tmp_path, gate(metric, min_effect=effect)).decide(worse)
        assert found.record["baseline"]["verdict"] == verdict


def test_a_gate_without_limits_is_judged_by_its_baseline(tmp_path):
    record(tmp_path, entry(measured()))
    asked = replace(gate(), limits=(), min_effect=0.05)
    found = judge(tmp_path, asked).decide(measured(by=0.1, value=99.0))
    assert (found.record["verdict"], found.record["baseline"]["verdict"], found.breaks) == ("passed", "regressed", True)
    assert (found.record["limit"], found.record["limit_shown"]) == ({}, "")
    assert not judge(tmp_path, asked).decide(measured(by=0.01, value=99.0)).breaks


@pytest.mark.parametrize("policy", POLICIES)
def test_another_identity_names_what_differs(tmp_path, policy):
    there(tmp_path, "another identity")
    found = judge(tmp_path, **policy).decide(measured())
    assert found.record["baseline"]["verdict"] == "incomparable"
    assert 'protocol.name: absent -> "gptq-64"' in found.record["baseline"]["reason"]
    assert found.breaks is (policy in ONLY_COMPARES)
    assert (found.entry is not None) is (policy in RECORDS)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_baseline_without_scores_is_recorded_anew_where_that_is_allowed(tmp_path, policy):
    there(tmp_path, "no scores")
    found = judge(tmp_path, **policy).decide(measured())
    assert found.record["baseline"]["verdict"] == "incomparable"
    assert "record it anew" in found.record["baseline"]["reason"]
    assert found.breaks is (policy in ONLY_COMPARES)
    assert (found.entry is not None) is (policy in RECORDS)


@pytest.mark.parametrize("policy", POLICIES)
def test_another_device_s_baseline_is_compared_with_and_named(tmp_path, policy):
    there(tmp_path, "another device")
    found = judge(tmp_path, **policy).decide(measured())
    assert found.record["baseline"]["verdict"] == "passed"
    assert found.record["baseline"]["reason"] == "compared with the baseline of other-cpu"
    assert (found.entry is not None) is (policy in RECORDS)
    worse = judge(tmp_path, **policy).decide(measured(by=0.3))
    assert worse.record["baseline"]["verdict"] == "regressed"
    assert worse.record["baseline"]["reason"].startswith("compared with the baseline of other-cpu: +0.30000 nats")
    assert (worse.entry is not None) is (policy["update"] == "all")


@pytest.mark.parametrize("damage", ["{", "", "[]", '{"schema": 999}', "<<<<<<< ours\n{}"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_damaged_baseline_is_incomparable_and_breaks_the_build_always(tmp_path, damage, policy):
    path = record(tmp_path, entry(measured()))
    path.write_text(damage)
    found = judge(tmp_path, **policy).decide(measured())
    assert (found.record["baseline"]["verdict"], found.breaks, found.entry) == ("incomparable", True, None)
    assert str(path) in found.record["baseline"]["reason"]
    assert path.read_text() == damage


@pytest.mark.parametrize("inconclusive, breaks", [("pass", False), ("fail", True)])
def test_an_undecided_limit_breaks_the_build_where_that_is_asked(tmp_path, inconclusive, breaks):
    one = measured(value=1.0, half=0.5)
    found = judge(tmp_path, compares=False, inconclusive=inconclusive).decide(one)
    assert (found.record["verdict"], found.breaks) == ("inconclusive", breaks)


def test_a_limit_that_broke_early_leaves_the_baseline_open(tmp_path):
    record(tmp_path, entry(measured()))
    found = judge(tmp_path).decide(measured(used=8, value=3.0, by=0.002, spread=0.05))
    assert (found.record["verdict"], found.record["baseline"]["verdict"]) == ("failed", "inconclusive")
    assert found.breaks


# the record's shape


def plain(record) -> str:
    return json.dumps(record, allow_nan=False, default=dict)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("used", [8, TOTAL])
def test_a_record_in_full(tmp_path, metric, used):
    _, unit, _, (name, limit) = METRICS[metric]
    now = measured(metric, used)
    found = judge(tmp_path, gate(metric), compares=False).decide(now).record
    half = 0.0 if used == TOTAL else 0.1
    expected = {
        "test": "test_it.py::test_it[nf4]",
        "metric": metric,
        "model": "org/model",
        "format": "nf4",
        "engine": "transformers",
        "value": 0.5,
        "low": 0.5 - half,
        "high": 0.5 + half,
        "unit": unit,
        "limit": {name: limit},
        "verdict": "passed",
        "identity": {"metric": {"name": metric}, "protocol": {"name": "gptq-64"}},
        "proof": {},
        "reference": "fp32",
        "windows": {"used": used, "total": TOTAL},
        "scores": list(now.scores),
        "reference_scores": list(now.reference_scores),
        "weights": [63.0] * used,
        "alpha": 0.005,
        "limit_shown": f"{name} {limit:g} {unit}".removesuffix(" share"),
    }
    assert found == (expected if used == TOTAL else {**expected, "confidence": 0.99})
    plain(found)


def with_quantities(**quantities: Quantity):
    return measured("kl_divergence", quantities=quantities, main=next(iter(quantities)))


def test_the_other_statistics_stand_beside_the_value(tmp_path):
    one = with_quantities(
        mean=Quantity(0.05, 0.04, 0.06, "nats"),
        p99=Quantity(0.5, 0.4, float("inf"), "nats"),
        p999=Quantity(2.0, float("-inf"), float("inf"), "nats"),
        delta_p_mean=Quantity(-0.01, -0.02, 0.0, "probability"),
    )
    found = judge(tmp_path, gate("kl_divergence"), compares=False).decide(one).record
    assert found["value"] == 0.05
    assert found["statistics"] == {
        "p99": {"value": 0.5, "low": 0.4, "unit": "nats"},
        "p999": {"value": 2.0, "unit": "nats"},
        "delta_p_mean": {"value": -0.01, "low": -0.02, "high": 0.0, "unit": "probability"},
    }
    assert "lower_bound" not in found
    plain(found)


def test_a_bound_says_that_it_is_one(tmp_path):
    one = replace(
        with_quantities(bound=Quantity.exact(0.05, "nats"), mean=Quantity.exact(0.05, "nats")),
        lower_bounds=frozenset({"mean"}),
        caveat="only a lower bound is known",
    )
    found = judge(tmp_path, gate("kl_divergence", ("max", 0.1)), compares=False).decide(one).record
    assert found["lower_bound"] is True
    assert found["verdict"] == "inconclusive"
    assert found["reason"].endswith("only a lower bound is known")
    plain(found)


@pytest.mark.parametrize("stored, source", [(0, None), (1, "stored"), (TOTAL, "stored")])
def test_a_reference_from_the_store_is_told(tmp_path, stored, source):
    found = judge(tmp_path, compares=False).decide(measured(reference_stored=stored)).record
    assert found.get("reference_source") == source
    assert ("reference_source" in found) is (stored > 0)


def test_a_limit_that_is_too_tight_is_told(tmp_path):
    one = measured(quantities={"delta": Quantity(0.5, 0.5, 0.5, "ppl", detectable=2.0)})
    found = judge(tmp_path, compares=False).decide(one).record
    assert found["verdict"] == "passed"
    assert found["note"].startswith("max 1 ppl is tighter than 32 windows can test")
    assert "note" not in judge(tmp_path, compares=False).decide(measured()).record


def test_figures_are_beside_it_where_they_are_finite(tmp_path):
    one = measured(figures={"format_value": 25.0, "kl_max": float("inf"), "nats": float("nan")})
    found = judge(tmp_path, compares=False).decide(one).record
    assert found["format_value"] == 25.0
    assert not {"kl_max", "nats"} & found.keys()
    plain(found)


@pytest.mark.parametrize("used", [8, TOTAL])
@pytest.mark.parametrize("by", [0.0, 0.002, 0.3, -0.3])
@pytest.mark.parametrize("metric", METRICS)
def test_every_record_and_entry_is_plain_data(tmp_path, metric, by, used):
    record(tmp_path, entry(measured(metric)))
    found = judge(tmp_path, gate(metric), update="all").decide(measured(metric, used, by=by, spread=0.05))
    plain(found.record)
    if found.entry is not None:
        plain(found.entry)


@pytest.mark.parametrize("low, high", [(0.1, float("inf")), (float("-inf"), 0.9), (float("-inf"), float("inf"))])
def test_a_value_whose_interval_has_no_end_is_plain_data_too(tmp_path, low, high):
    """A perplexity's upper end is beyond floats where a format is broken badly; its record must be writable."""
    one = measured(used=8, quantities={"delta": Quantity(0.5, low, high, "ppl")})
    found = judge(tmp_path, compares=False).decide(one).record
    plain(found)
    assert shown_value(found).startswith("+0.5 ppl")
