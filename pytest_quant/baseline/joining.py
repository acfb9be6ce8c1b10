"""Baselines of several runners, joined. Pure: files in, files out, the same whichever runner comes first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_quant.baseline.schema import Entry, File, canonical, render

Place = tuple[str, str]
"""Hardware key and model: what one file holds."""


@dataclass(frozen=True)
class Source:
    """A file, and what to call the part that it is of."""

    part: str
    file: File


@dataclass(frozen=True)
class Conflict:
    """One measurement of which parts hold different values; ``taken`` is one of ``found``. It is not ``decided`` where
    two parts hold different values that were recorded at the same time."""

    place: Place
    found: tuple[tuple[str, Entry], ...]
    taken: tuple[str, Entry]
    decided: bool = True


@dataclass(frozen=True)
class Joined:
    """The files that come out, what parts did not agree on, and what a person should know besides."""

    files: tuple[File, ...]
    conflicts: tuple[Conflict, ...]
    notes: tuple[str, ...]


def join(parts: Iterable[Source], base: Iterable[Source] = ()) -> Joined:
    """All measurements of all parts and of ``base``, into which they are joined.

    Measurements of one hardware, model, metric, format and identity are the same one. Where their values differ, that
    of the latest ``recorded.date`` counts (one without a date is older than any with). Of one date (a clock that is
    replaced by SOURCE_DATE_EPOCH) a part counts before ``base``, since it was made from it, and a part that still has
    what ``base`` has says nothing; between two others it is not decided. Where values do not differ, that of ``base``
    stays as it is, or else the latest. So the order of parts makes no difference, and to join what was joined makes
    none either. Raises BaselineError if a file cannot be rendered.
    """
    sources = sorted(parts, key=lambda source: (source.part, render(source.file)))
    kept = list(base)
    conflicts: list[Conflict] = []
    files = []
    for at in sorted({place(source.file) for source in (*sources, *kept)}):
        ours = [source for source in kept if place(source.file) == at]
        theirs = [source for source in sources if place(source.file) == at]
        chosen, disputed = _entries(at, theirs, ours)
        conflicts += disputed
        hardware = max((source.file.hardware for source in ours or theirs), key=canonical)
        files.append(File(hardware, at[1], tuple(chosen)))
    return Joined(tuple(files), tuple(conflicts), tuple(note for file in files for note in _notes(file)))


def date(entry: Entry) -> str:
    """When it was recorded, as ISO 8601 in UTC; empty where that is not known."""
    found = entry.recorded.get("date")
    return found if isinstance(found, str) else ""


def place(file: File) -> Place:
    """Of what a file holds measurements."""
    return str(file.hardware["key"]), file.model


def _entries(at: Place, theirs: Sequence[Source], ours: Sequence[Source]) -> tuple[list[Entry], list[Conflict]]:
    """One entry for each measurement, and what was not agreed on."""
    of_parts, of_base = _by_key(theirs), _by_key(ours)
    chosen, conflicts = [], []
    for key in sorted(of_parts.keys() | of_base.keys()):
        new, old = of_parts.get(key, []), of_base.get(key, [])
        found = [*old, *new]
        last = max(date(entry) for _, entry in found)
        stale = [(date(entry), _value(entry)) for _, entry in old]
        latest = [each for each in new if date(each[1]) == last and (last, _value(each[1])) not in stale]
        taken = max(latest or [each for each in found if date(each[1]) == last], key=_age)
        taken = next((each for each in old if _value(each[1]) == _value(taken[1])), taken)
        if len({_value(entry) for _, entry in found}) > 1:
            decided = len({_value(entry) for _, entry in latest}) < 2
            conflicts.append(Conflict(at, tuple(_distinct(found)), taken, decided))
        chosen.append(taken[1])
    return chosen, conflicts


def _by_key(sources: Sequence[Source]) -> dict[tuple[str, str, str], list[tuple[str, Entry]]]:
    found: dict[tuple[str, str, str], list[tuple[str, Entry]]] = {}
    for source in sources:
        for entry in source.file.entries:
            found.setdefault(entry.key, []).append((source.part, entry))
    return found


def _value(entry: Entry) -> tuple[object, ...]:
    return entry.value, entry.unit, entry.low, entry.high, entry.scores, entry.reference_scores


def _age(found: tuple[str, Entry]) -> tuple[str, str]:
    """By date, and then by content, so that of two of one second the same is taken whichever comes first."""
    entry = found[1]
    names = ("value", "unit", "low", "high", "scores", "reference_scores", "figures", "recorded")
    return date(entry), canonical({name: getattr(entry, name) for name in names})


def _distinct(found: Sequence[tuple[str, Entry]]) -> list[tuple[str, Entry]]:
    """The first of each value, oldest first."""
    return list({_value(each[1]): each for each in sorted(found, key=_age, reverse=True)}.values())[::-1]


def _notes(file: File) -> list[str]:
    found = [(entry.identity.get("model") or {}).get("fingerprint") for entry in file.entries]
    fingerprints = sorted({str(each) for each in found if each is not None})
    if len(fingerprints) < 2:
        return []
    shown = ", ".join(each[:12] for each in fingerprints)
    return [
        f"{file.model} on {file.hardware['key']}: {len(fingerprints)} different models of this name ({shown}); "
        "measurements of each are kept, and compared with their own only"
    ]
