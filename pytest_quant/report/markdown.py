"""A run record as GitHub Markdown: what a reviewer of a pull request looks at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from pytest_quant.counting import counted
from pytest_quant.report.escaping import block, code, prose
from pytest_quant.report.failure import explain
from pytest_quant.report.room import room
from pytest_quant.report.rows import LOUDEST, cells, remarks, verdict
from pytest_quant.report.standing import Standing, standing

COMMENT = 65_000
"""Bytes that GitHub takes for a comment: 65 536 characters, less what one writes around it."""
_SYMBOLS = {"red": "❌", "green": "✅"}
_CAUTION = "⚠️"
_OF_VERDICTS = {"passed": "✅", "improved": "✅", "new": "🆕", "failed": "❌", "regressed": "❌", "not-measured": "❌"}
_HEADERS = ("verdict", "format", "metric", "value", "limit", "margin", "baseline")
_ALWAYS_NAMED = ("pytest-quant", "torch", "transformers")
_LEFT_OUT = 160
"""Bytes that are kept for the line that says how much was left out."""
_SHORT = 12
"""Digits of a commit."""


@dataclass(frozen=True)
class _Section:
    """Rows that are shown together: ``head`` and ``tail`` only where there is room for one of them."""

    rows: Sequence[str]
    head: str = ""
    tail: str = ""


def render(record: Mapping[str, Any], most: int = COMMENT) -> str:
    """The whole run, what counts most first, in at most ``most`` bytes of UTF-8; what has no room is left out row by
    row, and it is said how many there are. Empty where not even the first line has room."""
    found = standing(record)
    sections = [
        _Section([_headline(found)]),
        *_troubles(record),
        *_broken(record, found),
        *_tables(record),
        *_baselines(record),
        *_notes(record),
        *_skipped(record),
        *_environment(record),
    ]
    return _joined(sections, most)


def _headline(found: Standing) -> str:
    return f"### {_SYMBOLS.get(found.word, _CAUTION)} Quantization: {found.said}\n\n{prose(found.sentence)}\n"


def _troubles(record: Mapping[str, Any]) -> Iterable[_Section]:
    if troubles := record.get("troubles", ()):
        yield _Section([f"- ❌ {prose(trouble)}\n" for trouble in troubles], "\n**Errors of the run**\n\n")


def _broken(record: Mapping[str, Any], found: Standing) -> Iterable[_Section]:
    """What broke, and what is behind it."""
    rows = [_reason(each) for each in found.broken]
    outside = "failed outside its gates: in its body, a fixture or its teardown"
    rows += [f"\n❌ {code(test)} {outside}\n" for test in found.elsewhere]
    rows += [f"\n❌ {code(test)} passed, though it is marked `xfail(strict=True)`\n" for test in found.unexpected]
    if rows:
        yield _Section(rows, "\n**What broke**\n")


def _reason(measurement: Mapping[str, Any]) -> str:
    first, _, behind = explain([measurement]).partition("\n")
    said = f"\n❌ {prose(first)} ({code(measurement['test'])})\n"
    return said + _details("what is behind it", block(dedent(behind)) + "\n") if behind else said


def _details(summary: str, content: str) -> str:
    return f"\n<details><summary>{summary}</summary>\n\n{content}\n</details>\n"


def _tables(record: Mapping[str, Any]) -> Iterable[_Section]:
    """One for each test and model; those with the loudest verdicts first, and so are their rows."""
    titled: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for each in record["measurements"]:
        titled[each["test"].partition("[")[0], each["model"], each["engine"]].append(each)
    for (test, model, engine), rows in sorted(titled.items(), key=lambda pair: min(map(_loudness, pair[1]))):
        on = "" if engine == "transformers" else f" on {prose(engine)}"
        lines = dict.fromkeys(_row(each) for each in sorted(rows, key=_loudness))
        head = f"\n{code(test)}: {code(model)}{on}\n\n| {' | '.join(_HEADERS)} |\n|{'---|' * len(_HEADERS)}\n"
        yield _Section(list(lines), head)


def _row(measurement: Mapping[str, Any]) -> str:
    name, metric, value, limit, change, word = cells(measurement)
    symbol = "❌" if measurement.get("breaks") else _OF_VERDICTS.get(word, _CAUTION)
    shown = [f"{symbol} {word}", code(name, table=True)]
    shown += [prose(text, table=True) for text in (metric, value, limit, room(measurement) or "-", change)]
    return f"| {' | '.join(shown)} |\n"


def _loudness(measurement: Mapping[str, Any]) -> tuple[bool, int]:
    return not measurement.get("breaks"), LOUDEST.index(verdict(measurement))


def _baselines(record: Mapping[str, Any]) -> Iterable[_Section]:
    """What became of the baselines, where anything did."""
    found = [each["baseline"]["verdict"] for each in record["measurements"] if each.get("baseline")]
    said = []
    if count := found.count("new"):
        said.append(f"{count} new (compared with from now on, once they are committed)")
    said += [f"{found.count(word)} {word}" for word in LOUDEST if word not in ("new", "passed") and word in found]
    if said:
        yield _Section([f"\nBaselines: {prose(', '.join(said))}.\n"])


def _notes(record: Mapping[str, Any]) -> Iterable[_Section]:
    lines = [f"- {prose(line)}\n" for _, line in remarks(record["measurements"])]
    if lines:
        yield _folded(counted(len(lines), "remark"), lines)


def _skipped(record: Mapping[str, Any]) -> Iterable[_Section]:
    """Tests that could not run, by reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for skip in record["skipped"]:
        by_reason[skip["reason"]].append(skip["test"])
    rows = [f"- {', '.join(map(code, tests))}: {prose(reason)}\n" for reason, tests in by_reason.items()]
    if rows:
        yield _folded(f"{counted(len(record['skipped']), 'test')} skipped", rows)


def _environment(record: Mapping[str, Any]) -> Iterable[_Section]:
    surroundings = record["environment"]
    hardware, packages = surroundings.get("hardware") or {}, dict(surroundings.get("packages") or {})
    said = []
    if "name" in hardware:
        several = f"{hardware['count']} x " if hardware.get("count", 1) > 1 else ""
        said.append("on " + prose(several + hardware["name"]))
    if "commit" in surroundings:
        said.append(f"commit {code(str(surroundings['commit'])[:_SHORT])}")
    engines = {each["engine"] for each in record["measurements"]}
    shown = [name for name in (*_ALWAYS_NAMED, *sorted(engines - {"transformers"})) if name in packages]
    said += [prose(f"{name} {packages.pop(name)}") for name in shown]
    if "started" in surroundings:
        said.append(prose(surroundings["started"]))
    if said:
        yield _Section([f"\n{' · '.join(said)}\n"])
    if packages:
        others = ", ".join(f"{name} {version}" for name, version in packages.items())
        yield _folded("other versions", [f"{prose(others)}\n"])


def _folded(summary: str, rows: Sequence[str]) -> _Section:
    return _Section(rows, f"\n<details><summary>{summary}</summary>\n\n", "\n</details>\n")


def _joined(sections: Iterable[_Section], most: int) -> str:
    """The sections as far as there is room, each of them closed."""
    said: list[str] = []
    left, out = most, 0
    total = sum(_size(text) for section in sections for text in (section.head, *section.rows, section.tail))
    if total > most:
        left -= _LEFT_OUT
    for section in sections:
        around = _size(section.head) + _size(section.tail)
        kept: list[str] = []
        for row in section.rows:
            needed = _size(row) + (0 if kept else around)
            if needed <= left:
                kept.append(row)
                left -= needed
        out += len(section.rows) - len(kept)
        if kept:
            said += [section.head, *kept, section.tail]
        if not said:
            return ""
    if out:
        said.append(f"\n**{counted(out, 'row')} left out for want of room**; the run record (--quant-json) has all.\n")
    return "".join(said)


def _size(text: str) -> int:
    return len(text.encode("utf-8"))
