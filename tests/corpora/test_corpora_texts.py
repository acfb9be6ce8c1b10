"""Texts: where they come from, and the hash that is their identity."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from pytest_quant.corpora import texts
from pytest_quant.corpora.texts import Conversation, Corpus
from pytest_quant.errors import UsageError


def test_a_local_file(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("Grüße, 世界\n", encoding="utf-8")
    found = texts.load(str(file))
    assert found == Corpus("some.txt", ("Grüße, 世界\n",))
    assert found.sha256 == hashlib.sha256("Grüße, 世界\n".encode()).hexdigest()


def test_the_hash_is_that_of_sha256sum():
    assert Corpus("x", ("abc",)).sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_one_byte_changes_the_hash(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_bytes(b"The quick brown fox")
    other.write_bytes(b"The quick brown fax")
    assert texts.load(str(one)).sha256 != texts.load(str(other)).sha256


def test_the_folder_is_no_part_of_the_identity(tmp_path):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "some.txt").write_text("text")
        found.append(texts.load(str(tmp_path / name / "some.txt")))
    assert found[0] == found[1]


def test_a_checkout_with_other_line_ends_is_the_same_text(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_bytes(b"a\nb\n")
    other.write_bytes(b"a\r\nb\r\n")
    assert texts.load(str(one)).sha256 == texts.load(str(other)).sha256


def test_a_relative_path_is_found(tmp_path, monkeypatch):
    (tmp_path / "some.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    assert texts.load("some.txt").text == "here"


@pytest.mark.parametrize("name", ["wikitext-103", "missing.txt", "missing.jsonl:body", "wikitext2:", "", "."])
def test_what_is_no_text_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        texts.load(name)
    assert repr(name) in str(caught.value)
    for known in ("'python-docs'", "'wikitext2'", "JSONL", "Parquet"):
        assert known in str(caught.value)


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_a_file_of_nothing_is_refused(content, tmp_path):
    (tmp_path / "none.txt").write_text(content)
    with pytest.raises(UsageError, match=r"none\.txt' is empty"):
        texts.load(str(tmp_path / "none.txt"))


def test_json_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "data.json").write_text('["text"]')
    with pytest.raises(UsageError, match=r"is a JSON file; write it as JSONL, one document a line"):
        texts.load(str(tmp_path / "data.json"))


def test_another_suffix_is_plain_text(tmp_path):
    (tmp_path / "README.md").write_text("# Text")
    assert texts.load(str(tmp_path / "README.md")).documents == ("# Text",)


def test_documents_are_joined():
    assert Corpus("x", ("a", "b")).text == "a\n\nb"
    assert Corpus("x", ("a", "b"), separator=" ").text == "a b"


def test_conversations_are_hashed_with_roles_and_contents():
    chats = [Conversation(((role, said),)) for role, said in (("user", "é"), ("user", "e"), ("system", "é"))]
    assert Corpus("x", (chats[0],)).text == '[{"role": "user", "content": "é"}]'
    assert len({Corpus("x", (chat,)).sha256 for chat in chats}) == 3


def test_bytes_that_are_no_utf8_are_refused(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt.*is not UTF-8 text"):
        texts.load(str(file))


def test_python_docs_are_the_topics_in_order():
    from pydoc_data import topics

    found = texts.load("python-docs")
    assert found.name == "python-docs"
    parts = [topics.topics[name] for name in sorted(topics.topics)]
    assert found.documents == tuple(parts)
    assert found.text.startswith(parts[0] + "\n\n" + parts[1])
    assert found.text.endswith("\n\n" + parts[-1])
    assert len(found.text) == sum(map(len, parts)) + 2 * (len(parts) - 1)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="asked: the size in 3.11; found: another; needed: 3.11")
def test_python_docs_size():
    assert 455_000 < len(texts.load("python-docs").text) < 475_000


def test_python_docs_are_long_enough_to_gate_on():
    assert len(texts.load("python-docs").text) > 300_000


def test_corpora_import_neither_torch_nor_pytest():
    code = (
        "import sys, pytest_quant.corpora.protocols; from pytest_quant.corpora import texts; texts.load('python-docs');"
        "print(sorted({'torch', 'pytest', '_pytest', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_docstrings_are_what_the_standard_library_says_of_itself():
    import json

    corpus = texts.load("python-docstrings")
    assert len(corpus.documents) > 300
    assert any(json.dumps.__doc__.strip().splitlines()[0] in document for document in corpus.documents)
    assert not any("test_" in document[:40] for document in corpus.documents[:50])
    assert corpus.sha256 != texts.load("python-docs").sha256


def test_python_docstrings_without_sources_say_so(monkeypatch, tmp_path):
    from pytest_quant.corpora import python_docstrings

    monkeypatch.setattr(python_docstrings.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UsageError, match="holds no Python sources"):
        texts.load("python-docstrings")
