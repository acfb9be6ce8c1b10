"""JSON Lines: one document a line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_quant.corpora import rows
from pytest_quant.corpora.corpus import Conversation
from pytest_quant.errors import UsageError


def read(path: Path, column: str | None) -> tuple[str, ...] | tuple[Conversation, ...]:
    """Documents of all lines that are not blank: objects with the column, or bare texts. :class:`UsageError` names
    the line of a mistake."""
    return rows.documents(values(path, column))


def values(path: Path, column: str | None, columns: Sequence[str] = rows.COLUMNS) -> Iterator[tuple[str, Any]]:
    """What each line that is not blank holds, in the ``column`` or the first of ``columns`` that it has, with its
    place. :class:`UsageError` as :func:`read`."""
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number},"
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{place} is not UTF-8 text: {error}") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{place} is not JSON: {error}; write one document a line") from None
        if isinstance(value, dict):
            value = value[rows.column_of(value, column, place, columns)]
        elif not isinstance(value, str):
            raise UsageError(f"{place} is neither an object nor a text; write one document a line")
        yield place, value
