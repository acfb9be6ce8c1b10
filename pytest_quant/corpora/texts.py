"""Corpora: the texts that perplexity is measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pytest_quant.errors import UsageError


@dataclass(frozen=True)
class Corpus:
    """A text with its name and the hash that is its identity."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


def load(name: str) -> Corpus:
    """``python-docs`` or the path of a UTF-8 text file; :class:`UsageError` for anything else."""
    if name == "python-docs":
        return Corpus(name, python_docs())
    path = Path(name)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        raise UsageError(f"the corpus {name!r} is a {path.suffix} file, and this version reads plain text only")
    if path.is_file():
        try:
            return Corpus(path.name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(f"the corpus {name!r} is not UTF-8 text: {error}") from None
    raise UsageError(f"unknown corpus {name!r}: neither 'python-docs' nor the path of a text file")


def python_docs() -> str:
    """The topics that CPython ships in ``pydoc_data.topics``, in the order of their names: about 465,000
    characters in 3.11; needs no network, and changes with Python."""
    from pydoc_data import topics

    return "\n\n".join(text for _, text in sorted(topics.topics.items()))
