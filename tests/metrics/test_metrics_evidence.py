"""Perplexity, divergence and agreement from scored windows, against direct formulas on all tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pytest_quant.errors import NotFinite, NotMeasured, ProofFailed
from pytest_quant.metrics.divergence import DELTA_P_LEVELS, KL_LEVELS, delta_p, kl_divergence, token_agreement
from pytest_quant.metrics.evidence import Evidence
from pytest_quant.metrics.pairing import WindowScore
from pytest_quant.metrics.perplexity import perplexity_delta

ALPHA = 0.05


def score(seed: int, *, tokens: int = 16, weight: int | None = None, **given: Any) -> WindowScore:
    """A window of numbers such as models give: the format a little worse, both alike in what is hard."""
    rng = np.random.default_rng(seed)
    reference = rng.gamma(4.0, 0.6, tokens) + rng.normal(0.0, 0.1)
    ours = np.maximum(reference + rng.normal(0.05, 0.15, tokens), 0.0)
    kl = rng.gamma(2.0, 0.02, tokens)
    arrays = {
        "nll": ours.astype(np.float32),
        "reference_nll": np.maximum(reference, 0.0).astype(np.float32),
        "agree": rng.random(tokens) < 0.9,
        "bound": kl * 0.8,
        "kl": kl.astype(np.float32),
    }
    return WindowScore(weight=tokens if weight is None else weight, **{**arrays, **given})


def evidence(scores: Sequence[WindowScore], total: int | None = None, **given: Any) -> Evidence:
    return Evidence("int8", "fp32", tuple(scores), len(scores) if total is None else total, **given)


def every(scores: Sequence[WindowScore], name: str) -> np.ndarray:
    """All tokens of all windows, in double precision."""
    return np.concatenate([getattr(one, name) for one in scores]).astype(float)


def unequal() -> list[WindowScore]:
    return [score(seed, tokens=tokens) for seed, tokens in enumerate((16, 3, 40, 1, 7))]


def test_all_windows_give_the_perplexities_of_all_tokens():
    scores = unequal()
    quantities, figures = perplexity_delta(evidence(scores), ALPHA)
    ours, theirs = every(scores, "nll").mean(), every(scores, "reference_nll").mean()
    expected = {
        "delta": math.exp(ours) - math.exp(theirs),
        "ratio": math.exp(ours - theirs),
        "ln_ratio": ours - theirs,
    }
    for name, value in expected.items():
        found = quantities[name]
        assert (found.value, found.low, found.high) == pytest.approx((value,) * 3, rel=1e-9)
        assert found.is_exact
    assert figures["format_value"] == pytest.approx(math.exp(ours), rel=1e-12)
    assert figures["reference_value"] == pytest.approx(math.exp(theirs), rel=1e-12)


def test_a_known_mean_of_the_reference_does_not_replace_what_was_scored_where_all_was():
    scores = unequal()
    with_it, without = (perplexity_delta(evidence(scores, reference_mean=mean), ALPHA) for mean in (9.0, None))
    assert with_it == without


def test_perplexity_counts_by_words_where_the_protocol_does():
    scores = [score(seed, tokens=12, weight=weight) for seed, weight in enumerate((3, 5, 11))]
    quantities, figures = perplexity_delta(evidence(scores, unit="word"), ALPHA)
    ours, theirs = (every(scores, name).sum() / 19 for name in ("nll", "reference_nll"))
    assert figures["format_value"] == pytest.approx(math.exp(ours), rel=1e-9)
    assert figures["reference_value"] == pytest.approx(math.exp(theirs), rel=1e-9)
    assert quantities["ln_ratio"].value == pytest.approx(ours - theirs, rel=1e-9)


def test_divergence_and_agreement_count_by_tokens_whatever_perplexity_counts_by():
    by_words = [score(seed, tokens=12 + seed, weight=1 + 7 * seed) for seed in range(5)]
    by_tokens = [score(seed, tokens=12 + seed) for seed in range(5)]
    for total in (5, 9):
        one, other = evidence(by_words, total, unit="word"), evidence(by_tokens, total)
        assert kl_divergence(one, ALPHA) == kl_divergence(other, ALPHA)
        assert token_agreement(one, ALPHA) == token_agreement(other, ALPHA)
        assert delta_p(one, ALPHA) == delta_p(other, ALPHA)


def test_the_delta_of_some_windows_stands_on_the_known_mean_of_the_reference():
    scores = [score(seed) for seed in range(10)]
    quantities, figures = perplexity_delta(evidence(scores, 40, reference_mean=2.5), ALPHA)
    difference = every(scores, "nll").mean() - every(scores, "reference_nll").mean()
    assert figures["reference_value"] == pytest.approx(math.exp(2.5), rel=1e-12)
    delta, nats = quantities["delta"], quantities["ln_ratio"]
    for end in ("value", "low", "high"):
        assert getattr(delta, end) == pytest.approx(math.exp(2.5) * math.expm1(getattr(nats, end)), rel=1e-9)
    assert nats.value == pytest.approx(difference, rel=1e-9)


def test_an_unknown_mean_of_the_reference_widens_the_delta():
    scores = [score(seed) for seed in range(12)]
    mean = float(every(scores, "reference_nll").mean())
    known, unknown = (perplexity_delta(evidence(scores, 60, reference_mean=given), ALPHA)[0] for given in (mean, None))
    assert known["ratio"] == unknown["ratio"]
    assert known["delta"].value == pytest.approx(unknown["delta"].value, rel=1e-9)
    assert unknown["delta"].low < known["delta"].low
    assert known["delta"].high < unknown["delta"].high


def test_one_window_of_many_bounds_nothing():
    quantities, _ = perplexity_delta(evidence([score(0)], 40), ALPHA)
    for name, lowest in (("delta", -math.inf), ("ratio", 0.0), ("ln_ratio", -math.inf)):
        assert (quantities[name].low, quantities[name].high) == (lowest, math.inf)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("unit", ["token", "word"])
def test_the_interval_of_the_delta_holds_it_in_nearly_every_order(known, unit):
    """At any look; the share of orders that are ever missed has an error of its own."""
    rng = np.random.default_rng(1)
    weights = rng.integers(6, 14, 60) if unit == "word" else [16] * 60
    population = [score(seed, weight=int(weight)) for seed, weight in enumerate(weights)]
    whole = evidence(population, unit=unit)
    truth = perplexity_delta(whole, ALPHA)[0]["delta"].value
    mean = sum(float(every([one], "reference_nll").sum()) for one in population) / sum(weights) if known else None
    orders, missed = 120, 0
    for _ in range(orders):
        drawn = [population[i] for i in rng.permutation(60)]
        for n in (8, 12, 20, 32, 48):
            found = perplexity_delta(evidence(drawn[:n], 60, unit=unit, reference_mean=mean), ALPHA)[0]["delta"]
            if not found.low <= truth <= found.high:
                missed += 1
                break
    assert missed / orders <= ALPHA + 3.1 * math.sqrt(ALPHA * (1 - ALPHA) / orders)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_format_that_answers_no_number_is_named(bad):
    broken = dataclasses.replace(score(1), nll=np.array([1.0, bad], dtype=np.float32))
    found = evidence([score(0), broken, score(2)], 9)
    for ask in (perplexity_delta, kl_divergence, token_agreement):
        with pytest.raises(NotFinite, match="the int8 model gave no finite perplexity: 1 of 3 windows"):
            ask(found, ALPHA)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reference_that_answers_no_number_is_no_fault_of_the_format(bad):
    broken = np.array([bad] * 16, dtype=np.float32)
    scores = [dataclasses.replace(score(seed), reference_nll=broken, nll=broken) for seed in range(2)]
    with pytest.raises(NotMeasured, match="the fp32 reference gave no finite perplexity: 2 of 2 windows") as found:
        evidence(scores, 9).check()
    assert not isinstance(found.value, NotFinite)


def test_exactly_the_references_scores_prove_a_mistake():
    same = [dataclasses.replace(score(seed), nll=score(seed).reference_nll) for seed in range(3)]
    for ask in (perplexity_delta, kl_divergence, token_agreement):
        with pytest.raises(ProofFailed, match=r"all 3 windows of int8 have exactly the fp32 reference's"):
            ask(evidence(same, 9), ALPHA)


def test_one_token_that_differs_by_one_bit_is_another_model():
    nll = score(0).reference_nll.copy()
    nll[3] = np.nextafter(nll[3], np.float32(9.0))
    found = evidence([dataclasses.replace(score(0), nll=nll)])
    found.check()
    assert 0.0 < found.difference < 1e-6


@pytest.mark.parametrize("total", [8, 30])
@pytest.mark.parametrize("mean", [None, 2.0])
def test_a_perplexity_beyond_floats_is_no_number(total, mean):
    hopeless = [dataclasses.replace(score(s), nll=np.full(16, 1000.0, dtype=np.float32)) for s in range(8)]
    with pytest.raises(NotFinite, match="mean NLL exceeds 700"):
        perplexity_delta(evidence(hopeless, total, reference_mean=mean), ALPHA)


def test_an_interval_that_reaches_beyond_floats_is_open():
    wild = [score(seed, nll=np.full(16, 690.0 * (seed % 2), dtype=np.float32)) for seed in range(8)]
    for mean in (None, 2.0):
        quantities, _ = perplexity_delta(evidence(wild, 100, reference_mean=mean), ALPHA)
        assert quantities["ratio"].high == math.inf
        assert math.isfinite(quantities["delta"].value)
        assert not any(math.isnan(getattr(q, end)) for q in quantities.values() for end in ("low", "high"))


def test_the_divergence_of_all_windows_by_numpy():
    scores = unequal()
    quantities, figures = kl_divergence(evidence(scores), ALPHA)
    kl = every(scores, "kl")
    expected = {"mean": kl.mean(), "bound": every(scores, "bound").mean()}
    expected |= {name: np.quantile(kl, level) for name, level in KL_LEVELS.items()}
    assert quantities.keys() == expected.keys()
    for name, value in expected.items():
        assert quantities[name].is_exact
        assert quantities[name].value == pytest.approx(value, rel=1e-6)
    assert figures == {"kl_max": kl.max()}


def test_where_one_window_has_only_the_bound_its_tokens_are_the_bounds():
    scores = [score(0), dataclasses.replace(score(1), kl=None)]
    found = evidence(scores)
    assert not found.has_kl
    mixed = np.concatenate([every(scores[:1], "kl"), every(scores[1:], "bound")])
    assert kl_divergence(found, ALPHA)[0]["mean"].value == pytest.approx(mixed.mean(), rel=1e-6)


def test_the_agreement_of_all_windows_is_the_share_of_tokens():
    scores = unequal()
    share = token_agreement(evidence(scores), ALPHA)[0]["share"]
    assert share.is_exact
    assert share.value == pytest.approx(every(scores, "agree").mean(), rel=1e-12)


def test_the_change_of_the_true_tokens_probability_by_numpy():
    scores = unequal()
    found = delta_p(evidence(scores), ALPHA)
    change = np.exp(-every(scores, "nll")) - np.exp(-every(scores, "reference_nll"))
    expected = {"mean": change.mean(), "rms": math.sqrt((change**2).mean())}
    expected |= {name: np.quantile(change, level) for name, level in DELTA_P_LEVELS.items()}
    assert found.keys() == {f"delta_p_{name}" for name in expected}
    for name, value in expected.items():
        assert found[f"delta_p_{name}"].is_exact
        assert found[f"delta_p_{name}"].value == pytest.approx(value, rel=1e-9)


def test_more_windows_narrow_every_interval():
    scores = [score(seed) for seed in range(64)]
    few, many = (evidence(scores[:n], 64) for n in (16, 48))
    for ask in (perplexity_delta, kl_divergence, token_agreement, lambda found, alpha: (delta_p(found, alpha), {})):
        before, after = ask(few, ALPHA)[0], ask(many, ALPHA)[0]
        for name in before:
            assert after[name].high - after[name].low <= before[name].high - before[name].low, name
            assert after[name].low <= after[name].value <= after[name].high, name
