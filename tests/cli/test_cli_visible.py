"""Names from files on a terminal: they neither drive it, nor look like lines of ours."""

from __future__ import annotations

import json

import pytest

from pytest_quant import cli, visible
from pytest_quant.baseline import Entry, File, path_for, write

HOSTILE = "m\x1b[31m\nall sound \u202e"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with a sound baseline whose model and format are named by somebody who means no good."""
    monkeypatch.chdir(tmp_path)
    identity = {"engine": "transformers", "metric": {"name": "memory_budget"}}
    file = File({"key": "cpu", "name": HOSTILE}, HOSTILE, (Entry("memory_budget", HOSTILE, identity, 1.0, "bytes"),))
    write(path_for(tmp_path / "base", "cpu", HOSTILE), file)
    (tmp_path / "damaged\x1b\nok.json").write_text("{")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["baseline", "show", "base"],
        ["baseline", "check", "base"],
        ["baseline", "check", "damaged\x1b\nok.json"],
        ["baseline", "show", "damaged\x1b\nok.json"],
        ["baseline", "prune", "base", "--hardware", "cpu"],
        ["baseline", "merge", "base", "--into", "other"],
        ["compare", "base", "base"],
        ["compare", "base", "damaged\x1b\nok.json"],
    ],
    ids=lambda words: " ".join(words[:3]).encode("unicode_escape").decode(),
)
def test_what_a_file_says_stays_in_its_line(root, words, capsys):
    cli.main(words)
    out, err = capsys.readouterr()
    assert out + err
    for line in (out + err).split("\n"):
        assert not line.startswith(("all sound", "ok.json"))
        assert visible.visible(line) == line


def test_programs_get_names_as_they_are(root, capsys):
    assert cli.main(["baseline", "show", "base", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["measurements"]
    assert (found["model"], found["format"]) == (HOSTILE, HOSTILE)


def test_a_line_of_words_is_left_alone():
    assert visible.one_line("a caf\u00e9, \u2713 [1.2, 3]") == "a caf\u00e9, \u2713 [1.2, 3]"
    assert visible.lines(["a\nb", "c\u2028d\r"]) == "a\\nb\nc\\u2028d\\r"
