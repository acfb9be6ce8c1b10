"""A run of a history folder as one of two sides: ``quant-history@abc1234``, or ``quant-history@latest``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quant.comparing.sides import Item, Side
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
    """What all runs of a commit measured, or the run that began last: of several numbers for one question the last
    counts. Raises :class:`QuantError` where there is no such run, or the name is of two commits."""
    from pytest_quant.history.store import runs

    found, damaged = runs(folder)
    found.sort(key=lambda run: run.started)
    if commit == _LATEST:
        chosen = found[-1:]
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
    sides = [run.side for run in chosen]
    items = {item.key: item for side in sides for item in side.items}
    measured = {_question(item) for item in items.values()}
    without = [gate for gate in sides[-1].unmeasured if (gate.model, gate.metric, gate.format) not in measured]
    hardware = {key: known for side in sides for key, known in side.hardware.items()}
    return Side(
        where,
        tuple(items.values()),
        hardware,
        tuple(sides[-1].unmeasured if len(sides) == 1 else without),
        {test: reason for side in sides for test, reason in side.skipped.items()},
        (next(iter(hardware)) if len(hardware) == 1 else None, None),
        tuple(damaged),
    )


def _question(item: Item) -> tuple[str, str, str]:
    measured = item.measurement
    return measured.model, measured.metric, measured.format
