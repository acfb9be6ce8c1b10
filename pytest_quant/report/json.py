"""The run record: the whole run as JSON, of a documented and versioned shape (docs/run-record.md)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quant import atomic, environment, git
from pytest_quant.ledger import Ledger

SCHEMA = 1


def run_record(
    ledger: Ledger, troubles: Sequence[str] = (), *, complete: bool = True, own: Collection[Path] = ()
) -> dict[str, Any]:
    """The record of a run; ``troubles`` are what makes it red besides failed tests, ``own`` files and folders that the
    run writes, which are no changes of the working tree."""
    surroundings: dict[str, Any] = {
        "hardware": ledger.hardware,
        "packages": environment.packages(),
        "started": environment.timestamp(ledger.started),
    }
    if (sha := environment.commit()) is not None:
        surroundings["commit"] = sha
        if git.dirty(Path.cwd(), own):
            surroundings["dirty"] = True
    record = {
        "schema": SCHEMA,
        "environment": surroundings,
        "measurements": ledger.records,
        "skipped": list(ledger.skipped.values()),
        "failed": list(ledger.failed),
    }
    if unexpected := [test for test in ledger.failed if test in ledger.unexpected]:
        record["unexpected"] = unexpected
    if troubles:
        record["troubles"] = list(troubles)
    if not complete:
        record["incomplete"] = True
    return record


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record in one piece; :class:`OSError` if the system refuses, and then nothing is left behind."""
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
    atomic.replace(path, text.encode("utf-8"), prefix=path.name)
