"""When enough windows were scored, and into how many questions a gate's error is split."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from verdicts_examples import METRICS, OTHER, TOTAL, entry, gate, judge, measured, record

from pytest_quant import baseline
from pytest_quant.gates.gate import QUALITY, Gate
from pytest_quant.gates.regression import MIN_EFFECT, change
from pytest_quant.gates.verdict import Verdict

FAIL = {"missing": "fail"}
RECORDS = [{"missing": "record"}, {"missing": "fail", "update": "new"}]


@pytest.mark.parametrize(
    "limits, compares, questions",
    [((), False, 1), ((), True, 1), ((1,), False, 1), ((1,), True, 2), ((1, 2), False, 2), ((1, 2, 3), True, 4)],
)
def test_each_limit_is_a_question_and_the_baseline_is_one(tmp_path, limits, compares, questions):
    names = ("max", "p90", "p99")
    asked = Gate("kl_divergence", tuple((names[i], 1.0) for i in range(len(limits))))
    assert judge(tmp_path, asked, compares=compares).questions == questions


def test_without_baselines_the_limits_alone_decide(tmp_path):
    record(tmp_path, entry(measured()))
    assert judge(tmp_path, compares=False).enough(measured(used=8, by=0.002, spread=0.05))
    assert judge(tmp_path, compares=False, update="all").enough(measured(used=8))


def test_where_none_is_there_and_none_will_be_recorded_nothing_waits(tmp_path):
    assert judge(tmp_path, **FAIL).enough(measured(used=8))


@pytest.mark.parametrize("policy", RECORDS)
@pytest.mark.parametrize("used", [8, 9, TOTAL - 1])
def test_what_will_be_recorded_needs_all_windows(tmp_path, policy, used):
    assert not judge(tmp_path, **policy).enough(measured(used=used))


@pytest.mark.parametrize("policy", RECORDS)
def test_another_identity_is_recorded_anew_so_it_needs_all_windows(tmp_path, policy):
    record(tmp_path, replace(entry(measured()), identity={"metric": {"name": "perplexity_delta"}, "protocol": {}}))
    assert not judge(tmp_path, **policy).enough(measured(used=8))
    assert judge(tmp_path, **FAIL).enough(measured(used=8))


@pytest.mark.parametrize("policy", RECORDS)
def test_another_device_s_baseline_does_not_spare_this_one_s(tmp_path, policy):
    record(tmp_path, entry(measured()), device=OTHER)
    assert not judge(tmp_path, **policy).enough(measured(used=8))
    assert judge(tmp_path, **FAIL).enough(measured(used=8))
    assert not judge(tmp_path, **FAIL).enough(measured(used=8, by=0.002, spread=0.05))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("policy", [*RECORDS, FAIL, {"update": "prune"}])
@pytest.mark.parametrize(
    "worse, spread, enough", [(0.0, 0.0, True), (-0.3, 0.01, True), (0.002, 0.05, False), (0.3, 0.01, False)]
)
def test_with_a_baseline_it_is_enough_once_it_is_clear_that_nothing_regressed(
    tmp_path, metric, policy, worse, spread, enough
):
    """However clear a regression is in a sample, it is told of all windows."""
    record(tmp_path, entry(measured(metric)))
    asked = judge(tmp_path, gate(metric), **policy)
    by = -worse if metric == "token_agreement" else worse
    for used in (8, TOTAL - 1):
        if worse != 0.002:
            assert asked.enough(measured(metric, used, by=by, spread=spread)) is enough
    assert asked.enough(measured(metric, 8, by=by, spread=spread)) is enough
    assert asked.enough(measured(metric, TOTAL, by=by, spread=spread))


def ends(root: Path, metric: str, drifts: list[float], alpha: float = 0.05, orders: int = 60) -> Counter[Verdict]:
    """Verdicts on the change, each at the first look that was enough, in random orders of windows that drifted so."""
    total, sign, source = len(drifts), -1.0 if metric == "token_agreement" else 1.0, random.Random(1)

    def seen(used: int):
        scores, weights = tuple(3.0 + sign * drift for drift in drifts[:used]), (63.0,) * used
        one = measured(metric, used, scores=scores, weights=weights, alpha=alpha, reference_scores=None)
        return replace(one, windows=(used, total))

    then = entry(seen(total), scores=(3.0,) * total)
    record(root, then)
    asked, found, looks = judge(root, gate(metric)), Counter[Verdict](), (*range(8, total, 4), total)
    for _ in range(orders):
        source.shuffle(drifts)
        stop = next(used for used in looks if asked.enough(seen(used)))
        found[change(seen(stop), then).verdict] += 1
    return found


SHAPES = {
    "normal": lambda source: source.gauss(0.0, 0.02),
    "even": lambda source: source.uniform(-0.03, 0.03),
    "a tenth of the windows became worse": lambda source: 0.05 * (source.random() < 0.1),
    "a tenth of the windows became better": lambda source: -0.05 * (source.random() < 0.1),
}


def drifted(shape: str, by: float) -> list[float]:
    """Drifts of 64 windows, exactly ``by`` on average."""
    source = random.Random(7)
    drifts = [SHAPES[shape](source) for _ in range(64)]
    mean = math.fsum(drifts) / 64
    return [drift - mean + by for drift in drifts]


@pytest.mark.parametrize("metric", QUALITY)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_change_too_small_to_matter_breaks_no_build_in_any_order(tmp_path, metric, shape):
    found = ends(tmp_path, metric, drifted(shape, 0.99 * MIN_EFFECT[metric]))
    assert not found[Verdict.REGRESSED]
    assert not found[Verdict.INCONCLUSIVE]


@pytest.mark.parametrize("shape", ["normal", "even"])
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_a_change_that_matters_is_missed_as_seldom_as_promised(tmp_path, shape, alpha):
    """The share that chance alone explains is granted."""
    metric, orders = "perplexity_delta", 200
    found = ends(tmp_path, metric, drifted(shape, 1.01 * MIN_EFFECT[metric]), alpha, orders)
    assert 1.0 - found[Verdict.REGRESSED] / orders <= alpha + 3.0 * math.sqrt(alpha / orders)


def test_the_change_that_matters_decides_what_is_enough(tmp_path):
    record(tmp_path, entry(measured()))
    now = measured(used=8, by=0.002, spread=0.05)
    assert not judge(tmp_path).enough(now)
    assert judge(tmp_path, gate(min_effect=0.5)).enough(now)


def test_a_baseline_that_is_to_be_replaced_needs_all_windows(tmp_path):
    record(tmp_path, entry(measured()))
    assert not judge(tmp_path, update="all").enough(measured(used=8))
    assert not judge(tmp_path, update="all", missing="fail").enough(measured(used=8))


@pytest.mark.parametrize("policy", [*RECORDS, FAIL, {"update": "all"}])
def test_a_broken_limit_is_enough_for_every_policy(tmp_path, policy):
    record(tmp_path, entry(measured()))
    broken = measured(used=8, value=3.0, by=0.002, spread=0.05)
    assert judge(tmp_path, **policy).enough(broken)
    assert judge(tmp_path / "nothing here", **policy).enough(broken)


@pytest.mark.parametrize("policy", [*RECORDS, FAIL, {"update": "all"}])
def test_a_damaged_baseline_is_not_waited_for(tmp_path, policy):
    record(tmp_path, entry(measured())).write_text("{")
    assert judge(tmp_path, **policy).enough(measured(used=8))


@pytest.mark.parametrize("policy", RECORDS)
def test_a_baseline_that_can_only_be_recorded_anew_needs_all_windows(tmp_path, policy):
    """Its message says "record it anew", and a prefix is never recorded."""
    record(tmp_path, entry(measured(), scores=None, reference_scores=None))
    assert not judge(tmp_path, **policy).enough(measured(used=8))
    assert judge(tmp_path, **FAIL).enough(measured(used=8))
    assert judge(tmp_path, **FAIL, update="prune").enough(measured(used=8))


@pytest.mark.parametrize("policy", [*RECORDS, FAIL, {"update": "all"}, {"update": "prune"}])
def test_more_than_all_windows_is_not_to_be_had(tmp_path, policy):
    assert judge(tmp_path, **policy).enough(measured())
    record(tmp_path, entry(measured()))
    for by in (0.0, 0.0011, 0.3, -0.3):
        assert judge(tmp_path, **policy).enough(measured(by=by, spread=0.05))


@pytest.mark.parametrize("policy", [*RECORDS, FAIL, {"update": "all"}])
def test_a_limit_that_a_lower_bound_leaves_open_is_enough(tmp_path, policy):
    """What is not known to keep its limit is not recorded."""
    open_still = {"lower_bounds": frozenset({"mean"}), "caveat": "only a lower bound is known"}
    assert judge(tmp_path, gate("kl_divergence"), **policy).enough(measured("kl_divergence", 8, **open_still))


def test_a_limit_that_a_lower_bound_leaves_open_still_asks_the_baseline(tmp_path):
    """A regression is never told from a sample, whatever becomes of the limit."""
    record(tmp_path, entry(measured("kl_divergence")))
    open_still = {"lower_bounds": frozenset({"mean"}), "caveat": "only a lower bound is known"}
    asked = judge(tmp_path, gate("kl_divergence"))
    assert not asked.enough(measured("kl_divergence", 8, by=0.3, spread=0.01, **open_still))
    assert asked.enough(measured("kl_divergence", 8, **open_still))


def test_the_file_is_read_once_however_many_looks(tmp_path, monkeypatch):
    record(tmp_path, entry(measured()))
    read, reads = baseline.read, []
    monkeypatch.setattr(baseline, "read", lambda path: reads.append(path) or read(path))
    asked = judge(tmp_path)
    for used in range(8, TOTAL):
        asked.enough(measured(used=used, by=0.002, spread=0.05))
    asked.decide(measured(by=0.002, spread=0.05))
    assert len(reads) == 1


def test_a_file_that_is_not_there_is_looked_for_once(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(baseline, "read", lambda path: reads.append(path))
    asked = judge(tmp_path)
    for used in range(8, TOTAL):
        asked.enough(measured(used=used))
    asked.decide(measured())
    assert len(reads) == 1


def test_what_is_written_meanwhile_does_not_change_the_verdict(tmp_path):
    """Every look and the verdict compare with the same baseline."""
    path = record(tmp_path, entry(measured()))
    asked = judge(tmp_path)
    assert not asked.enough(measured(used=8, by=0.002, spread=0.05))
    path.write_text("{")
    assert asked.decide(measured()).record["baseline"]["verdict"] == "passed"
