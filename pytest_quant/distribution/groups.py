"""Which tests belong together, and which must run alone. Pure: test ids in, places in the collection out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_quant.targets import Target

BY_HAND = frozenset({"quant_measure", "quant_benchmark"})
"""Fixtures that can time something, of which nobody knows beforehand what."""


@dataclass(frozen=True)
class Asked:
    """What one quantization test needs, as a worker tells the controller."""

    models: tuple[str, ...]
    """Each model and format, as a word that is equal where they are; of a test without formats the model alone."""
    alone: bool = False
    """Whether it times something."""
    shares: bool = False
    """Whether it also asks what is answered from scored windows or items, which others have scored before."""


@dataclass(frozen=True)
class Plan:
    """Places in the collection, each once."""

    groups: tuple[tuple[int, ...], ...] = ()
    """What one worker must run, in this order: everything of the same model and format, and of one ``xdist_group``."""
    home: tuple[tuple[int, ...], ...] = ()
    """Such groups of models and formats that a lonely test asks about as well: for the worker that runs those."""
    alone: tuple[int, ...] = ()
    """What is timed: at the end, on one worker, while no other works."""
    others: tuple[tuple[int, ...], ...] = ()
    """What is no quantization test; several together only where an ``xdist_group`` says so."""


def asked(target: Target, fixtures: Iterable[str]) -> Asked:
    """What a resolved test needs."""
    spec = repr(target.spec)
    gates = target.gates
    return Asked(
        models=tuple(f"{name} of {spec}" for name in target.formats) or (spec,),
        alone=any(gate.is_timed for gate in gates) or bool(BY_HAND & set(fixtures)),
        shares=any(gate.is_quality or gate.is_sampled for gate in gates),
    )


def plan(collection: Sequence[str], told: Mapping[str, Asked], *, by_xdist_group: bool = False) -> Plan:
    """Who belongs together; groups in the order of their first tests. ``by_xdist_group`` where xdist has put the name
    of a test's ``xdist_group`` behind its id (``--dist=loadgroup``)."""
    alone = tuple(place for place, test in enumerate(collection) if test in told and told[test].alone)
    lonely = set(alone)
    words: dict[str, list[int]] = {}
    for place, test in enumerate(collection):
        if place in lonely:
            continue
        for word in told[test].models if test in told else ():
            words.setdefault(f"model {word}", []).append(place)
        if by_xdist_group and (name := xdist_group(test)) is not None:
            words.setdefault(f"group {name}", []).append(place)
    first = {place: place for place in range(len(collection))}

    def root(place: int) -> int:
        while first[place] != place:
            place = first[place]
        return place

    for places in words.values():
        for place in places[1:]:
            low, high = sorted((root(places[0]), root(place)))
            first[high] = low
    together: dict[int, list[int]] = {}
    for place in range(len(collection)):
        if place not in lonely:
            together.setdefault(root(place), []).append(place)
    awaited = {word for place in alone if told[collection[place]].shares for word in told[collection[place]].models}
    groups: list[tuple[int, ...]] = []
    home: list[tuple[int, ...]] = []
    others: list[tuple[int, ...]] = []
    for places in together.values():
        models = {word for place in places if collection[place] in told for word in told[collection[place]].models}
        (others if not models else home if models & awaited else groups).append(tuple(places))
    return Plan(tuple(groups), tuple(home), alone, tuple(others))


def xdist_group(test: str) -> str | None:
    """The name that xdist has put behind a test's id; an ``@`` within its parameters is none."""
    return test.rpartition("@")[2] if test.rfind("@") > test.rfind("]") else None
