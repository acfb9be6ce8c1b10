"""The baseline file: its shape, how it is read from text and how it is written to text.

A file holds the accepted measurements of one model on one hardware. The set of its keys is closed within a schema
number: an unknown key is an error, since a reader that does not know a key would drop it when it rewrites the file. A
new key therefore means a new schema number, and a migration. The mappings `hardware`, `identity`, `figures` and
`recorded` are open: new names in them need no new schema.

Everything malformed raises `BaselineError`, which names the file, the place in it, what was found, what was expected
and what to do. Numbers are finite; a field that an entry lacks is absent, never null.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pytest_quant.errors import QuantError

SCHEMA = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From schema n to a function that turns a file's object of schema n into one of schema n + 1, in memory."""

_NUMBERS_A_LINE = 5
_DEEPEST = 32
_KINDS: dict[str, type] = {"metric": str, "format": str, "unit": str, "value": float, "low": float, "high": float}
_KINDS |= {"identity": dict, "figures": dict, "recorded": dict, "scores": tuple, "reference_scores": tuple}
_EXPECTED = {str: "a string that is not empty", dict: "an object", list: "a list", float: "a finite number"}
_EXPECTED[tuple] = "a list of one or more finite numbers"
_TWICE = object()  # the value of a key that occurs twice in its object, until its place in the file is known
_CONFLICT = re.compile(r"^(<{7}|\|{7}|>{7})( |\r?$)", re.MULTILINE)


class BaselineError(QuantError):
    """A baseline cannot be read, understood or written."""


@dataclass(frozen=True)
class Entry:
    """One accepted measurement.

    `value`, `low` and `high` (its interval) are in `unit`, which is never empty. `scores` and `reference_scores` are
    the mean negative log-likelihood of each window in nats, of the format and of the reference, in protocol order.
    `identity` decides whether two measurements may be compared: nested mappings of JSON values, in which a None is the
    same as an absent key. `figures` are further numbers (`format_value`, ...); `recorded` (commit, versions, ...) is
    for people and never compared. Nothing is checked here: `render` and `parse` check.
    """

    metric: str
    format: str
    identity: Mapping[str, Any]
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    scores: tuple[float, ...] | None = None
    reference_scores: tuple[float, ...] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """(metric, format, canonical identity): no two entries of a file share it."""
        return self.metric, self.format, canonical(self.identity)


@dataclass(frozen=True)
class File:
    """One baseline file. `hardware` has at least `key` and `name`, and should hold only what seldom changes."""

    hardware: Mapping[str, Any]
    model: str
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class _Source:
    """Where data comes from, for messages; `drops_none`: None is left out (memory) rather than refused (a file)."""

    where: str
    remedy: str
    drops_none: bool = False

    def error(self, place: str, found: str, expected: str, remedy: str = "") -> BaselineError:
        return BaselineError(f"{self.where}: {place}: found {found}, expected {expected}. {remedy or self.remedy}")


def parse(text: str, where: str | Path) -> File:
    """The baseline file whose content is `text`; `where` is its path. Older schemas are migrated in memory.

    Raises BaselineError for anything malformed, and for a file of a newer schema.
    """
    file = shlex.quote(str(where))
    source = _Source(str(where), f"Restore it with `git checkout -- {file}`, or delete it and record anew.")
    data = _load(text, source)
    if not isinstance(data, dict):
        raise source.error("top level", _show(data), "an object with the keys hardware, measurements, model, schema")
    return _file(_migrate(data, source), source)


def render(file: File, where: str | Path = "baseline to be written") -> str:
    """The text of a baseline file, the same bytes for the same content: sorted keys and measurements, exact numbers.

    Raises BaselineError if a value is not finite, not JSON, or would not be read back; `where` names the file in it.
    """
    source = _Source(str(where), "Nothing was written; this value cannot be part of a baseline.", drops_none=True)
    checked = _file(_plain(_payload(file), source, ""), source)
    ordered = sorted(checked.entries, key=lambda e: (e.format, e.metric, e.key))
    return _dump(_payload(File(checked.hardware, checked.model, tuple(ordered))), "") + "\n"


def canonical(identity: Mapping[str, Any]) -> str:
    """Canonical JSON of an identity: sorted keys, None left out, tuples as lists, whole floats as integers.

    Raises BaselineError if a value in it is not JSON or not finite.
    """
    source = _Source("identity", "Use only strings, finite numbers, booleans, lists and mappings.", drops_none=True)
    return json.dumps(_whole(_plain(identity, source, "")), sort_keys=True, separators=(",", ":"))


def identity_hash(identity: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON. Raises BaselineError as `canonical`."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    return {name: _TWICE if counts[name] > 1 else value for name, value in pairs}


def _load(text: str, source: _Source) -> Any:
    expected = "a baseline in JSON"
    if not text.strip():
        raise source.error("line 1 column 1", "an empty file", expected)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise source.error(f"line {line}", "binary data (NUL bytes)", expected)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        if conflict := _CONFLICT.search(text):
            line, file = text.count("\n", 0, conflict.start()) + 1, shlex.quote(source.where)
            remedy = f"Take one side with `git checkout --ours -- {file}` (or --theirs), then record what is missing."
            raise source.error(f"line {line}", "an unresolved git merge conflict", expected, remedy) from None
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise source.error(place, "the end of a truncated file", "the rest of the JSON") from None
        raise source.error(place, f"invalid JSON ({error.msg})", expected) from None
    except RecursionError:
        raise source.error("top level", "too deep a nesting", f"at most {_DEEPEST} levels") from None
    except ValueError as error:  # an integer of thousands of digits
        raise source.error("top level", f"a number that cannot be read ({error})", "a finite number") from None


def _migrate(data: dict[str, Any], source: _Source) -> dict[str, Any]:
    version = data.get("schema")
    if type(version) is not int or version < 1:
        found = _show(version) if "schema" in data else "no such key"
        raise source.error("schema", found, f"an integer from 1 to {SCHEMA}")
    if version > SCHEMA:
        remedy = "The file was written by a newer version: upgrade pytest-quant."
        raise source.error("schema", str(version), f"at most {SCHEMA}", remedy)
    data = _plain(data, source, "")
    for older in range(version, SCHEMA):
        if older not in MIGRATIONS:
            raise source.error("schema", str(version), f"{SCHEMA}; schema {older} can no longer be read")
        try:
            data = {**MIGRATIONS[older](data), "schema": older + 1}
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            found = f"content that cannot be migrated ({type(error).__name__}: {error})"
            raise source.error(f"schema {older}", found, f"a well-formed file of schema {older}") from error
    return data


def _plain(value: Any, source: _Source, place: str, depth: int = 0) -> Any:
    """A copy of `value` in plain JSON types. Raises BaselineError for anything else, at whatever depth."""
    if depth > _DEEPEST:
        raise source.error(place[:80], "too deep a nesting", f"at most {_DEEPEST} levels")
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise source.error(place or "top level", f"the key {bad[0]!r}", "only strings as keys")
        kept = {str.__str__(k): v for k, v in value.items() if not (v is None and source.drops_none)}
        return {k: _plain(v, source, _join(place, k), depth + 1) for k, v in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, source, f"{place}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, (bool, str)):
        return value if isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int) and abs(value) < 2**64:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    expected = "a finite number" if isinstance(value, (int, float)) else "one JSON value, or the key left out"
    raise source.error(place or "top level", _show(value), expected)


def _file(data: dict[str, Any], source: _Source) -> File:
    _keys(data, {"hardware", "measurements", "model", "schema"}, set(), source, "")
    hardware = _typed(data["hardware"], dict, source, "hardware")
    _keys(hardware, {"key", "name"}, set(hardware), source, "hardware")
    for name in ("key", "name"):
        _typed(hardware[name], str, source, f"hardware.{name}")
    entries: list[Entry] = []
    seen: dict[tuple[str, str, str], int] = {}
    for i, item in enumerate(_typed(data["measurements"], list, source, "measurements")):
        entry = _entry(item, source, f"measurements[{i}]")
        if (first := seen.setdefault(entry.key, i)) != i:
            found = f"the metric, format and identity of measurements[{first}] once more"
            raise source.error(f"measurements[{i}]", found, "each measurement once")
        entries.append(entry)
    return File(hardware, _typed(data["model"], str, source, "model"), tuple(entries))


def _entry(data: Any, source: _Source, place: str) -> Entry:
    data = _typed(data, dict, source, place)
    required = {"metric", "format", "identity", "value", "unit"}
    _keys(data, required, {f.name for f in fields(Entry)} - required, source, place)
    values = {name: _typed(value, _KINDS[name], source, f"{place}.{name}") for name, value in data.items()}
    figures = values.get("figures", {}).items()
    values["figures"] = {name: _typed(number, float, source, f"{place}.figures.{name}") for name, number in figures}
    entry = Entry(**values)
    if entry.low is not None and entry.high is not None and entry.low > entry.high:
        raise source.error(f"{place}.low", repr(entry.low), f"at most {place}.high, {entry.high!r}")
    if entry.scores and entry.reference_scores and len(entry.scores) != len(entry.reference_scores):
        expected = f"{len(entry.scores)}, as in {place}.scores"
        raise source.error(f"{place}.reference_scores", f"{len(entry.reference_scores)} numbers", expected)
    return entry


def _keys(data: dict[str, Any], required: set[str], optional: set[str], source: _Source, place: str) -> None:
    for name in sorted(required - data.keys()):
        raise source.error(_join(place, name), "no such key", "it to be there")
    for name in sorted(data.keys() - required - optional):
        raise source.error(_join(place, name), "an unknown key", f"only {', '.join(sorted(required | optional))}")


def _typed(value: Any, kind: type, source: _Source, place: str) -> Any:
    """`value`, checked to be of `kind`: a float is any number, a tuple is a list of one or more numbers."""
    if kind is tuple and isinstance(value, list) and value:
        return tuple(_typed(number, float, source, f"{place}[{i}]") for i, number in enumerate(value))
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (str, dict, list) and isinstance(value, kind) and value != "":
        return value
    raise source.error(place, _show(value), _EXPECTED[kind])


def _payload(file: File) -> dict[str, Any]:
    # a field without a value, or an optional mapping without content, is left out
    entries = [{n: v for n, v in vars(e).items() if n == "identity" or v not in (None, {})} for e in file.entries]
    return {"schema": SCHEMA, "hardware": file.hardware, "model": file.model, "measurements": entries}


def _dump(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        parts = [f"{inner}{json.dumps(k)}: {_dump(value[k], inner)}" for k in sorted(value)]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and value:
        items = [_dump(item, inner) for item in value]
        if all(isinstance(item, (int, float)) for item in value):
            items = [", ".join(items[i : i + _NUMBERS_A_LINE]) for i in range(0, len(items), _NUMBERS_A_LINE)]
            if len(items) == 1:
                return f"[{items[0]}]"
        return "[\n" + ",\n".join(inner + item for item in items) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _show(value: Any) -> str:
    if value is _TWICE:
        return "this key twice"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the string {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an integer of 2**64 or more"
    if isinstance(value, (int, float)):
        return f"the number {value!r}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else f"a value of type {type(value).__qualname__}"
