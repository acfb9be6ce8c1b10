"""JSON Lines and Parquet: one document a line, one a row."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pytest_quant.corpora import texts
from pytest_quant.corpora.corpus import Conversation
from pytest_quant.errors import UsageError

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Grüße"}]


def jsonl(folder: Path, *lines: str, name: str = "data.jsonl", end: str = "\n") -> str:
    (folder / name).write_bytes("".join(line + end for line in lines).encode("utf-8"))
    return str(folder / name)


def parquet(folder: Path, columns: dict, name: str = "data.parquet") -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / name)
    return str(folder / name)


def mistake(name: str) -> str:
    with pytest.raises(UsageError) as caught:
        texts.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# JSON Lines


@pytest.mark.parametrize("column", ["text", "page", "content"])
def test_lines_of_objects(tmp_path, column):
    found = texts.load(jsonl(tmp_path, json.dumps({"id": 1, column: "one"}), json.dumps({column: "Grüße\n"})))
    assert (found.name, found.documents, found.text) == ("data.jsonl", ("one", "Grüße\n"), "one\n\nGrüße\n")
    assert not found.conversations


def test_lines_of_texts(tmp_path):
    assert texts.load(jsonl(tmp_path, '"one"', '"two"', name="data.ndjson")).documents == ("one", "two")


def test_the_first_column_of_the_list_is_taken(tmp_path):
    line = json.dumps({"messages": HELLO, "content": "c", "page": "p", "text": "t"})
    assert texts.load(jsonl(tmp_path, line)).documents == ("t",)


def test_a_column_by_its_name(tmp_path):
    file = jsonl(tmp_path, json.dumps({"text": "t", "body": "b"}))
    assert texts.load(f"{file}:body").documents == ("b",)
    assert texts.load(f"{file}:body").name == "data.jsonl"


def test_blank_lines_and_other_line_ends(tmp_path):
    file = jsonl(tmp_path, "\ufeff" + '"one"', "", "  \t", '"two\u2028\u0085"', end="\r\n")
    assert texts.load(file).documents == ("one", "two\u2028\u0085")


def test_the_last_line_needs_no_end(tmp_path):
    assert texts.load(jsonl(tmp_path, '"one"\n"two"', end="")).documents == ("one", "two")


def test_an_empty_document_is_one(tmp_path):
    assert texts.load(jsonl(tmp_path, '"one"', '""')).documents == ("one", "")


def test_conversations(tmp_path):
    found = texts.load(jsonl(tmp_path, json.dumps({"id": 1, "messages": HELLO})))
    assert found.documents == (Conversation((("user", "Hello"), ("assistant", "Grüße"))),)
    assert found.documents[0].for_template() == HELLO
    assert found.conversations


MISTAKES = {
    "no JSON": ('{"text": ', "is not JSON: "),
    "two values": ('"a" "b"', "is not JSON: Extra data"),
    "a number": ("5", "is neither an object nor a text"),
    "a list": ('["a"]', "is neither an object nor a text"),
    "no column": ('{"b": 1, "a": 2}', "has a, b, but no text, page, content or messages; name the column after"),
    "nothing in it": ("{}", "has nothing, but no text"),
    "null": ('{"text": null}', "holds null, where a text or a list of messages belongs"),
    "a number as text": ('{"text": 5}', "holds a int, where"),
    "half a character": (r'"\ud800"', "half of a surrogate pair"),
    "half a character said": (r'{"messages": [{"role": "user", "content": "\ud800"}]}', "half of a surrogate pair"),
    "a conversation": (json.dumps({"messages": HELLO}), "mixes texts and conversations in one corpus"),
    "no messages": ('{"messages": []}', "a conversation of no messages"),
    "no message": ('{"messages": ["Hello"]}', 'has a message 1 that is not {"role"'),
    "no content": (json.dumps({"messages": [HELLO[0], {"role": "user", "content": None}]}), "has a message 2 that"),
}


@pytest.mark.parametrize("what", list(MISTAKES))
def test_a_mistake_names_file_and_line(tmp_path, what):
    line, said = MISTAKES[what]
    message = mistake(jsonl(tmp_path, '"fine"', "", line))
    assert message.startswith("data.jsonl, line 3, ")
    assert said in message


def test_a_text_among_conversations(tmp_path):
    message = mistake(jsonl(tmp_path, json.dumps({"messages": HELLO}), '"text"'))
    assert message.startswith("data.jsonl, line 2, mixes texts and conversations")


def test_a_column_that_is_not_there(tmp_path):
    message = mistake(jsonl(tmp_path, '{"text": "a"}') + ":body")
    assert message.startswith("data.jsonl, line 1, has text, but no body; name the column")


def test_bytes_that_are_no_utf8(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b'"fine"\n"\xff"\n')
    assert mistake(str(tmp_path / "data.jsonl")).startswith("data.jsonl, line 2, is not UTF-8 text: ")


def test_depths_that_no_parser_takes(tmp_path):
    assert "line 1, is not JSON" in mistake(jsonl(tmp_path, "[" * 200_000))


@pytest.mark.parametrize("lines", [(), ("", " "), ('""',), ('" "', '{"text": "\\n"}')])
def test_lines_of_nothing(tmp_path, lines):
    assert "data.jsonl' is empty" in mistake(jsonl(tmp_path, *lines))


# names


def test_a_drive_letter_is_no_column(tmp_path, monkeypatch):
    from pytest_quant.corpora.texts import _path_and_column

    assert _path_and_column(r"C:\data.parquet") == (Path(r"C:\data.parquet"), None)
    assert _path_and_column(r"C:\data.parquet:body") == (Path(r"C:\data.parquet"), "body")
    assert _path_and_column(r"C:\a.jsonl\data.txt") == (Path(r"C:\a.jsonl\data.txt"), None)
    assert _path_and_column("some.txt:body") == (Path("some.txt:body"), None)


@pytest.mark.skipif(sys.platform == "win32", reason="asked: a colon in a file's name; found: Windows; needed: another")
def test_a_file_may_have_a_colon_in_its_name(tmp_path):
    assert texts.load(jsonl(tmp_path, "not JSON at all", name="data.jsonl:body")).documents == ("not JSON at all\n",)


def test_suffixes_in_capitals(tmp_path):
    file = jsonl(tmp_path, '{"body": "one"}', name="DATA.JSONL")
    assert texts.load(file + ":body").documents == ("one",)


# Parquet


@pytest.mark.parametrize("column", ["text", "page", "content"])
def test_rows(tmp_path, column):
    found = texts.load(parquet(tmp_path, {"id": [1, 2], column: ["one", "Grüße"]}))
    assert (found.name, found.documents) == ("data.parquet", ("one", "Grüße"))


def test_rows_of_another_column(tmp_path):
    assert texts.load(parquet(tmp_path, {"text": ["t"], "body": ["b"]}) + ":body").documents == ("b",)


def test_rows_of_conversations(tmp_path):
    (found,) = texts.load(parquet(tmp_path, {"messages": [HELLO]})).documents
    assert found.for_template() == HELLO


def test_the_same_rows_are_the_same_text_in_every_format(tmp_path):
    rows = ["one", "", "Grüße\n"]
    found = [
        texts.load(parquet(tmp_path, {"text": rows})),
        texts.load(jsonl(tmp_path, *(json.dumps({"text": row}) for row in rows))),
        texts.load(jsonl(tmp_path, "\n\n".join(rows), name="data.txt", end="")),
    ]
    assert len({corpus.sha256 for corpus in found}) == 1


ROWS = {
    "null": ({"text": ["a", None]}, "data.parquet, row 2, holds null"),
    "numbers": ({"text": [1, 2]}, "data.parquet, row 1, holds a int"),
    "bytes": ({"text": [b"a"]}, "data.parquet, row 1, holds a bytes"),
    "other columns": ({"b": ["x"], "a": ["y"]}, "data.parquet has a, b, but no text, page, content or messages; name"),
    "no rows": ({"text": []}, "data.parquet' is empty"),
    "blank rows": ({"text": ["", "\n"]}, "data.parquet' is empty"),
}


@pytest.mark.parametrize("what", list(ROWS))
def test_a_mistake_names_file_and_row(tmp_path, what):
    columns, said = ROWS[what]
    assert said in mistake(parquet(tmp_path, columns))


def test_what_is_no_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "data.parquet").write_text("text")
    assert "the corpus 'data.parquet' cannot be read as Parquet: " in mistake(str(tmp_path / "data.parquet"))


def test_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "data.parquet").write_text("text")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = mistake(str(tmp_path / "data.parquet"))
    assert "the corpus 'data.parquet' needs the library pyarrow" in message
    assert message.endswith("pip install 'pytest-quant[corpora]'")
