"""WikiText-2 from copies of it that have its form, and from a hub that is not there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.corpora import texts, wikitext
from pytest_quant.errors import UsageError

LINES = [
    " ",
    " = Robert Boulter = ",
    " ",
    " Robert Boulter is an English film , television and theatre actor . ",
    " = = Career = = ",
    " ",
    " = = = 2000 – 2005 = = = ",
    " In 2000 Boulter had a guest @-@ starring role . ",
    " = Du Fu = ",
    " ",
    " Du Fu was a prominent Chinese poet . ",
    " ",
]
RAW = "\n".join(LINES) + "\n"
ROWS = [line + "\n" if line.strip() else "" for line in LINES]
PAGES = ("\n".join(LINES[1:8]), "\n".join(LINES[8:]) + "\n")


@pytest.fixture
def detokenizer(monkeypatch):
    """Stands in for lm-eval's."""
    fake = types.ModuleType("preprocess_wikitext")
    fake.wikitext_detokenizer = lambda doc: doc["page"].replace(" @-@ ", "-")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.wikitext.preprocess_wikitext", fake)


def parquet(folder: Path, column: str, values) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({column: list(values)}), folder / f"{column}.parquet")
    return folder / f"{column}.parquet"


def saved(folder: Path, column: str, values, *, split: str | None) -> Path:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({column: list(values)})
    (datasets.DatasetDict({split: rows}) if split else rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def raw(folder: Path) -> Path:
    (folder / "wiki.test.raw").write_text(RAW, encoding="utf-8", newline="\n")
    return folder / "wiki.test.raw"


COPIES = {
    "raw": raw,
    "parquet": lambda folder: parquet(folder, "text", ROWS),
    "folder of splits": lambda folder: saved(folder, "text", ROWS, split="test"),
    "folder of one": lambda folder: saved(folder, "text", ROWS, split=None),
}
COPIES_OF_PAGES = {
    **COPIES,
    "parquet of pages": lambda folder: parquet(folder, "page", PAGES),
    "folder of pages": lambda folder: saved(folder, "page", PAGES, split="test"),
}


@pytest.mark.parametrize("copy", list(COPIES))
def test_rows_of_a_copy(tmp_path, copy):
    found = texts.load(f"wikitext2:{COPIES[copy](tmp_path)}")
    assert found.name == "wikitext2"
    assert found.documents == tuple(ROWS)
    assert found.text == "\n\n".join(ROWS)
    assert found.detokenized is None


@pytest.mark.parametrize("copy", list(COPIES_OF_PAGES))
def test_pages_of_a_copy(tmp_path, copy, detokenizer):
    found = texts.load(f"wikitext2:{COPIES_OF_PAGES[copy](tmp_path)}", documents=True)
    assert (found.name, found.documents) == ("wikitext2", PAGES)
    assert found.detokenized == tuple(page.replace(" @-@ ", "-") for page in PAGES)


def by_lm_eval(text: str) -> list[str]:
    """As the script of lm-eval's former dataset decides: shorten the marks of lower headings, then look."""
    pages, lines = [], []
    for line in text.split("\n"):
        shortened = line.replace("= = =", "===").replace("= =", "==").strip()
        if shortened[:2] == "= " and shortened[-2:] == " =":
            pages.append("\n".join(lines))
            lines = []
        lines.append(line)
    return [page for page in [*pages, "\n".join(lines)] if page.strip()]


@pytest.mark.parametrize(
    "line, heads",
    [
        (" = Title = ", True),
        ("= a = b =", True),
        (" = = Part = = ", False),
        (" = = Part = ", False),
        (" = Part = = ", False),
        ("= =", False),
        (" =Title= ", False),
        (" a = b ", False),
    ],
)
def test_which_line_heads_an_article(line, heads):
    assert len(wikitext.split_pages(f"before\n{line}\nafter")) == len(by_lm_eval(f"before\n{line}\nafter")) == 1 + heads


@given(
    st.lists(
        st.lists(st.sampled_from(["=", "= =", "a", "==", "b = c"]), min_size=0, max_size=6).map(
            lambda words: " " + " ".join(words) + " "
        ),
        max_size=8,
    )
)
def test_headings_are_lm_evals(lines):
    text = "\n".join(lines)
    if any(line.count("=") > 7 or re.search(r"(= ){4}=? *$", line) for line in lines):
        return  # more marks than WikiText has levels
    assert list(wikitext.split_pages(text)) == by_lm_eval(text)


@given(st.text(alphabet="ab =\n"))
def test_pages_are_the_whole_text(text):
    joined = "\n".join(wikitext.split_pages(text))
    assert joined.strip() == text.strip()
    assert text.endswith(joined)


@given(st.text(alphabet="ab =\n"))
def test_rows_are_the_whole_text(text):
    lines = "".join(row or "\n" for row in wikitext.split_rows(text))
    assert lines.split() == text.split()
    assert len(wikitext.split_rows(text)) == text.count("\n") + (not text.endswith("\n") and text != "")


def test_a_copy_of_pages_has_no_rows(tmp_path):
    with pytest.raises(UsageError, match="has whole pages, and this protocol needs the rows of Salesforce/wikitext"):
        texts.load(f"wikitext2:{parquet(tmp_path, 'page', PAGES)}")


def test_the_detokenizer_is_lm_evals(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks", raising=False)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.wikitext", raising=False)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.wikitext.preprocess_wikitext", raising=False)
    with pytest.raises(UsageError, match=r"lm-eval-word needs the library lm_eval .*pip install lm-eval$"):
        texts.load(f"wikitext2:{raw(tmp_path)}", documents=True)


# copies that are none


@pytest.mark.parametrize("name", ["missing", "missing.parquet"])
def test_a_copy_that_is_not_there(tmp_path, name):
    with pytest.raises(UsageError, match=rf"{name}' of wikitext2 is not there; give wikitext2:PATH with a Parquet"):
        texts.load(f"wikitext2:{tmp_path / name}")


def test_a_folder_of_something_else(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(UsageError, match="is no folder of save_to_disk with a split 'test'"):
        texts.load(f"wikitext2:{tmp_path}")


@pytest.mark.parametrize("column, split", [("text", "train"), ("body", "test")])
def test_a_folder_without_the_split_or_the_column(tmp_path, column, split):
    with pytest.raises(UsageError, match="is no folder of save_to_disk with a split 'test'"):
        texts.load(f"wikitext2:{saved(tmp_path, column, ROWS, split=split)}")


def test_a_copy_of_nothing(tmp_path):
    (tmp_path / "empty.raw").write_text(" \n \n")
    with pytest.raises(UsageError, match=r"'wikitext2' from .*empty\.raw is empty"):
        texts.load(f"wikitext2:{tmp_path / 'empty.raw'}")


def test_a_copy_of_numbers(tmp_path):
    with pytest.raises(UsageError, match=r"text\.parquet, row 1, holds a int, not a text"):
        texts.load(f"wikitext2:{parquet(tmp_path, 'text', [1])}")


def test_a_copy_that_is_no_utf8(tmp_path):
    (tmp_path / "wiki.test.raw").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"wiki\.test\.raw' of wikitext2 is not UTF-8 text"):
        texts.load(f"wikitext2:{tmp_path / 'wiki.test.raw'}")


def test_without_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("wikitext2", f"wikitext2:{tmp_path}"):
        with pytest.raises(UsageError, match=r"needs the library datasets .*pip install 'pytest-quant\[corpora\]'$"):
            texts.load(name)


# the hub


@pytest.fixture
def hub(monkeypatch):
    """Answers as the hub's datasets do, and says what it was asked."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        column, values = {"Salesforce/wikitext": ("text", ROWS)}.get(name, ("page", list(PAGES)))
        return datasets.Dataset.from_dict({column: values})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_rows_of_the_hub(hub):
    assert texts.load("wikitext2").documents == tuple(ROWS)
    assert hub == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


def test_pages_of_the_hub(hub, detokenizer):
    assert texts.load("wikitext2", documents=True).documents == PAGES
    assert hub == [("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test")]


def test_a_copy_is_the_same_corpus_as_the_hubs(hub, tmp_path):
    assert texts.load("wikitext2") == texts.load(f"wikitext2:{raw(tmp_path)}")


def test_a_hub_that_cannot_be_reached_says_how_to_get_a_copy(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*arguments, **more):
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError) as caught:
        texts.load("wikitext2")
    message = str(caught.value)
    assert "cannot be had from the hub: Couldn't reach the Hub; " in message
    assert "load_dataset('Salesforce/wikitext', 'wikitext-2-raw-v1', split='test').to_parquet(" in message
    assert message.endswith("name the corpus wikitext2:PATH/wikitext2.parquet")
