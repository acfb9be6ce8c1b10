"""Run records in a folder: one file a run, whose name sorts by time and names the commit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quant import atomic
from pytest_quant.comparing import run_record
from pytest_quant.comparing.sides import Side
from pytest_quant.errors import QuantError

_NEVER_READ = frozenset({"bounds", "detail", "explanation", "note", "engines", "statistics", "limited", "confidence"})
"""Of a measurement, what neither a history nor a comparison asks for: half of a record, and most of it long."""


@dataclass(frozen=True)
class Run:
    """One run that was read: its record, and what it measured, checked."""

    path: Path
    record: Mapping[str, Any]
    side: Side

    @property
    def commit(self) -> str | None:
        found = self.record["environment"].get("commit")
        return found if isinstance(found, str) and found else None

    @property
    def started(self) -> str:
        return str(self.record["environment"].get("started", ""))

    @property
    def dirty(self) -> bool:
        return self.record["environment"].get("dirty") is True

    @property
    def incomplete(self) -> bool:
        return self.record.get("incomplete") is True


def keep(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """Put a run's record into the folder and return its path; None where nothing was asked of any model: the runs of
    other tests are no history. Failed runs are kept, since the commit that broke something is to be found, and what an
    interrupted run had measured. The file's name ends in a digest of its content, so that no run overwrites another.

    Raises :class:`OSError` where the system refuses; no file is torn then.
    """
    if not record["measurements"]:
        return None
    text = _text(record)
    environment = record["environment"]
    name = "-".join(
        [
            re.sub(r"[^0-9A-Za-z-]", "-", str(environment["started"])),
            re.sub(r"[^0-9a-z]", "", str(environment.get("commit", "")))[:7] or "none",
            hashlib.sha256(text).hexdigest()[:8],
        ]
    )
    path = folder / f"{name}.json"
    atomic.replace(path, text, prefix=path.name)
    return path


def runs(folder: Path) -> tuple[list[Run], list[str]]:
    """The runs whose records lie in the folder or below it, by their names, and a sentence for each file that is no
    run record, or a damaged one. Of files of one content, such as copies of an artifact, one counts.

    Raises :class:`QuantError` where the folder is not there or cannot be read.
    """
    if not folder.is_dir():
        raise QuantError(f"{folder}: there is no such folder. Keep runs in it with `pytest --quant-history={folder}`.")
    try:
        named = sorted(path for path in folder.rglob("*.json") if not _hidden(path.relative_to(folder)))
        paths = [path for path in named if not path.is_dir()]
    except OSError as error:
        raise QuantError(f"{folder}: cannot be read: {atomic.cause(error)}. Make it readable.") from error
    found: dict[str, Run] = {}
    damaged = []
    for path in paths:
        try:
            if not path.is_file():  # a pipe is never read: it may have no end
                raise QuantError(f"{path}: is no regular file. Delete it, or put it elsewhere.")
            data = run_record.load(path)
            if data is None:
                raise QuantError(f"{path}: is no run record, or a damaged one. Delete it, or put it elsewhere.")
            run = Run(path, data, run_record.side(data, path))
        except QuantError as error:
            damaged.append(str(error))
            continue
        found.setdefault(hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest(), run)
    return list(found.values()), damaged


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _text(record: Mapping[str, Any]) -> bytes:
    """The record without what is never read, a measurement a line."""
    measurements = ",\n".join(
        _line({name: value for name, value in each.items() if name not in _NEVER_READ})
        for each in record["measurements"]
    )
    parts = [f'"measurements": [\n{measurements}\n]']
    parts += [f"{_line(name)}: {_line(value)}" for name, value in sorted(record.items()) if name != "measurements"]
    return ("{" + ",\n".join(parts) + "}\n").encode()


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
