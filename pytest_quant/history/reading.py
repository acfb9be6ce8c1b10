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
from pytest_quant.gates.gate import LIMITS, MAIN
from pytest_quant.gates.verdict import Verdict
from pytest_quant.history import absence, changes, store
from pytest_quant.history.beginning import since_then
from pytest_quant.history.series import History, Point, Series
from pytest_quant.report.naming import shown_metric
from pytest_quant.report.rows import LOUDEST
from pytest_quant.sizes import shown_bytes

_LARGER_IS_BETTER = frozenset({"token_agreement", "generation_match", "throughput_ratio"})
_PARTS = ("model", "protocol", "reference", "format", "engine")
"""What another identity is told as, by the first of its parts that differs."""


@dataclass(frozen=True)
class Told:
    """One measurement of one run, with what the run's record says of it: once for each gate that asked for it."""

    run: store.Run
    item: Item
    records: tuple[Mapping[str, Any], ...]

    @property
    def loudest(self) -> Mapping[str, Any]:
        """The record of the gate whose verdict is the one of all."""
        order = {word: place for place, word in enumerate(LOUDEST)}
        return min(self.records, key=lambda record: order.get(_verdict(record), len(order)))

    @property
    def tests(self) -> frozenset[str]:
        return frozenset(str(record["test"]) for record in self.records)

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

    def pieces(self) -> dict[Any, list[int]]:
        """The places of the line, by identity."""
        found: dict[Any, list[int]] = {}
        for place, each in enumerate(self.told):
            found.setdefault(each.item.key, []).append(place)
        return found

    def differences(self, told: Told) -> list[str]:
        return baseline.identity_difference(self.told[-1].item.measurement.identity, told.item.measurement.identity)


def read(folder: Path, since: str | None = None, *, everything: bool = False) -> History:
    """What the run records in a folder say. ``since`` is the beginning of a commit's hash, or a date: what is earlier
    does not count. Runs of commits that are not on the way to the one that is checked out are left out; with
    ``everything`` they are series of their own, in which nothing is judged.

    Raises :class:`QuantError` where there is no such folder, and :class:`UsageError` where ``since`` names no run.
    """
    runs, damaged = store.runs(folder)
    known, around = _known(runs, folder)
    runs = since_then(in_order(runs, known), since)
    line = git.first_parents(around) if known else None
    apart = [run for run in runs if line is not None and run.commit in known and run.commit not in line]
    main = [run for run in runs if run not in apart]
    found = lines(main)
    share = 1.0 / max(sum(len(line.pieces()) for line in found), 1)
    series = [_series(line, main, known, folder, share) for line in found]
    if everything:
        series += [replace(_series(line, apart, known, folder, 0.0), apart=True) for line in lines(apart)]
    series.sort(key=lambda each: (each.apart, each.hardware, each.model, each.format, each.metric))
    return History(tuple(series), tuple(damaged), len(main), len(apart))


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
    records: dict[Any, list[Mapping[str, Any]]] = {}
    for record in run.record["measurements"]:
        if "value" in record:
            asked = record["metric"], record["format"], baseline.canonical(record["identity"])
            records.setdefault((record["model"], asked), []).append(record)
    return [
        Told(run, item, tuple(records[item.measurement.model, item.entry.key]))
        for item in run.side.items
        if math.isfinite(item.measurement.value)
    ]


def _known(runs: Sequence[store.Run], folder: Path) -> tuple[dict[str, git.Commit], Path]:
    """What git knows of the commits, and where: in the repository around the folder, or else the one around us."""
    hashes = {run.commit for run in runs if run.commit}
    places = [(git.commits(hashes, place), place) for place in dict.fromkeys((folder.resolve(), Path.cwd()))]
    return max(places, key=lambda found: len(found[0]))


def _series(
    line: _Line, runs: Sequence[store.Run], known: Mapping[str, git.Commit], folder: Path, share: float
) -> Series:
    """``runs`` are those that the line may be in; with a ``share`` of 0 nothing is judged."""
    told = line.told
    points: dict[int, Point] = {}
    state, levels = "", 0
    for places in line.pieces().values():
        part = [told[place] for place in places]
        found = (
            changes.find([each.item for each in part], [_accepted(each) for each in part], share)
            if share
            else changes.Found((changes.Finding(0),) * len(part))
        )
        for number, place in enumerate(places):
            points[place] = _point(part, found.runs[number], number, known, folder, levels)
        levels += max(finding.level for finding in found.runs) + 1
        state = found.state if places[-1] == len(told) - 1 else state
    for place in range(1, len(told)):
        if told[place].item.key != told[place - 1].item.key:
            points[place] = _renamed(points[place], told[place - 1], told[place])
    last = told[-1]
    measured, hardware = last.item.measurement, last.run.side.hardware.get(last.item.hardware, {})
    limits = [limit for record in last.records if (limit := _limit(record)) is not None]
    strictest = max if measured.metric in _LARGER_IS_BETTER else min
    lost = absence.of(last.item, last.tests, last.run, runs)
    return Series(
        measured.model,
        measured.format,
        shown_metric(last.loudest),
        last.item.hardware,
        measured.quantity.unit,
        strictest(limits, default=None),
        measured.metric not in _LARGER_IS_BETTER,
        tuple(points[place] for place in range(len(told))),
        name=measured.metric,
        hardware_name=str(hardware.get("name", "")),
        state=(lost.state or state) if share else "",
        test=str(last.loudest["test"]),
        behind=lost.behind,
        reason=lost.reason,
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
        _verdict(told.loudest),
        moved=finding.moved,
        change=finding.change,
        event=finding.event,
        reason="" if before is None else _reason(before, told, finding),
        began="" if began is None else (began.run.commit or began.run.started),
        before=good,
        between=apart,
        subject="" if commit is None else commit.subject,
        dirty=run.dirty,
        level=levels + finding.level,
        run=run.path.name,
    )


def _reason(before: Told, now: Told, finding: changes.Finding) -> str:
    quantities = [each.item.measurement.quantity for each in (before, now)]
    values = finding.values or [each.value for each in quantities]
    shown = [_shown(value, quantities[1].unit) for value in values]
    parts = [f"{shown[0]} before, {shown[1]} now ({finding.change})", stack(now.item, before.item)]
    return "; ".join(part for part in parts if part)


def _shown(value: float, unit: str) -> str:
    if unit == "bytes":
        return shown_bytes(value)
    return f"{value:.4g}" + {"x": "x", "share": ""}.get(unit, f" {unit}")


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


def _accepted(told: Told) -> bool:
    """Whether a committed baseline says that the number is as it should be, to each gate that has one."""
    found = [record["baseline"] for record in told.records if isinstance(record.get("baseline"), Mapping)]
    return bool(found) and all(each.get("verdict") in (Verdict.PASSED.value, Verdict.IMPROVED.value) for each in found)


def _limit(record: Mapping[str, Any]) -> float | None:
    """The limit on the value itself, in its unit; None where there is none, or it is on another statistic."""
    limits = record.get("limit")
    for name, limit in sorted(limits.items()) if isinstance(limits, Mapping) else []:
        kind = LIMITS[record["metric"]].get(name)
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if number and kind is not None and kind.quantity == MAIN[record["metric"]]:
            return float(limit) * kind.unit
    return None
