"""Reads a support matrix from TOML and believes nothing in it: the schema is at the head of ``support.toml``.

Everything wrong in a file is a ``UsageError`` that names the file, the table, the key and what is allowed there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_quant.errors import UsageError
from pytest_quant.hardware.matrix_rows import KINDS, NUMERICS, STATUSES, BackendRow, Bound, Choice, Support, UnitsRow

SCHEMA = 1
_TOP = ("schema", "name", "fallback_note", "needed", "units", "backend")
_CHOICE = ("kind", "compute_capability", "architecture", "vendor", "name", "any_feature")
_UNITS = (*_CHOICE, "source", *NUMERICS)
_BACKEND = (*_CHOICE, "backend", "capability", "status", "source", "needed", "packages")
_CELL = ("status", "reason", "source", "needed")
_BOUND = re.compile(r"(==|>=|<=|>|<|)\s*(\d+)\.(\d+)")


@dataclass(frozen=True)
class MatrixFile:
    """One file's rows, in its order."""

    name: str
    units: tuple[UnitsRow, ...]
    backends: tuple[BackendRow, ...]
    needed: Mapping[tuple[str, str], str]
    """(kind, numeric) to what a better answer needs."""
    fallback_note: str
    """Written before the reason of an answer about units that another file had to give."""


@dataclass(frozen=True)
class _Place:
    """Where in which file: the front of every complaint."""

    file: Path
    table: str = ""
    key: str = ""

    def wrong(self, what: str) -> UsageError:
        table = f": {self.table}" if self.table else ""
        key = f', key "{self.key}"' if self.key else ""
        return UsageError(f"{self.file}{table}{key}: {what}")

    def at(self, key: str) -> _Place:
        return replace(self, key=key)


def read(path: Path) -> MatrixFile:
    """Reads and checks one file; raises ``UsageError`` for anything wrong with it."""
    place = _Place(path)
    data = _parse(place)
    for key in data:
        if key not in _TOP:
            raise place.at(key).wrong(f"is not a known key; allowed: {', '.join(_TOP)}")
    if type(data.get("schema")) is not int:
        raise place.at("schema").wrong(f"must be the integer {SCHEMA}")
    if data["schema"] > SCHEMA:
        raise place.at("schema").wrong(
            f"{data['schema']} is newer than {SCHEMA}, the newest known: upgrade pytest-quant"
        )
    if data["schema"] != SCHEMA:
        raise place.at("schema").wrong(f"{data['schema']} is not a known schema; allowed: {SCHEMA}")
    name = _text(data, "name", place, default=path.stem)
    units = tuple(_units_row(row, here, name) for row, here in _tables(data, "units", place))
    backends = tuple(_backend_row(row, here, name) for row, here in _tables(data, "backend", place))
    note = _text(data, "fallback_note", place, default="")
    return MatrixFile(name, units, backends, MappingProxyType(_needed(data, place)), note)


def _parse(place: _Place) -> dict[str, Any]:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        data: dict[str, Any] = toml.loads(place.file.read_text(encoding="utf-8"))
    except OSError as error:
        raise place.wrong(
            f'cannot be read ({error.strerror or error}); allowed: "corrected", "lesson" or the path of a TOML file'
        ) from error
    except UnicodeDecodeError as error:
        raise place.wrong(f"is not UTF-8 text, so not TOML (byte {error.start})") from error
    except (toml.TOMLDecodeError, RecursionError) as error:
        raise place.wrong(f"is not valid TOML: {error}") from error
    return data


def _tables(data: Mapping[str, Any], key: str, place: _Place) -> list[tuple[dict[str, Any], _Place]]:
    rows = data.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise place.at(key).wrong(f"must be written as [[{key}]], one table for each row")
    return [(row, _Place(place.file, f"[[{key}]] row {number}")) for number, row in enumerate(rows, 1)]


def _units_row(row: dict[str, Any], place: _Place, origin: str) -> UnitsRow:
    _known(row, _UNITS, place)
    source = _text(row, "source", place, default=place.file.name)
    cells = {numeric: _cell(row[numeric], place.at(numeric), source) for numeric in NUMERICS if numeric in row}
    if not cells:
        raise place.wrong(f"has no numeric type; at least one of: {', '.join(NUMERICS)}")
    return UnitsRow(_choice(row, place), MappingProxyType(cells), origin)


def _backend_row(row: dict[str, Any], place: _Place, origin: str) -> BackendRow:
    _known(row, _BACKEND, place)
    for key in ("backend", "capability", "status"):
        if key not in row:
            raise place.at(key).wrong("is missing")
    status, reason = _status(row["status"], place.at("status"))
    support = Support(
        status,
        reason,
        _text(row, "source", place, default=place.file.name),
        _text(row, "needed", place, default=""),
        _texts(row, "packages", place),
    )
    backend = _text(row, "backend", place, default="")
    return BackendRow(backend, _texts(row, "capability", place), _choice(row, place), support, origin)


def _cell(value: object, place: _Place, source: str) -> Support:
    if isinstance(value, str):
        status, reason = _status(value, place)
        return Support(status, reason, source)
    if not isinstance(value, dict):
        raise place.wrong(f'must be "STATUS: reason" or a table of {", ".join(_CELL)}, not {value!r}')
    inner = replace(place, table=f"{place.table}, {place.key}", key="")
    _known(value, _CELL, inner)
    if "status" not in value:
        raise inner.at("status").wrong(f"is missing; allowed: {', '.join(STATUSES)}")
    status, reason = _status(value["status"], inner.at("status"))
    return Support(
        status,
        _text(value, "reason", inner, default=reason),
        _text(value, "source", inner, default=source),
        _text(value, "needed", inner, default=""),
    )


def _status(value: object, place: _Place) -> tuple[str, str]:
    status, _, reason = value.partition(":") if isinstance(value, str) else ("", "", "")
    if status.strip() not in STATUSES:
        raise place.wrong(f'{value!r} does not begin with a status; allowed: {", ".join(STATUSES)}, then ": reason"')
    return status.strip(), reason.strip()


def _choice(row: dict[str, Any], place: _Place) -> Choice:
    kinds = frozenset(_texts(row, "kind", place))
    if not kinds:
        raise place.at("kind").wrong(f'is missing; allowed: {", ".join(KINDS)}, a list of these, or "*" for all')
    if kinds == {"*"}:
        kinds = frozenset(KINDS)
    if unknown := sorted(kinds - set(KINDS)):
        raise place.at("kind").wrong(f'{unknown[0]!r} is not a kind of device; allowed: {", ".join(KINDS)} or "*"')
    capability = _texts(row, "compute_capability", place)
    if capability and kinds != {"cuda"}:
        raise place.at("compute_capability").wrong(
            'is NVIDIA\'s: allowed only with kind = "cuda" (ROCm: select by architecture, e.g. "gfx942")'
        )
    return Choice(
        kinds,
        tuple(_bounds(text, place.at("compute_capability")) for text in capability),
        _texts(row, "architecture", place),
        _texts(row, "vendor", place),
        _texts(row, "name", place),
        frozenset(_texts(row, "any_feature", place)),
    )


def _bounds(text: str, place: _Place) -> tuple[Bound, ...]:
    found = [_BOUND.fullmatch(part.strip()) for part in text.split(",")]
    bounds = tuple(Bound(m[1] or "==", (int(m[2]), int(m[3]))) for m in found if m)
    if len(bounds) != len(found):
        raise place.wrong(f'{text!r} is not understood; allowed: "8.6", ">=7.5", ">=6.0,<7.5" or a list of these')
    return bounds


def _needed(data: Mapping[str, Any], place: _Place) -> dict[tuple[str, str], str]:
    tables = data.get("needed", {})
    if not isinstance(tables, dict):
        raise place.at("needed").wrong(f"must be tables [needed.KIND]; KIND is one of: {', '.join(KINDS)}")
    needed = {}
    for kind, table in tables.items():
        here = _Place(place.file, f"[needed.{kind}]")
        if kind not in KINDS or not isinstance(table, dict):
            raise here.wrong(f"is not known; allowed: tables [needed.KIND] with KIND one of {', '.join(KINDS)}")
        _known(table, NUMERICS, here)
        needed.update({(kind, numeric): _text(table, numeric, here, default="") for numeric in table})
    return needed


def _known(row: Mapping[str, Any], allowed: tuple[str, ...], place: _Place) -> None:
    for key in row:
        if key not in allowed:
            raise place.at(key).wrong(f"is not a known key; allowed: {', '.join(allowed)}")


def _text(row: Mapping[str, Any], key: str, place: _Place, *, default: str) -> str:
    def fits(value: object) -> bool:
        return isinstance(value, str) and bool(value.strip())

    return str(_typed(row, key, place, default, fits, "a text"))


def _texts(row: Mapping[str, Any], key: str, place: _Place) -> tuple[str, ...]:
    def fits(value: object) -> bool:
        texts = value if isinstance(value, list) else [value]
        return bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)

    value = _typed(row, key, place, (), fits, "a text or a list of texts")
    return (value,) if isinstance(value, str) else tuple(value)


def _typed(
    row: Mapping[str, Any], key: str, place: _Place, default: Any, fits: Callable[[object], bool], words: str
) -> Any:
    if key not in row:
        return default
    if not fits(row[key]):
        raise place.at(key).wrong(f"must be {words}, not empty, but is {row[key]!r}")
    return row[key]
