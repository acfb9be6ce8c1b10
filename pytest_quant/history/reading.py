"""A folder of run records as series: which measurements continue which, in what order, and where they moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_quant import baseline, git
from pytest_quant.comparing.judging import stack
from pytest_quant.comparing.sides import Item
from pytest_quant.environment import timestamp
from pytest_quant.errors import UsageError
from pytest_quant.gates.gate import LIMITS, MAIN
from pytest_quant.gates.verdict import Verdict
from pytest_quant.history import changes, store
from pytest_quant.history.series import History, Point, Series
from pytest_quant.report.naming import shown_metric
from pytest_quant.report.rows import LOUDEST
from pytest_quant.sizes import shown_bytes

_LARGER_IS_BETTER = frozenset({"token_agreement", "generation_match", "throughput_ratio"})
_PARTS = ("model", "protocol", "reference", "format", "engine")
"""What another identity is told as, by the first of its parts that differs."""


@dataclass(frozen=True)
class Told:
    """One measurement of one run, with what the run's record says of it."""

    run: store.Run
    item: Item
    record: Mapping[str, Any]

    @property
    def question(self) -> tuple[str, str, str, str, str]:
        measured = self.item.measurement
        asked = baseline.canonical({"metric": measured.identity.get("metric")})
        return self.item.hardware, measured.model, measured.metric, measured.format, asked


@dataclass
class _Line:
    """Measurements of one question, each run's continuing the one before."""

    told: list[Told] = field(default_factory=list)

    def holds(self, told: Told) -> bool:
        return any(each.item.key == told.item.key for each in self.told)

    def differences(self, told: Told) -> list[str]:
        return baseline.identity_difference(self.told[-1].item.measurement.identity, told.item.measurement.identity)


def read(folder: Path, since: str | None = None) -> History:
    """What the run records in a folder say. ``since`` is the beginning of a commit's hash, or a date: what is earlier
    does not count.

    Raises :class:`QuantError` where there is no such folder, or no such commit.
    """
    runs, damaged = store.runs(folder)
    known = _known(runs, folder)
    runs = _from(in_order(runs, known), since)
    found = lines(runs)
    pieces = sum(len(_identities(line.told)) for line in found)
    series = [_series(line.told, runs, known, folder, 1.0 / max(pieces, 1)) for line in found]
    series.sort(key=lambda each: (each.hardware, each.model, each.format, each.metric))
    return History(tuple(series), tuple(damaged), len(runs))


def in_order(runs: Sequence[store.Run], known: Mapping[str, git.Commit]) -> list[store.Run]:
    """Runs by their commits, parents first, so that an older commit that is measured later stands where it belongs; by
    the time of the run where git does not know the commit. Runs of one commit stand by their time."""

    def when(run: store.Run) -> tuple[str, int, str, str]:
        commit = known.get(run.commit or "")
        if commit is None:
            return run.started, -1, run.started, run.path.name
        return timestamp(commit.seconds), commit.place, run.started, run.path.name

    return sorted(runs, key=when)


def lines(runs: Iterable[store.Run]) -> list[_Line]:
    """Measurements that continue each other. One of another identity, such as another model under the same name,
    continues the line of its question that has none in the same run, if the same test asks it."""
    found: dict[Any, list[_Line]] = {}
    for run in runs:
        left = []
        taken: list[_Line] = []
        for told in _measured(run):
            line = next((each for each in found.get(told.question, []) if each.holds(told)), None)
            if line is None:
                left.append(told)
            else:
                line.told.append(told)
                taken.append(line)
        for told in left:
            free = [
                each
                for each in found.get(told.question, [])
                if each not in taken and each.told[-1].item.test == told.item.test
            ]
            line = min(free, key=lambda each: len(each.differences(told)), default=_Line())
            if not line.told:
                found.setdefault(told.question, []).append(line)
            line.told.append(told)
            taken.append(line)
    return [line for several in found.values() for line in several]


def _measured(run: store.Run) -> list[Told]:
    records = {}
    for record in run.record["measurements"]:
        if "value" in record:
            asked = record["metric"], record["format"], baseline.canonical(record["identity"])
            records[record["model"], asked] = record
    return [
        Told(run, item, records[item.measurement.model, item.entry.key])
        for item in run.side.items
        if math.isfinite(item.measurement.value)
    ]


def _known(runs: Sequence[store.Run], folder: Path) -> dict[str, git.Commit]:
    """What git knows of the commits: the repository around the folder, or else the one around us."""
    hashes = {run.commit for run in runs if run.commit}
    places = [git.commits(hashes, place) for place in dict.fromkeys((folder.resolve(), Path.cwd()))]
    return max(places, key=len)


def _from(runs: list[store.Run], since: str | None) -> list[store.Run]:
    if since is None:
        return runs
    if since[:4].isdecimal() and "-" in since:
        return [run for run in runs if run.started >= since]
    first = next((place for place, run in enumerate(runs) if (run.commit or "").startswith(since.lower())), None)
    if first is None:
        raise UsageError(f"--since={since}: no run is of that commit; name one of the table, or a date (2026-01-31)")
    return runs[first:]


def _identities(told: Sequence[Told]) -> dict[Any, list[int]]:
    """The places of a line, by identity."""
    found: dict[Any, list[int]] = {}
    for place, each in enumerate(told):
        found.setdefault(each.item.key, []).append(place)
    return found


def _series(
    told: Sequence[Told], runs: Sequence[store.Run], known: Mapping[str, git.Commit], folder: Path, share: float
) -> Series:
    points: dict[int, Point] = {}
    state, levels = "", 0
    for places in _identities(told).values():
        part = [told[place] for place in places]
        found = changes.find([each.item for each in part], [_accepted(each.record) for each in part], share)
        for number, place in enumerate(places):
            points[place] = _point(part, found.runs[number], number, known, folder, levels)
        levels += max(finding.level for finding in found.runs) + 1
        state = found.state if places[-1] == len(told) - 1 else state
    for place in range(1, len(told)):
        if told[place].item.key != told[place - 1].item.key:
            points[place] = _renamed(points[place], told[place - 1], told[place])
    last = told[-1]
    measured, hardware = last.item.measurement, last.run.side.hardware.get(last.item.hardware, {})
    place = next(number for number, run in enumerate(runs) if run is last.run)
    later = [run for run in runs[place + 1 :] if last.item.hardware in run.side.hardware and not run.incomplete]
    return Series(
        measured.model,
        measured.format,
        shown_metric(last.record),
        last.item.hardware,
        measured.quantity.unit,
        _limit(last.record),
        measured.metric not in _LARGER_IS_BETTER,
        tuple(points[place] for place in range(len(told))),
        name=measured.metric,
        hardware_name=str(hardware.get("name", "")),
        state=state,
        test=last.item.test,
        behind=len(later),
    )


def _point(
    part: Sequence[Told],
    finding: changes.Finding,
    number: int,
    known: Mapping[str, git.Commit],
    folder: Path,
    levels: int,
) -> Point:
    told = part[number]
    run, quantity = told.run, told.item.measurement.quantity
    commit = known.get(run.commit or "")
    before = None if finding.before is None else part[finding.before]
    began = None if finding.began is None else part[finding.began]
    low, high = (end if math.isfinite(end) else None for end in (quantity.low, quantity.high))
    good, apart = "", None
    if before is not None and before.run.commit and run.commit and before.run.commit != run.commit:
        good = before.run.commit
        here = git.between(good, run.commit, folder.resolve()) if run.commit in known and good in known else None
        apart = git.between(good, run.commit, Path.cwd()) if here is None and commit is not None else here
    return Point(
        run.commit,
        run.started,
        quantity.value,
        low,
        high,
        _verdict(told.record),
        moved=finding.moved,
        change=finding.change,
        event=finding.event,
        reason="" if before is None else _reason(before, told, finding.change),
        began="" if began is None else (began.run.commit or began.run.started),
        before=good,
        between=apart,
        subject="" if commit is None else commit.subject,
        dirty=run.dirty,
        level=levels + finding.level,
        run=run.path.name,
    )


def _reason(before: Told, now: Told, change: str) -> str:
    values = [_shown(each.item) for each in (before, now)]
    parts = [f"{values[0]} before, {values[1]} now ({change})", stack(now.item, before.item)]
    return "; ".join(part for part in parts if part)


def _shown(item: Item) -> str:
    quantity = item.measurement.quantity
    if quantity.unit == "bytes":
        return shown_bytes(quantity.value)
    unit = {"x": "x", "share": ""}.get(quantity.unit, f" {quantity.unit}")
    return f"{quantity.value:.4g}{unit}"


def _renamed(point: Point, before: Told, now: Told) -> Point:
    differences = baseline.identity_difference(before.item.measurement.identity, now.item.measurement.identity)
    parts = {line.partition(":")[0].partition(".")[0] for line in differences}
    what = next((part for part in _PARTS if part in parts), "question")
    return replace(point, event=f"another {what}", reason="; ".join(differences[:3]))


def _verdict(record: Mapping[str, Any]) -> str:
    """The louder of the limit's and the baseline's, of a record that may hold anything."""
    found = record.get("baseline")
    said = [record.get("verdict"), found.get("verdict") if isinstance(found, Mapping) else None]
    words = [word for word in said if isinstance(word, str) and word in LOUDEST]
    return min(words, key=LOUDEST.index) if words else ""


def _accepted(record: Mapping[str, Any]) -> bool:
    """Whether a committed baseline says that the number is as it should be."""
    found = record.get("baseline")
    said = found.get("verdict") if isinstance(found, Mapping) else None
    return said in (Verdict.PASSED.value, Verdict.IMPROVED.value)


def _limit(record: Mapping[str, Any]) -> float | None:
    """The limit on the value itself, in its unit; None where there is none, or it is on another statistic."""
    limits = record.get("limit")
    for name, limit in sorted(limits.items()) if isinstance(limits, Mapping) else []:
        kind = LIMITS[record["metric"]].get(name)
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if number and kind is not None and kind.quantity == MAIN[record["metric"]]:
            return float(limit) * kind.unit
    return None
