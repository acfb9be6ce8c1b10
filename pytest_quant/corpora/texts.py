"""Corpora by name: the texts that perplexity is measured on."""

from __future__ import annotations

import re
from pathlib import Path

from pytest_quant.corpora import jsonl, parquet, python_docstrings, wikitext
from pytest_quant.corpora.corpus import Conversation, Corpus
from pytest_quant.errors import UsageError

__all__ = ["Conversation", "Corpus", "load", "python_docs"]

_READERS = {".jsonl": jsonl.read, ".ndjson": jsonl.read, ".parquet": parquet.read}
_WITH_COLUMN = re.compile(r"(.+\.(?:jsonl|ndjson|parquet)):([^:/\\]+)", re.IGNORECASE)


def load(name: str, *, documents: bool = False) -> Corpus:
    """``python-docs``, ``python-docstrings``, ``wikitext2``, ``wikitext2:COPY``, or the path of a UTF-8 text, JSON
    Lines or Parquet file, these two with ``:COLUMN`` if need be.

    ``documents`` asks for WikiText by its articles, as protocols want it that go by documents; other corpora are the
    same either way. :class:`UsageError` for anything else, and for a corpus of nothing.
    """
    if name == "python-docs":
        return Corpus(name, python_docs())
    if name == python_docstrings.NAME:
        return Corpus(name, python_docstrings.documents())
    kind, colon, copy = name.partition(":")
    if kind == wikitext.NAME and not (colon and not copy):
        return (wikitext.by_pages if documents else wikitext.by_rows)(copy or None)
    return _from_file(name)


def check(name: str) -> None:
    """:class:`UsageError` where there is no such corpus, as far as can be seen without reading it."""
    kind, colon, copy = name.partition(":")
    if name in ("python-docs", python_docstrings.NAME):
        return
    if kind == wikitext.NAME and not (colon and not copy):
        if copy:
            wikitext.check(Path(copy))
    else:
        _file_of(name)


def python_docs() -> tuple[str, ...]:
    """The topics that CPython ships in ``pydoc_data.topics``, in the order of their names: about 465,000
    characters in 3.11; needs no network, and changes with Python."""
    from pydoc_data import topics

    return tuple(text for _, text in sorted(topics.topics.items()))


def _file_of(name: str) -> tuple[Path, str | None]:
    path, column = _path_and_column(name)
    if not path.is_file():
        raise UsageError(
            f"unknown corpus {name!r}: neither 'python-docs' nor 'python-docstrings' nor 'wikitext2' nor the path of a "
            f"text, JSONL or Parquet file"
        )
    return path, column


def _from_file(name: str) -> Corpus:
    path, column = _file_of(name)
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise UsageError(f"the corpus {name!r} is a JSON file; write it as JSONL, one document a line, named *.jsonl")
    documents = _READERS[suffix](path, column) if suffix in _READERS else (_plain(path),)
    if not any(each if isinstance(each, Conversation) else each.strip() for each in documents):
        raise UsageError(f"the corpus {name!r} is empty; give one with text in it")
    return Corpus(path.name, documents)


def _path_and_column(name: str) -> tuple[Path, str | None]:
    """A file may itself have a colon in its name."""
    match = _WITH_COLUMN.fullmatch(name)
    if match is None or Path(name).is_file():
        return Path(name), None
    return Path(match[1]), match[2]


def _plain(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the corpus {path.name!r} is not UTF-8 text: {error}") from None
