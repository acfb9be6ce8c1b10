"""Prompts that a test gives: its own texts, or those of a file."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_quant.corpora import jsonl, rows
from pytest_quant.corpora.corpus import Conversation
from pytest_quant.errors import UsageError

_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Given:
    """A prompt, and where it stands: ``p.jsonl, line 3``."""

    prompt: str | Conversation
    place: str


def read(given: str | tuple[str, ...]) -> tuple[Given, ...]:
    """Texts as they are given; or of the file at a path: each line of ``*.txt``, each document of ``*.jsonl`` (a bare
    text, or an object with ``prompt``, else as corpora have it: ``text``, ``messages``; ``*.jsonl:COLUMN`` names
    another). Blank lines are none.

    :class:`UsageError` names the file and the line of a mistake, and says where there is no prompt at all.
    """
    if isinstance(given, tuple):
        found = tuple(Given(text, f"prompt {number} of prompts=(...)") for number, text in enumerate(given, 1))
    else:
        found = tuple(_from_file(given))
    if not found:
        where = "prompts=()" if isinstance(given, tuple) else f"the file {Path(given).name!r}"
        raise UsageError(f"{where} holds no prompt; give at least one")
    return found


def _from_file(name: str) -> Iterator[Given]:
    path, column = Path(name), None
    if not path.is_file() and Path(name.rpartition(":")[0]).suffix.lower() in _LINES:
        path, column = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    if not path.is_file():
        raise UsageError(f"prompts={name!r} is the path of no file; give a *.jsonl or *.txt file, or a list of texts")
    if path.suffix.lower() in _LINES:
        return _documents(path, column)
    if path.suffix.lower() == ".txt":
        return _lines(path)
    raise UsageError(f"the prompts in {path.name!r}: write them as *.jsonl, one document a line, or *.txt, one a line")


def _documents(path: Path, column: str | None) -> Iterator[Given]:
    values = list(jsonl.values(path, column, ("prompt", *rows.COLUMNS)))
    prompts: Sequence[str | Conversation] = rows.documents(values)
    for (place, _), prompt in zip(values, prompts, strict=True):
        yield Given(prompt, place.rstrip(","))


def _lines(path: Path) -> Iterator[Given]:
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path.name}, line {number}, is not UTF-8 text: {error}") from None
        if text.strip():
            yield Given(text, f"{path.name}, line {number}")
