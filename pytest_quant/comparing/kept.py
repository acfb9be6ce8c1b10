"""A run of a history folder as one of two sides: ``quant-history@abc1234``, or ``quant-history@latest``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant.comparing import run_record
from pytest_quant.comparing.judging import same_parameters
from pytest_quant.comparing.sides import Item, Side, Unmeasured
from pytest_quant.errors import QuantError

if TYPE_CHECKING:
    from pytest_quant.history.store import Run

_LATEST = "latest"
_FEWEST = 4
"""Characters of a commit's hash, as git asks for."""


def asked(place: Path) -> tuple[Path, str] | None:
    """The folder and the commit that a place names; None where it is a file or folder, or no such name."""
    folder, at, commit = str(place).rpartition("@")
    if not at or not commit or place.exists() or not Path(folder).is_dir():
        return None
    return Path(folder), commit


def is_history(place: Path) -> bool:
    """Whether a folder holds runs."""
    from pytest_quant.history.store import runs

    return place.is_dir() and bool(runs(place)[0])


def side(folder: Path, commit: str) -> Side:
    """What all runs of a commit measured, such as its shards; ``latest`` is the commit of the run that began last.
    Raises :class:`QuantError` where there is no such run, or the name is of two commits."""
    from pytest_quant.history.store import runs

    found, damaged = runs(folder)
    found.sort(key=lambda run: run.started)
    if commit == _LATEST:
        chosen = [run for run in found if run.commit is not None and run.commit == found[-1].commit] or found[-1:]
    elif len(commit) < _FEWEST:
        raise QuantError(f"{folder}@{commit}: name {_FEWEST} characters of the commit's hash or more, or `latest`.")
    else:
        chosen = [run for run in found if (run.commit or "").startswith(commit.lower())]
    if not chosen:
        known = list(dict.fromkeys(run.commit[:7] for run in found if run.commit))
        there = f"there are {', '.join(known[-8:])}" if known else "it holds no run of a known commit"
        raise QuantError(f"{folder}@{commit}: holds no run of that commit; {there}.")
    if len(several := sorted({(run.commit or "")[:12] for run in chosen})) > 1:
        raise QuantError(f"{folder}@{commit}: may be {' or '.join(several)}; name more of the hash.")
    return _joined(f"{folder}@{commit}", chosen, damaged)


def _joined(where: str, chosen: Sequence[Run], damaged: Sequence[str]) -> Side:
    """The runs, in their order, as one side. What a test says later replaces what it said before, a number or that
    there is none; what two tests say on one question is joined as within one run."""
    items: dict[Any, dict[str, Item]] = {}
    unmeasured: dict[Any, Unmeasured] = {}
    for run in chosen:
        for item in run.side.items:
            for key in [key for key, gate in unmeasured.items() if gate.test == item.test and _is_on(gate, item)]:
                del unmeasured[key]
        for gate in run.side.unmeasured:
            for told in items.values():
                if (before := told.get(gate.test)) is not None and _is_on(gate, before):
                    del told[gate.test]
            asked = (
                gate.hardware,
                gate.model,
                gate.metric,
                gate.format,
                gate.test,
                repr(sorted(gate.parameters.items())),
            )
            unmeasured[asked] = gate
        for item in run.side.items:
            items.setdefault(item.key, {})[item.test] = item
    sides = [run.side for run in chosen]
    hardware = {key: known for side in sides for key, known in side.hardware.items()}
    return Side(
        where,
        tuple(reduce(run_record.both, told.values()) for told in items.values() if told),
        hardware,
        tuple(unmeasured.values()),
        {test: reason for side in sides for test, reason in side.skipped.items()},
        (next(iter(hardware)) if len(hardware) == 1 else None, None),
        tuple(damaged),
    )


def _is_on(gate: Unmeasured, item: Item) -> bool:
    """Whether a gate without a number asked for what was measured."""
    measured = item.measurement
    asked = item.hardware, measured.model, measured.metric, measured.format
    return asked == (gate.hardware, gate.model, gate.metric, gate.format) and same_parameters(gate.parameters, item)
