"""Where a loss sits, on planted cases: each fault is named for what it is, and sound noise is not called a fault."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_quant.metrics.concentration import describe
from pytest_quant.metrics.pairing import WindowScore

WINDOWS, TOKENS = 16, 500


def windows(losses: Any, *, agree: Any = None, bound: Any = None) -> list[WindowScore]:
    """Windows whose tokens lost so much, from a reference of 2 nats."""
    found = []
    for number, loss in enumerate(losses):
        loss = np.asarray(loss, dtype=np.float32)
        told = np.abs(loss) if bound is None else np.asarray(bound[number])
        found.append(
            WindowScore(
                weight=len(loss),
                nll=2.0 + loss,
                reference_nll=np.full(len(loss), 2.0, dtype=np.float32),
                agree=loss < 1.0 if agree is None else np.asarray(agree[number]),
                bound=told.astype(np.float64),
                kl=(1.5 * told).astype(np.float32),
            )
        )
    return found


def noise(seed: int, *, mean: float = 0.05, scale: float = 0.4, count: int = WINDOWS) -> np.ndarray:
    """Heavy-tailed differences, as a sound format's are."""
    return np.random.default_rng(seed).laplace(mean, scale, (count, TOKENS))


@pytest.mark.parametrize("seed", range(20))
def test_a_sound_format_is_spread_over_all_tokens(seed):
    found = describe(windows(noise(seed)), "perplexity_delta")
    assert found.verdict == "spread"
    assert 0.05 < found.worst_1 < 0.15
    assert found.worst_1 < found.worst_10 < 0.6
    assert 0.5 < found.worse < 0.6
    assert (found.windows, found.tokens) == (WINDOWS, WINDOWS * TOKENS)


def test_a_broken_layer_hits_all_tokens():
    found = describe(windows(noise(0) + 2.0), "perplexity_delta")
    assert found.verdict == "spread"
    assert found.worse > 0.99
    assert found.mean == pytest.approx(2.05, abs=0.02)


def test_a_few_tokens():
    losses = noise(1)
    losses[:, ::200] += 30.0  # three of five hundred in every window
    found = describe(windows(losses), "perplexity_delta")
    assert found.verdict == "tokens"
    assert found.worst_1 > 1 / 3
    assert {worst.row % 200 for worst in found.worst} == {0}


def test_a_few_windows():
    losses = noise(2)
    losses[[3, 11]] += 1.5
    found = describe(windows(losses), "perplexity_delta")
    assert (found.verdict, found.few_windows) == ("windows", 2)
    assert found.of_loss > 0.5
    assert {worst.place for worst in found.worst[:2]} == {3, 11}


def test_a_few_windows_of_a_loss_that_all_have_is_none_of_it():
    """One window that is worse than the others, but makes a small part of the whole."""
    losses = noise(3) + 1.0
    losses[5] += 1.0
    found = describe(windows(losses), "perplexity_delta")
    assert (found.verdict, found.few_windows, found.of_loss) == ("spread", 0, None)
    assert found.worst[0].place == 5


def test_windows_cannot_be_told_from_a_handful():
    losses = noise(4, count=5)
    losses[2] += 5.0
    assert describe(windows(losses), "perplexity_delta").few_windows == 0


def kinds(mask: np.ndarray) -> dict[str, list[np.ndarray]]:
    return {"numbers": list(mask), "everything": list(np.ones_like(mask))}


def test_a_kind_of_tokens():
    mask = np.zeros((WINDOWS, TOKENS), dtype=bool)
    mask[:, ::10] = True
    found = describe(windows(noise(5) + 5.0 * mask), "perplexity_delta", kinds=kinds(mask))
    assert (found.verdict, found.kind.name) == ("kind", "numbers")
    assert found.kind.of_tokens == pytest.approx(0.1)
    assert found.kind.of_loss > 0.5


def test_a_kind_that_is_hit_no_more_than_others_is_none():
    mask = np.zeros((WINDOWS, TOKENS), dtype=bool)
    mask[:, ::10] = True
    found = describe(windows(noise(6)), "perplexity_delta", kinds=kinds(mask))
    assert (found.verdict, found.kind) == ("spread", None)


def test_of_two_kinds_the_narrower_one_is_named():
    narrow = np.zeros((WINDOWS, TOKENS), dtype=bool)
    narrow[:, ::20] = True
    broad = narrow.copy()
    broad[:, 1::10] = True
    told = {"broad": list(broad), "narrow": list(narrow)}
    found = describe(windows(noise(7) + 10.0 * narrow), "perplexity_delta", kinds=told)
    assert found.kind.name == "narrow"


def test_four_tokens_are_no_kind():
    mask = np.zeros((WINDOWS, TOKENS), dtype=bool)
    mask[:4, 7] = True
    found = describe(windows(noise(8) + 5000.0 * mask), "perplexity_delta", kinds=kinds(mask))
    assert found.kind is None
    assert found.verdict in ("tokens", "windows")


def test_few_tokens_are_not_told_from_all():
    found = describe(windows(noise(9, mean=0.5)[:8, :16]), "perplexity_delta")
    assert (found.verdict, found.worst_1, found.worst_10) == ("unknown", None, None)
    assert len(found.worst) == 3


def test_a_format_that_is_better_has_no_worst_windows():
    found = describe(windows(np.full((8, 100), -0.1)), "perplexity_delta")
    assert (found.verdict, found.worst, found.worse) == ("unknown", (), 0.0)
    assert found.mean == pytest.approx(-0.1)


def test_divergence_is_over_the_whole_vocabulary_or_its_bound():
    losses = np.abs(noise(10))
    whole, bound = (describe(windows(losses), "kl_divergence", bound=told) for told in (False, True))
    assert whole.mean == pytest.approx(1.5 * bound.mean, rel=1e-6)
    assert whole.verdict == bound.verdict == "spread"
    without = [replace(score, kl=None) for score in windows(losses)]
    assert describe(without, "kl_divergence").mean == pytest.approx(bound.mean)


def test_agreement_counts_disagreements_and_names_the_surest():
    agree = np.ones((8, 100), dtype=bool)
    agree[3, :40] = False
    agree[1, 5] = False
    bound = np.zeros((8, 100))
    bound[3, 17] = 9.0
    found = describe(windows(np.zeros((8, 100)), agree=agree, bound=bound), "token_agreement")
    assert found.worse == found.mean == pytest.approx(41 / 800)
    assert found.worst_1 is None
    assert [(worst.place, worst.value) for worst in found.worst] == [(3, pytest.approx(0.4)), (1, pytest.approx(0.01))]
    assert found.worst[0].row == 17
    assert (found.verdict, found.few_windows) == ("windows", 1)


def test_since_a_baseline_windows_are_ranked_by_what_they_lost_since_then():
    scores = windows(noise(11) + 1.0)
    before = [float(score.nll.mean(dtype=float)) for score in scores]
    before[6] -= 0.5
    found = describe(scores, "perplexity_delta", before=before)
    assert [worst.place for worst in found.worst] == [6]
    assert found.worst[0].value == pytest.approx(0.5, abs=1e-6)
    assert found.mean == pytest.approx(0.5 / WINDOWS, abs=1e-6)


def test_since_a_baseline_agreement_is_better_upwards():
    agree = np.ones((8, 100), dtype=bool)
    agree[2, :30] = False
    found = describe(windows(np.zeros((8, 100)), agree=agree), "token_agreement", before=[1.0] * 8)
    assert [(worst.place, worst.value) for worst in found.worst] == [(2, pytest.approx(0.3))]


def test_words_weigh_as_they_do_in_the_protocol():
    scores = [replace(score, weight=100) for score in windows(np.full((3, 500), 0.2))]
    assert describe(scores, "perplexity_delta").worst[0].value == pytest.approx(1.0)
    assert describe(scores, "kl_divergence", bound=True).worst[0].value == pytest.approx(0.2)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_comes_first(broken):
    losses = noise(12)
    losses[4, 100:] = broken
    losses[9, 3] = broken
    found = describe(windows(losses), "perplexity_delta")
    assert (found.verdict, found.mean, found.worst_1) == ("broken", None, None)
    assert [(worst.place, worst.value, worst.row) for worst in found.worst] == [(4, None, 100), (9, None, 3)]
    assert found.worse == pytest.approx(401 / 8000)


def test_nothing_scored_is_an_error():
    with pytest.raises(ValueError, match="no window"):
        describe([], "perplexity_delta")
