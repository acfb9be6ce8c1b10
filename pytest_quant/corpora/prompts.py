"""Prompts that a test gives: its own texts, or those of a file."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

from pytest_quant.corpora import jsonl
from pytest_quant.corpora.corpus import Conversation
from pytest_quant.errors import UsageError

_COLUMN = "prompt"
_LINES = (".jsonl", ".ndjson")


def read(given: str | tuple[str, ...]) -> tuple[str, ...] | tuple[Conversation, ...]:
    """Texts as they are given; or of the file at a path: each line of ``*.txt``, each document of ``*.jsonl`` (an
    object with ``prompt``, else as corpora have it: ``text``, ``messages``, a bare text; ``*.jsonl:COLUMN`` names
    another). Blank lines are none.

    :class:`UsageError` names the file and the line of a mistake, and says where there is no prompt at all.
    """
    if isinstance(given, tuple):
        found: tuple[str, ...] | tuple[Conversation, ...] = given
    else:
        found = _from_file(given)
    if not found:
        where = "prompts=()" if isinstance(given, tuple) else f"the file {Path(given).name!r}"
        raise UsageError(f"{where} holds no prompt; give at least one")
    return found


def _from_file(name: str) -> tuple[str, ...] | tuple[Conversation, ...]:
    path, column = Path(name), None
    if not path.is_file() and Path(name.rpartition(":")[0]).suffix.lower() in _LINES:
        path, column = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    if not path.is_file():
        raise UsageError(f"prompts={name!r} is the path of no file; give a *.jsonl or *.txt file, or a list of texts")
    if path.suffix.lower() in _LINES:
        return jsonl.read(path, column or _column(path))
    if path.suffix.lower() == ".txt":
        return _lines(path)
    raise UsageError(f"the prompts in {path.name!r}: write them as *.jsonl, one document a line, or *.txt, one a line")


def _column(path: Path) -> str | None:
    """``prompt``, where the file's first document has it."""
    lines = (line for line in path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip())
    try:
        first = json.loads(next(lines, b"{}"))
    except (ValueError, RecursionError):  # which reading it says with its place
        return None
    return _COLUMN if isinstance(first, dict) and _COLUMN in first else None


def _lines(path: Path) -> tuple[str, ...]:
    found = []
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path.name}, line {number}, is not UTF-8 text: {error}") from None
        if text.strip():
            found.append(text)
    return tuple(found)
