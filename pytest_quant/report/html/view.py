"""What the page says, from run records alone: words and numbers, nothing of how they look."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_quant.errors import QuantError
from pytest_quant.gates.gate import LIMITS
from pytest_quant.report import changes, explanation
from pytest_quant.report.below import below
from pytest_quant.report.margins import Margin, margins
from pytest_quant.report.naming import shown_metric
from pytest_quant.report.rows import LOUDEST, cells, remarks, title, verdict
from pytest_quant.report.standing import is_broken

Record = Mapping[str, Any]

TONES = {
    "failed": "bad",
    "not-measured": "bad",
    "regressed": "bad",
    "missing": "open",
    "incomparable": "open",
    "inconclusive": "open",
    "new": "known",
    "improved": "good",
    "passed": "good",
}
SYMBOLS = {
    "failed": "✗",
    "not-measured": "∅",
    "regressed": "↘",
    "missing": "?",
    "incomparable": "≠",
    "inconclusive": "…",
    "new": "+",
    "improved": "↗",
    "passed": "✓",
}
_NAMED = 3
"""Broken gates that the head of the page names."""
DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ZeroDivisionError)
"""What a record of another shape than docs/run-record.md raises in those who read it."""


@dataclass(frozen=True)
class Bar:
    """A margin as a bar: places on a line from 0 to 1, and the same in words."""

    value: float
    low: float
    high: float
    limit: float
    kept: bool
    smaller_is_better: bool
    text: str


@dataclass(frozen=True)
class Row:
    """One gate."""

    place: int
    """In the run's order, from 0."""
    format: str
    metric: str
    value: str
    interval: str
    limit: str
    baseline: str
    verdict: str
    bars: tuple[Bar, ...]
    number: str
    """The value as a plain number, empty where there is none: what the table is sorted by."""
    used: str
    """Of the fullest of its budgets, in the same way."""
    below: tuple[str, ...]

    @property
    def tone(self) -> str:
        return TONES[self.verdict]

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.verdict]


@dataclass(frozen=True)
class Group:
    """The gates of one test (all its formats) on one model."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Broken:
    """A gate that breaks its test, and everything that is known of why."""

    test: str
    title: str
    format: str
    metric: str
    verdict: str
    reasons: tuple[str, ...]
    next: tuple[str, ...]
    """What to do, commands and pieces of Python."""
    lines: tuple[str, ...]
    """Windows, layers, items: laid out as in the terminal."""

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.verdict]

    @property
    def tone(self) -> str:
        return TONES[self.verdict]


@dataclass(frozen=True)
class Run:
    """What one record holds."""

    hardware: str
    """Its name; of several runs on such hardware with a number, so that no two runs of a page are called the same."""
    groups: tuple[Group, ...]
    broken: tuple[Broken, ...]
    remarks: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str, str], ...]
    """Test, format, reason."""
    elsewhere: tuple[str, ...]
    """Tests that failed though none of their gates is broken."""
    troubles: tuple[str, ...]
    incomplete: bool
    facts: tuple[tuple[str, str], ...]
    """The environment: name and value."""
    packages: tuple[tuple[str, str], ...]
    proofs: tuple[tuple[str, ...], ...]
    """Model, format, share of weights quantized, bits a weight, bytes, kernels; see :data:`PROOF_HEADERS`."""
    protocols: tuple[str, ...]
    """Each identity of a protocol as ``name: value`` pairs in a line."""
    models: tuple[str, ...]
    record: Record
    commit: str
    started: str


PROOF_HEADERS = ("model", "format", "weights quantized", "bits a weight", "weight bytes", "kernels")


@dataclass(frozen=True)
class Overall:
    """The verdict of all in one word, and why."""

    tone: str
    symbol: str
    word: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """All runs of one page."""

    overall: Overall
    runs: tuple[Run, ...]
    counts: tuple[tuple[str, int], ...]
    """How many gates there are of each verdict, the one that counts most first."""
    version: str


def page(records: Sequence[Record], version: str) -> Page:
    """The page of run records; :class:`QuantError` names the place of what is not as docs/run-record.md says."""
    runs = _told_apart([run(record) for record in records])
    counts = Counter(row.verdict for each in runs for group in each.groups for row in group.rows)
    return Page(
        overall=_overall(runs, counts),
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
            elsewhere=_elsewhere(failed or (), broken),
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


def margin_text(margin: Margin) -> str:
    """How much room there is, and what share of the budget is used."""
    unit = f" {margin.symbol}" if margin.symbol and margin.symbol != "x" else margin.symbol
    room = f"{number(abs(margin.room))}{unit}"
    said = f"{room} of room" if margin.room >= 0 else f"{room} beyond the limit"
    if margin.used is None:
        return said
    return f"{said}, {_percent(max(margin.used, 0.0))} of the budget used"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share < 10 else f"{number(share)} times"


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
        text=margin_text(margin),
    )


def _row(place: int, record: Record) -> Row:
    format, metric, value, limit, baseline, word = map(str, cells(record))
    shown, bracket, rest = value.partition(" [")
    found = margins(record)
    used = [each.used for each in found if each.used is not None]
    return Row(
        place=place,
        format=format,
        metric=metric,
        value=shown,
        interval=f"{bracket.strip()}{rest}",
        limit=limit,
        baseline=baseline,
        verdict=word,
        bars=tuple(_bar(record, each) for each in found),
        number=repr(float(record["value"])) if "value" in record else "",
        used=repr(max(used)) if used else "",
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
        said.append(f"against the baseline: {found['reason']}")
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


def _elsewhere(failed: Sequence[Any], broken: Sequence[Broken]) -> tuple[str, ...]:
    of_gates = {each.test for each in broken}
    return tuple(str(test) for test in failed if test not in of_gates)


def _behind(record: Record) -> str:
    if "reference" not in record or "format_value" not in record or "reference_value" not in record:
        return ""
    ours, theirs = number(record["format_value"], 4), number(record["reference_value"], 4)
    return f" ({record['reference']} {theirs}, {record['format']} {ours})"


def _overall(runs: Sequence[Run], counts: Mapping[str, int]) -> Overall:
    gates, broken = sum(counts.values()), sum(len(each.broken) for each in runs)
    skipped, troubles = sum(len(each.skipped) for each in runs), sum(len(each.troubles) for each in runs)
    reasons = []
    measured = gates - counts.get("not-measured", 0)
    if broken:
        reasons.append(f"{broken} of {_many(gates, 'gate')} {'breaks' if broken == 1 else 'break'} the build:")
        reasons += _first_reasons([each for run in runs for each in run.broken])
    if elsewhere := sum(len(each.elsewhere) for each in runs):
        reasons.append(f"{_many(elsewhere, 'test')} failed outside {'its' if elsewhere == 1 else 'their'} gates.")
    if troubles:
        reasons.append(f"{_many(troubles, 'trouble')} besides the gates, named below.")
    if any(each.incomplete for each in runs):
        reasons.append("The run was interrupted: tests that had not run yet are missing here.")
    if skipped:
        reasons.append(f"{_many(skipped, 'test')} skipped, with the reasons below.")
    if broken or troubles or elsewhere:
        return Overall("bad", "✗", "Red", tuple(reasons))
    if not measured:
        why = "Every quantization test was skipped." if skipped else "No test with a gate ran."
        return Overall("open", "∅", "Nothing was measured", (f"{why} This is no pass.", *reasons))
    undecided = sum(count for word, count in counts.items() if TONES[word] == "open")
    if undecided:
        reasons.insert(0, f"{undecided} of {_many(gates, 'gate')} could not be judged to the end.")
    if any(each.incomplete for each in runs):
        return Overall("open", "…", "Interrupted", tuple(reasons))
    if undecided:
        return Overall("open", "…", "No gate breaks, not all are decided", tuple(reasons))
    if expected := sum(count for word, count in counts.items() if TONES[word] == "bad"):
        reasons.insert(0, f"{expected} of {_many(gates, 'gate')} broke in tests that were expected to fail (xfail).")
        return Overall("good", "✓", "No gate broke unexpectedly", tuple(reasons))
    reasons += _tightest(runs)
    return Overall("good", "✓", f"All {gates} gates hold" if gates > 1 else "The gate holds", tuple(reasons))


def _first_reasons(broken: Sequence[Broken]) -> list[str]:
    said = [f"{each.format} {each.metric}: {'; '.join(each.reasons) or each.verdict}" for each in broken[:_NAMED]]
    return said if len(broken) <= _NAMED else [*said, f"and {len(broken) - _NAMED} more"]


def _tightest(runs: Sequence[Run]) -> list[str]:
    """Which gate has the least room, where a share of a budget is known."""
    rows = [row for each in runs for group in each.groups for row in group.rows if row.used]
    if not rows:
        return []
    row = max(rows, key=lambda row: float(row.used))
    return [f"Least room: {row.format} {row.metric}, {_percent(float(row.used))} of the budget used ({row.limit})."]


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


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
