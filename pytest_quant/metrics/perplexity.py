"""Perplexity in windows, paired with the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_quant.corpora.protocols import Windows
from pytest_quant.errors import NotFinite, NotMeasured, ProofFailed, UsageError
from pytest_quant.gates.measurement import Quantity
from pytest_quant.stats.paired import paired_difference, weighted_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Scorer(Protocol):
    """What scoring asks of an engine's model."""

    @property
    def max_positions(self) -> int | None: ...

    def token_nll(self, windows: NDArray[np.int64]) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Scores:
    """Mean NLL (nats) and number of predicted tokens of each window, in the drawn order."""

    nll: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean NLL of all predicted tokens; infinite where it exceeds what a float holds."""
        mean = weighted_mean(self.nll, self.tokens)
        return math.exp(mean) if mean < 700 else math.inf


def score(model: Scorer, windows: Windows, progress: Callable[[int, int], None]) -> Scores:
    """Score every window, one forward each. ``progress`` is told windows done, and windows in all.

    :class:`UsageError` where the model's context is shorter than a window.
    """
    longest = max(len(window.tokens) for window in windows.drawn)
    if model.max_positions is not None and longest > model.max_positions:
        raise UsageError(
            f"windows of {longest} tokens do not fit the model's {model.max_positions} positions; "
            f"use a shorter one, such as --quant-protocol=gptq-{model.max_positions}"
        )
    nll: list[float] = []
    for window in windows.drawn:
        tokens = model.token_nll(window.tokens[None])[0]
        nll.append(float(tokens[window.scored_from - 1 :].mean()))
        progress(len(nll), len(windows.drawn))
    return Scores(tuple(nll), tuple(window.scored for window in windows.drawn))


def perplexity_delta(
    format: Scores, reference: Scores, format_name: str, reference_name: str
) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Quantities ``delta`` and ``ratio`` and the figures behind them, exact over the windows' finite set.

    ``ratio = exp(D)`` and ``delta = ppl_reference * (exp(D) - 1)``, D the mean paired difference in nats.
    Raises :class:`NotFinite` for a format that answers NaN, :class:`NotMeasured` for such a reference,
    :class:`ProofFailed` for a format whose every window equals the reference's.
    """
    _require_finite(reference, NotMeasured, f"the {reference_name} reference")
    _require_finite(format, NotFinite, f"the {format_name} model")
    if format.nll == reference.nll:
        raise ProofFailed(
            f"all {len(format.nll)} windows of {format_name} have exactly the {reference_name} reference's scores: the "
            f"reference was measured by mistake, or the format was not applied"
        )
    difference = paired_difference(format.nll, reference.nll, format.tokens)
    base = reference.perplexity
    quantities = {
        "delta": Quantity.exact(format.perplexity - base, "ppl"),
        "ratio": Quantity.exact(math.exp(min(difference.mean, 700.0)), "x"),
    }
    figures = {
        "format_value": format.perplexity,
        "reference_value": base,
        "ratio": quantities["ratio"].value,
        "nats": difference.mean,
        "nats_standard_error": difference.standard_error,
    }
    return quantities, figures


def _require_finite(scores: Scores, error: type[NotMeasured], who: str) -> None:
    broken = sum(not math.isfinite(nll) for nll in scores.nll)
    if broken or not math.isfinite(scores.perplexity):
        raise error(f"{who} gave no finite perplexity: {broken} of {len(scores.nll)} windows are NaN or infinite")
