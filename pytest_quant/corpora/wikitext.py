"""WikiText-2, test split: from the hub through ``datasets``, or from a local copy.

As the dataset ``Salesforce/wikitext`` has it, a row is a line with its line end, and a blank line is an empty row.
``EleutherAI/wikitext_document_level``, which lm-eval scores, has the same lines by article.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytest_quant.corpora import parquet
from pytest_quant.corpora.corpus import Corpus
from pytest_quant.corpora.libraries import require
from pytest_quant.errors import UsageError

NAME = "wikitext2"
_CONFIG = "wikitext-2-raw-v1"
_ROWS, _PAGES = ("Salesforce/wikitext", "text"), ("EleutherAI/wikitext_document_level", "page")
_HEADING = re.compile(r"= (?!=).*(?<!=) =", re.DOTALL)


def by_rows(local: str | None = None) -> Corpus:
    """The rows, which the GPTQ protocol joins by two newlines; ``local`` is a Parquet file, a folder of
    ``save_to_disk`` or the text file ``wiki.test.raw``."""
    if local is None:
        return Corpus(NAME, _texts(_from_hub(*_ROWS), "the hub's dataset"))
    column, values = _from_copy(Path(local))
    if column == "page":
        raise UsageError(
            f"the copy {local!r} of wikitext2 has whole pages, and this protocol needs the rows of {_ROWS[0]} "
            f"(column text); pages serve the protocol lm-eval-word only"
        )
    return Corpus(NAME, _texts(values, local))


def by_pages(local: str | None = None) -> Corpus:
    """The articles of the same split with what lm-eval scores of each: the text that its detokenizer makes of it.

    A local copy may have pages or rows; rows are cut before the headings of articles, as the dataset of pages was.
    """
    if local is None:
        pages = _texts(_from_hub(*_PAGES), "the hub's dataset")
    else:
        column, values = _from_copy(Path(local))
        pages = _texts(values, local) if column == "page" else split_pages("".join(_lines(_texts(values, local))))
    return Corpus(NAME, pages, detokenized=_detokenized(pages))


def split_pages(text: str) -> tuple[str, ...]:
    """The raw text cut before each line ``= Title =``; what is blank before the first is left out.

    The rule of lm-eval's former ``lm_eval/datasets/wikitext``, from which the dataset of pages was made.
    """
    pages: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _HEADING.fullmatch(line.strip()):
            pages.append([])
        pages[-1].append(line)
    joined = ("\n".join(lines) for lines in pages)
    return tuple(page for page in joined if page.strip())


def split_rows(text: str) -> tuple[str, ...]:
    """The raw text as the rows of the hub's dataset."""
    lines = text.split("\n")
    kept = [f"{line}\n" for line in lines[:-1]] + lines[-1:] * bool(lines[-1])
    return tuple(line if line.strip() else "" for line in kept)


def _lines(rows: tuple[str, ...]) -> tuple[str, ...]:
    """Rows as the raw file's lines, where a blank one is a space."""
    return tuple(row.removesuffix("\n") + "\n" if row else " \n" for row in rows)


def _from_hub(dataset: str, column: str) -> list[Any]:
    datasets = require("datasets", "the corpus 'wikitext2'")
    try:
        return list(datasets.load_dataset(dataset, _CONFIG, split="test")[column])
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise UsageError(
            f"the corpus 'wikitext2' cannot be had from the hub: {reason}; where there is a network, save it with "
            f"datasets.load_dataset({dataset!r}, {_CONFIG!r}, split='test').to_parquet('wikitext2.parquet'), copy "
            f"that file here, and name the corpus wikitext2:PATH/wikitext2.parquet"
        ) from error


def check(path: Path) -> None:
    """:class:`UsageError` where there is no such copy."""
    if not path.exists():
        raise UsageError(
            f"the copy {str(path)!r} of wikitext2 is not there; give wikitext2:PATH with a Parquet file of the test "
            f"split, a folder of save_to_disk, or the text file wiki.test.raw"
        )


def _from_copy(path: Path) -> tuple[str, list[Any]]:
    """Which column a copy has, ``text`` or ``page``, and its values."""
    check(path)
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() == ".parquet":
        return parquet.read_column(path, None)
    try:
        return "text", list(split_rows(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise UsageError(f"the copy {str(path)!r} of wikitext2 is not UTF-8 text: {error}") from None


def _from_folder(path: Path) -> tuple[str, list[Any]]:
    datasets = require("datasets", f"the copy {str(path)!r} of wikitext2")
    try:
        saved = datasets.load_from_disk(str(path))
        split = saved["test"] if isinstance(saved, datasets.DatasetDict) else saved
        column = next(name for name in ("text", "page") if name in split.column_names)
        return column, list(split[column])
    except Exception as error:
        reason = (str(error) or "no column text or page").strip().splitlines()[0][:200]
        raise UsageError(
            f"the copy {str(path)!r} of wikitext2 is no folder of save_to_disk with a split 'test': {reason}"
        ) from error


def _texts(values: list[Any], place: str) -> tuple[str, ...]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise UsageError(f"{place}, row {number}, holds a {type(value).__name__}, not a text")
    if not any(value.strip() for value in values):
        raise UsageError(f"the corpus 'wikitext2' from {place} is empty")
    return tuple(values)


def _detokenized(pages: tuple[str, ...]) -> tuple[str, ...]:
    what = "wikitext2 under the protocol lm-eval-word"
    task = require("lm_eval.tasks.wikitext.preprocess_wikitext", what, "lm-eval")
    return tuple(task.wikitext_detokenizer({"page": page}) for page in pages)
