"""How much of a reference's greedy continuation a format says too."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_quant.gates.measurement import Quantity
from pytest_quant.stats import betting


@dataclass(frozen=True)
class Match:
    """Two continuations of one prompt, compared token by token."""

    share: float
    """Of positions that hold the same token, over the longer of the two."""
    prefix: float
    """Tokens before the first difference, over the longer of the two."""
    same: bool
    first: int | None
    """Where they first differ, from 0; None where they do not."""
    length: int
    """Tokens of the longer one."""


def compare(reference: Sequence[int], format: Sequence[int]) -> Match:
    """Two continuations as token ids, each without its prompt, up to and including its end token. Where one ends, the
    other's next token differs; two of nothing are the same."""
    length = max(len(reference), len(format))
    equal = [int(one) == int(other) for one, other in zip(reference, format, strict=False)]
    shorter = len(equal)
    first = next((place for place, same in enumerate(equal) if not same), shorter)
    if first == length:
        return Match(1.0, 1.0, True, None, length)
    return Match(sum(equal) / length, first / length, False, first, length)


def generation_match(
    matches: Sequence[Match], total: int, alpha: float
) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Means over all ``total`` prompts, from the first of them in a random order: quantities ``share``, ``prefix`` and
    ``same``; figures ``changed``, the prompts seen whose continuation differs, and ``first_divergence_median``, the
    tokens that these have in common first."""

    def mean(values: Sequence[float]) -> Quantity:
        found = betting.mean(values, total, alpha, low=0.0, high=1.0)
        return Quantity(found.value, found.low, found.high, "share", found.detectable)

    quantities = {
        "share": mean([match.share for match in matches]),
        "prefix": mean([match.prefix for match in matches]),
        "same": mean([float(match.same) for match in matches]),
    }
    differing = [match.first for match in matches if match.first is not None]
    figures = {"changed": float(len(differing))}
    if differing:
        figures["first_divergence_median"] = float(statistics.median(differing))
    return quantities, figures
