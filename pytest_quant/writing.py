"""Records as JSON files, at places that users name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quant.cache import expanded
from pytest_quant.errors import UsageError


def json_file(place: str, option: str) -> Path:
    """The file that an option names; :class:`UsageError` where it is a folder or in none, so that this is known before
    anything is measured."""
    path = expanded(place)
    if path.is_dir():
        raise UsageError(f"{option}={place}: that is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option}={place}: there is no folder {path.parent}")
    return path


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """The record as one file; :class:`UsageError` where it cannot be written."""
    try:
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
