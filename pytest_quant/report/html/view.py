"""What the page says, from run records alone: words and numbers, nothing of how they look."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_quant.errors import QuantError
from pytest_quant.gates.gate import LIMITS
from pytest_quant.report import changes, explanation
from pytest_quant.report.below import below
from pytest_quant.report.html.overall import overall
from pytest_quant.report.html.told import Bar, Broken, Group, Page, Record, Row, Run
from pytest_quant.report.margins import Margin, margins
from pytest_quant.report.naming import shown_metric
from pytest_quant.report.room import shown, tightest
from pytest_quant.report.rows import LOUDEST, cells, remarks, title, verdict
from pytest_quant.report.standing import is_broken, standing

DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ZeroDivisionError)
"""What a record of another shape than docs/run-record.md raises in those who read it."""


def page(records: Sequence[Record], version: str) -> Page:
    """The page of run records; :class:`QuantError` names the place of what is not as docs/run-record.md says."""
    runs = _told_apart([run(record) for record in records])
    counts = Counter(row.verdict for each in runs for group in each.groups for row in group.rows)
    return Page(
        overall=overall(runs),
        runs=runs,
        counts=tuple((word, counts[word]) for word in LOUDEST if counts[word]),
        version=version,
    )


def _told_apart(runs: Sequence[Run]) -> tuple[Run, ...]:
    """In their order, by hardware; those that are called the same get numbers."""
    counts, seen, found = Counter(each.hardware for each in runs), Counter[str](), []
    for each in sorted(runs, key=lambda each: each.hardware):
        seen[each.hardware] += 1
        number = f", run {seen[each.hardware]}" if counts[each.hardware] > 1 else ""
        found.append(replace(each, hardware=f"{each.hardware}{number}"))
    return tuple(found)


def run(record: Record) -> Run:
    """One record; :class:`QuantError` as for :func:`page`."""
    measurements = _list(record, "measurements")
    failed = record.get("failed")
    rows, broken = [], []
    for place, each in enumerate(measurements):
        try:
            rows.append((_title(each), _row(place, each)))
            if is_broken(each, failed):
                broken.append(_broken(each))
        except DAMAGE as error:
            raise damaged(f"measurements[{place}]", error) from error
    try:
        environment = record["environment"]
        hardware = environment["hardware"]
        return Run(
            hardware=str(hardware.get("name") or hardware.get("key") or ""),
            groups=_groups(rows),
            broken=tuple(sorted(broken, key=lambda found: LOUDEST.index(found.verdict))),
            remarks=tuple(remarks(measurements)),
            skipped=tuple((str(s["test"]), str(s.get("format", "")), str(s["reason"])) for s in record["skipped"]),
            standing=standing(record),
            troubles=tuple(map(str, record.get("troubles", ()))),
            incomplete=bool(record.get("incomplete")),
            facts=tuple(_facts(environment, hardware)),
            packages=tuple((str(n), str(v)) for n, v in sorted(environment.get("packages", {}).items())),
            proofs=_proofs(measurements),
            protocols=_protocols(measurements),
            models=tuple(dict.fromkeys(str(each["model"]) for each in measurements)),
            record=record,
            commit=str(environment.get("commit", "")),
            started=str(environment.get("started", "")),
        )
    except DAMAGE as error:
        raise damaged("environment, skipped, troubles", error) from error


def number(value: float, digits: int = 3) -> str:
    """A number for people: ``digits`` of it, no exponent where it can be read without."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    shown = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in shown and abs(value) < 1e9 else shown


def _bar(record: Record, margin: Margin) -> Bar:
    """A line that holds the value, its interval, the limit and, where there is one, the value of nothing lost."""
    nothing = LIMITS[record["metric"]][margin.name].nothing
    known = [each for each in (margin.value, margin.low, margin.high, margin.limit, nothing) if math.isfinite(each)]
    room = 0.1 * (max(known) - min(known)) or 1.0
    start, end = (each if each == nothing else each + side * room for each, side in ((min(known), -1), (max(known), 1)))

    def at(value: float) -> float:
        return min(max((value - start) / (end - start), 0.0), 1.0)

    return Bar(
        value=at(margin.value),
        low=at(margin.low),
        high=at(margin.high),
        limit=at(margin.limit),
        kept=margin.room >= 0,
        smaller_is_better=margin.smaller_is_better,
        text=shown(record, margin),
    )


def _row(place: int, record: Record) -> Row:
    format, metric, value, limit, baseline, word = map(str, cells(record))
    number_, bracket, rest = value.partition(" [")
    found = margins(record)
    used = [each.used for each in found if each.used is not None]
    return Row(
        place=place,
        format=format,
        metric=metric,
        value=number_,
        interval=f"{bracket.strip()}{rest}",
        limit=limit,
        baseline=baseline,
        verdict=word,
        bars=tuple(_bar(record, each) for each in found),
        number=repr(float(record["value"])) if "value" in record else "",
        used=repr(max(used)) if used else "",
        room=tightest(record),
        below=tuple(map(str, below(record))),
    )


def _title(record: Record) -> str:
    return str(title(record))


def _groups(rows: Iterable[tuple[str, Row]]) -> tuple[Group, ...]:
    found: dict[str, list[Row]] = {}
    for name, row in rows:
        found.setdefault(name, []).append(row)
    return tuple(Group(name, tuple(below)) for name, below in found.items())


def _broken(record: Record) -> Broken:
    said = []
    if record["verdict"] != "passed" and "reason" in record:
        said.append(f"{record['reason']}{_behind(record)}")
    said += [f"measured while {each['text']}" for each in record.get("conditions", ())]
    found = record.get("baseline") or {}
    if found.get("reason") and not (record["verdict"] == "failed" and found["verdict"] == "missing"):
        said.append(found["reason"])
    told = record.get("explanation") or {}
    steps = tuple(map(str, told.get("next", ())))
    lines = explanation.lines({name: value for name, value in told.items() if name != "next"}) if told else None
    return Broken(
        test=str(record["test"]),
        title=_title(record),
        format=str(record["format"]),
        metric=shown_metric(record),
        verdict=verdict(record),
        reasons=tuple(map(str, said)),
        next=steps,
        lines=tuple(changes.lines(record) if lines is None else lines),
    )


def _behind(record: Record) -> str:
    if "reference" not in record or "format_value" not in record or "reference_value" not in record:
        return ""
    ours, theirs = number(record["format_value"], 4), number(record["reference_value"], 4)
    return f" ({record['reference']} {theirs}, {record['format']} {ours})"


def _facts(environment: Record, hardware: Record) -> Iterable[tuple[str, str]]:
    for name in ("commit", "started"):
        if name in environment:
            yield name, str(environment[name])
    for name, value in sorted(hardware.items()):
        yield f"hardware {name.replace('_', ' ')}", _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return " ".join(map(_plain, value))
    return number(value, 6) if isinstance(value, float) else str(value)


def _proofs(measurements: Sequence[Record]) -> tuple[tuple[str, ...], ...]:
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for record in measurements:
        proof = record.get("proof") or {}
        if "weight_bytes" not in proof:
            continue
        share, bits = proof.get("quantized_weight_share"), proof.get("bits_per_weight")
        found[str(record["model"]), str(record["format"])] = (
            "-" if share is None else f"{share:.1%}",
            "-" if bits is None else f"{bits:.2f}",
            f"{proof['weight_bytes']:,}",
            _plain(proof.get("kernels", "-")),
        )
    return tuple((*key, *values) for key, values in found.items())


def _protocols(measurements: Sequence[Record]) -> tuple[str, ...]:
    told = [
        _plain(record["identity"]["protocol"]) for record in measurements if "protocol" in record.get("identity", {})
    ]
    return tuple(dict.fromkeys(each for each in told if each))


def _list(record: Record, name: str) -> Sequence[Record]:
    found = record.get(name)
    if not isinstance(found, list):
        raise damaged(name, TypeError("expected a list"))
    return found


def damaged(place: str, error: Exception) -> QuantError:
    """What to say of a record that :data:`DAMAGE` was raised for."""
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return QuantError(f"{place}: not as a run record is ({what}). Write the run record anew with --quant-json.")
