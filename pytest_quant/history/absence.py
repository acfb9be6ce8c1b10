"""What became of a measurement that the last runs do not have: tried and not got, or not asked for any more. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pytest_quant.comparing.judging import same_parameters
from pytest_quant.comparing.sides import Item
from pytest_quant.history.store import Run

_RETIRED = 3
"""So many later commits whose runs do not ask, and nobody does any more. One may be a run of some tests only, which no
record tells from a run of all."""
_BROKEN = ("failed", "not-measured")


@dataclass(frozen=True)
class Absence:
    """Of a measurement, since the last run that has it."""

    behind: int
    """Later commits that were measured on the hardware."""
    state: str = ""
    """``not measured``, ``retired``, or empty: then the last number stands for now."""
    reason: str = ""
    """Where it is not measured."""


def of(item: Item, tests: Collection[str], last: Run, runs: Sequence[Run]) -> Absence:
    """``item`` was measured last in the run ``last`` of ``runs``, which are in their order, by ``tests``."""
    later = _later(item, last, runs)
    asked = [(run, reason) for run in later if (reason := _tried(item, tests, run)) is not None]
    behind = _commits(later, last)
    silent = _commits(_later(item, asked[-1][0], runs), asked[-1][0]) if asked else behind
    if silent >= _RETIRED:
        return Absence(behind, "retired")
    if not asked:
        return Absence(behind)
    run, why = asked[-1]
    return Absence(behind, "not measured", f"at {(run.commit or 'no commit')[:7]} ({run.started[:10]}): {why}")


def _later(item: Item, than: Run, runs: Sequence[Run]) -> list[Run]:
    """The runs on the hardware after one, those of its own commit too: which may be other shards, or tried again."""
    place = next(number for number, run in enumerate(runs) if run is than)
    return [run for run in runs[place + 1 :] if item.hardware in run.side.hardware]


def _commits(later: Iterable[Run], than: Run) -> int:
    """Of how many other commits a run got to its end; a run of no commit counts as one."""
    return len({run.commit or run.path.name for run in later if not run.incomplete} - {than.commit})


def _tried(item: Item, tests: Collection[str], run: Run) -> str | None:
    """Why a run has no number though it tried, and is red for it; None where it did not try."""
    measured, failed = item.measurement, run.record.get("failed")
    for record in run.record["measurements"]:
        asked = tuple(record[name] for name in ("model", "metric", "format"))
        if "value" in record or asked != (measured.model, measured.metric, measured.format):
            continue
        if record["test"] not in tests or not same_parameters(record.get("parameters") or {}, item):
            continue
        if isinstance(failed, list):
            red = record.get("breaks") is True and record["test"] in failed
        else:
            red = record["verdict"] in _BROKEN  # an earlier version did not say
        if red:
            return str(record.get("reason") or record["verdict"])
    return None
