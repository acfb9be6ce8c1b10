"""Whose fault a regression is: the reference is asked again, and the versions are compared."""

from __future__ import annotations

import math

import pytest
from verdicts_examples import (
    DEVICE,
    METRICS,
    REFERENCE,
    TOTAL,
    entry,
    gate,
    judge,
    measured,
    record,
    shifted,
    speed,
)

from pytest_quant import environment
from pytest_quant.errors import NotMeasured, Unsupported
from pytest_quant.gates.gate import Gate
from pytest_quant.verdicts import Judge, Policy

VERSIONS = {"python": "3.11.0", "torch": "2.13.0", "transformers": "5.23.0"}


@pytest.fixture(autouse=True)
def _versions(monkeypatch):
    monkeypatch.setattr(environment, "packages", lambda: dict(VERSIONS))


def kept(root, metric: str = "perplexity_delta", packages=VERSIONS, **more) -> None:
    record(root, entry(measured(metric), recorded={"packages": packages}, **more))


def said(root, reference_now=None, metric: str = "perplexity_delta", **more) -> str:
    """What is said of a format that became worse."""
    worse = measured(metric, by=-0.3 if metric == "token_agreement" else 0.3, **more)
    found = judge(root, gate(metric)).decide(worse, reference_now).record["baseline"]
    assert found["verdict"] == "regressed"
    return found["reason"]


class Asked:
    """A reference that is asked again, and moved."""

    def __init__(self, by: float = 0.0) -> None:
        self.by = by
        self.counts: list[int] = []

    def __call__(self, count: int) -> list[float]:
        self.counts.append(count)
        return list(shifted(REFERENCE, self.by)[:count])


@pytest.mark.parametrize("metric", METRICS)
def test_a_reference_that_was_run_beside_the_format_and_stood_still(tmp_path, metric):
    kept(tmp_path, metric)
    asked = Asked(0.5)
    assert said(tmp_path, asked, metric).endswith(
        "; the reference did not move (+0.00000 nats): it is the quantization (the same versions of all libraries)"
    )
    assert asked.counts == []  # it was measured in this run already


@pytest.mark.parametrize("metric", METRICS)
def test_a_reference_that_was_run_beside_the_format_and_moved(tmp_path, metric):
    kept(tmp_path, metric)
    reason = said(tmp_path, None, metric, reference_scores=shifted(REFERENCE, 0.008))
    assert "; the reference moved too, by +0.00800 nats: the stack drifted, not only the quantization" in reason


@pytest.mark.parametrize(
    "by, moved", [(0.0, False), (0.0009, False), (-0.0009, False), (0.0011, True), (-0.0011, True), (0.3, True)]
)
def test_a_reference_from_the_store_is_asked_again(tmp_path, by, moved):
    kept(tmp_path)
    asked = Asked(by)
    reason = said(tmp_path, asked, reference_stored=TOTAL)
    assert asked.counts == [16]
    assert (f"moved too, by {by:+.5f} nats" in reason) is moved
    assert (f"did not move ({by:+.5f} nats): it is the quantization" in reason) is not moved


@pytest.mark.parametrize("used", [8, 16, 20])
def test_nobody_is_blamed_from_a_sample(tmp_path, used):
    """Where a limit broke first, the baseline's part stays open."""
    kept(tmp_path)
    asked = Asked()
    outcome = judge(tmp_path).decide(measured(used=used, by=0.3, reference_stored=used), asked)
    assert outcome.record["baseline"]["verdict"] == "inconclusive"
    assert asked.counts == []


def test_it_is_asked_only_where_something_regressed(tmp_path):
    kept(tmp_path)
    asked = Asked()
    for by in (0.0, -0.3):
        judge(tmp_path).decide(measured(by=by, reference_stored=TOTAL), asked)
    judge(tmp_path).decide(measured(used=8, by=0.002, spread=0.05, reference_stored=8), asked)
    judge(tmp_path / "nothing here").decide(measured(by=0.3, reference_stored=TOTAL), asked)
    judge(tmp_path, compares=False).decide(measured(by=0.3, reference_stored=TOTAL), asked)
    assert asked.counts == []


@pytest.mark.parametrize(
    "error", [Unsupported("fp16 on a CPU", "4 GB", "8 GB"), NotMeasured("the fp16 reference gave no finite perplexity")]
)
def test_a_reference_that_cannot_be_had_leaves_it_open_and_says_why(tmp_path, error):
    kept(tmp_path)

    def refuse(count: int) -> list[float]:
        raise error

    reason = said(tmp_path, refuse, reference_stored=TOTAL)
    assert "; whether the stack drifted too is not known: the reference cannot be measured here" in reason
    assert f"({error})" in reason


def test_another_error_is_not_taken_for_a_reference_that_cannot_be_had(tmp_path):
    kept(tmp_path)

    def broken(count: int) -> list[float]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        said(tmp_path, broken, reference_stored=TOTAL)


@pytest.mark.parametrize("stored", [0, TOTAL])
def test_a_baseline_that_holds_nothing_of_the_reference_leaves_it_open(tmp_path, stored):
    kept(tmp_path, reference_scores=None)
    reason = said(tmp_path, Asked(), reference_stored=stored)
    assert "; whether the stack drifted too is not known: the baseline holds no scores of the reference" in reason


def test_the_versions_that_changed_since_are_named(tmp_path):
    kept(tmp_path, packages={"python": "3.11.0", "torch": "2.12.0", "accelerate": "1.1.0"})
    since = " (since then: accelerate 1.1.0 -> absent, torch 2.12.0 -> 2.13.0, transformers absent -> 5.23.0)"
    assert said(tmp_path).endswith(since)
    assert said(tmp_path, Asked(0.1), reference_stored=TOTAL).endswith(since)


def test_the_same_versions_are_said_to_be_the_same(tmp_path):
    kept(tmp_path)
    assert said(tmp_path).endswith(" (the same versions of all libraries)")


@pytest.mark.parametrize("recorded", [{}, {"packages": {}}, {"date": "2026-01-01T00:00:00Z"}])
def test_nothing_is_said_of_versions_that_were_not_recorded(tmp_path, recorded):
    record(tmp_path, entry(measured(), recorded=recorded))
    assert said(tmp_path).endswith(": it is the quantization")


def test_what_is_no_list_of_versions_is_not_said_to_be_the_same(tmp_path):
    record(tmp_path, entry(measured(), recorded={"packages": "torch"}))
    assert "the same versions" not in said(tmp_path)


def test_a_reference_that_answers_nan_now_is_not_said_to_stand_still(tmp_path):
    kept(tmp_path)
    reason = said(tmp_path, lambda count: [math.nan] * count, reference_stored=TOTAL)
    assert "; whether the stack drifted too is not known: the reference answers NaN or infinity here" in reason


def test_the_store_s_own_word_is_no_proof_that_the_reference_stood_still(tmp_path):
    """Without anybody to ask, what the store said then and says now is the same by definition."""
    kept(tmp_path)
    reason = said(tmp_path, None, reference_stored=TOTAL)
    assert "; whether the stack drifted too is not known: the reference was not measured again" in reason


def test_speed_and_memory_blame_nobody(tmp_path):
    record(tmp_path, entry(speed(2.0), scores=None, low=1.9, high=2.1))
    asked = Judge("t", Gate("throughput_ratio", (("min", 0.5),)), DEVICE, Policy(compares=True, root=tmp_path))
    found = asked.decide(speed(1.0), Asked()).record["baseline"]
    assert found["verdict"] == "regressed"
    assert "reference" not in found["reason"]
