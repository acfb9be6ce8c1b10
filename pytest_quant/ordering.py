"""In which order tests run, and which are left out: models are needed for one stretch each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_quant.targets import Target


def is_left_out(target: Target | None, selected: Collection[str]) -> bool:
    """Whether ``--quant-formats`` names none of a test's formats."""
    return target is not None and bool(target.formats) and not set(target.formats) & set(selected)


def order(items: Sequence[pytest.Item], wanted: Sequence[Target | None]) -> list[pytest.Item]:
    """The items with the quantization tests, among their own places, brought together by model and format; what is
    timed stands behind the rest of its own, as where workers share the tests."""
    first: dict[Any, int] = {}
    places = [place for place, target in enumerate(wanted) if target is not None]

    def rank(place: int) -> tuple[int, int, bool]:
        target = wanted[place]
        assert target is not None
        model = first.setdefault(target.spec, len(first))
        timed = any(gate.is_timed for gate in target.gates)
        return model, first.setdefault((target.spec, target.formats), len(first)), timed

    ranks = {place: rank(place) for place in places}
    ordered = list(items)
    for place, origin in zip(places, sorted(places, key=ranks.__getitem__), strict=True):
        ordered[place] = items[origin]
    return ordered
