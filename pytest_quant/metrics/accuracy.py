"""Accuracy on a task's items, paired: what a format loses that its reference had right, and what it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_quant.errors import NotMeasured
from pytest_quant.gates.measurement import Quantity
from pytest_quant.stats import betting
from pytest_quant.stats.sequence import Estimate


@dataclass(frozen=True)
class ItemScore:
    """What a reference and a format got for one item, each within [0, 1]: 1 is right."""

    reference: float
    format: float
    weight: float = 1.0
    """What the item counts, over what the heaviest item of the task counts: within (0, 1]."""


def task_accuracy(
    scores: Sequence[ItemScore], total: int, alpha: float, *, equal: bool = False
) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Of all ``total`` items, from the first of them in a random order: quantities ``drop`` (reference minus format),
    ``recovery`` (format over reference) and ``reference_accuracy``; figures ``format_value`` and ``reference_value`` of
    the items seen, how many of them were ``lost`` and ``gained``, and ``mcnemar_p`` once all are. ``equal`` says that
    every item of the whole task counts the same.

    ``recovery`` is left out where all items are seen and the reference has none right but the format has.
    :class:`NotMeasured` where neither model has anything right in the whole task: nothing could be lost.
    """
    import numpy as np

    reference, format = (np.array([getattr(s, side) for s in scores], float) for side in ("reference", "format"))
    weights = np.array([score.weight for score in scores], float)
    complete = len(scores) == total
    if complete and not reference.any() and not format.any():
        raise NotMeasured(
            f"neither model has any of the {total} items right, so none can be lost; choose a task that the model can "
            f"do"
        )
    accuracy = betting.weighted_mean(reference, weights, total, alpha, low=0.0, high=1.0, equal=equal)
    drop = betting.weighted_mean(reference - format, weights, total, alpha, low=-1.0, high=1.0, equal=equal)
    quantities = {
        "drop": _quantity(drop, "share"),
        "reference_accuracy": _quantity(accuracy, "share"),
    }
    if reference.any() or not complete:
        quantities["recovery"] = _quantity(betting.ratio(weights * format, weights * reference, total, alpha), "x")
    lost, gained = int((format < reference).sum()), int((format > reference).sum())
    figures = {
        "format_value": betting.average(format, weights),
        "reference_value": accuracy.value,
        "lost": float(lost),
        "gained": float(gained),
    }
    if complete:
        figures["mcnemar_p"] = mcnemar(lost, gained)
    return quantities, figures


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of McNemar's test: that as many items or more would go one way if either way were as likely."""
    changed = lost + gained
    ways, tail = 1, 0
    for k in range(min(lost, gained) + 1):
        tail += ways
        ways = ways * (changed - k) // (k + 1)  # from each binomial coefficient to the next, in whole numbers
    return min(2 * tail / (1 << changed), 1.0)


def _quantity(found: Estimate, unit: str) -> Quantity:
    return Quantity(found.value, found.low, found.high, unit, found.detectable)
