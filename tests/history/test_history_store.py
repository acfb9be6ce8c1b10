"""Runs in a folder: each kept, none overwritten, and nothing believed that is damaged."""

from __future__ import annotations

import errno
import json
import os

import pytest
from comparing_examples import B, measured, tree
from history_examples import SHA, history, loaded, record, speed

from pytest_quant.errors import QuantError
from pytest_quant.history import keep, read
from pytest_quant.history.store import runs


def test_a_name_sorts_by_time_and_names_the_commit(tmp_path):
    kept = keep(tmp_path, record(3, measured()))
    assert kept is not None
    assert kept.name.startswith(f"2026-01-04T08-00-00Z-{SHA[3][:7]}-")
    assert keep(tmp_path, record(2, measured())).name < kept.name


def test_a_run_in_no_repository_has_a_name_too(tmp_path):
    data = record(0, measured())
    del data["environment"]["commit"]
    assert "-none-" in keep(tmp_path, data).name
    (run,) = runs(tmp_path)[0]
    assert run.commit is None


def test_a_commit_from_the_environment_cannot_lead_out_of_the_folder(tmp_path):
    data = record(0, measured())
    data["environment"]["commit"] = "../../evil"
    kept = keep(tmp_path / "history", data)
    assert kept.parent == tmp_path / "history"
    assert list(tree(tmp_path)) == [f"history/{kept.name}"]


def test_two_runs_of_one_second_are_both_kept(tmp_path):
    """Shards of one commit, on two devices, that began in the same second."""
    keep(tmp_path, record(0, measured()))
    keep(tmp_path, record(0, measured(), on=B))
    keep(tmp_path, record(0, measured(by=0.5)))
    assert len(list(tmp_path.iterdir())) == 3


def test_the_same_run_is_the_same_file(tmp_path):
    first = keep(tmp_path, record(0, measured()))
    before = tree(tmp_path)
    assert keep(tmp_path, record(0, measured())) == first
    assert tree(tmp_path) == before


def test_a_run_of_other_tests_leaves_nothing(tmp_path):
    assert keep(tmp_path / "history", record(0)) is None
    assert not (tmp_path / "history").exists()


def test_what_no_history_reads_is_left_out_and_the_rest_compares(tmp_path):
    full = measured(detail={"layers": list(range(5000))}, explanation={"windows": ["text"]}, note="long")
    kept = keep(tmp_path, record(0, full))
    (found,) = loaded(kept)["measurements"]
    assert found == measured()
    assert kept.read_text().count("\n") < 12


def test_a_folder_that_cannot_be_made_is_the_systems_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        keep(tmp_path / "file", record(0, measured()))


def test_a_full_disk_leaves_no_torn_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keep(tmp_path, record(0, measured()))
    assert tree(tmp_path) == {}


def test_the_files_of_one_content_count_once(tmp_path):
    kept = keep(tmp_path / "a", record(0, measured()))
    keep(tmp_path / "b", record(0, measured()))
    (tmp_path / "run.json").write_text(json.dumps(loaded(kept), indent=4))
    assert len(runs(tmp_path)[0]) == 1


@pytest.mark.parametrize(
    "content, word",
    [
        ("", "is no run record"),
        ("{", "is no run record"),
        ('{"schema": 1, "measurements": []}', "is no run record"),
        ('{"schema": 2, "environment": {}, "measurements": [], "skipped": []}', "newer pytest-quant"),
        ('{"schema": 1, "environment": {"hardware": {}}, "measurements": [{}], "skipped": []}', "measurements[0]"),
        (
            '{"schema": 1, "environment": {"hardware": {}, "commit": 7}, "measurements": [], "skipped": []}',
            "environment.commit",
        ),
    ],
)
def test_a_damaged_file_is_named_and_the_others_count(tmp_path, content, word):
    keep(tmp_path, record(0, measured()))
    keep(tmp_path, record(1, measured()))
    (tmp_path / "bad.json").write_text(content)
    found = read(tmp_path)
    assert len(found.series) == 1
    assert found.runs == 2
    (sentence,) = found.damaged
    assert str(tmp_path / "bad.json") in sentence
    assert word in sentence


@pytest.mark.parametrize(
    "damage",
    [
        {"verdict": "fine", "baseline": "x", "limit": []},
        {"limit": {"max": "x", "other": 3}, "baseline": {"verdict": ["passed"]}},
        {"parameters": {"of": {}}},
        {"low": -1e308, "high": 1e308},
    ],
)
def test_fields_of_any_kind_are_no_crash(tmp_path, damage):
    found = history(tmp_path, [measured(**damage), speed(1.5, **damage)], [measured(**damage)])
    assert found.series or found.damaged


def test_a_folder_that_is_not_there_says_how_to_fill_it(tmp_path):
    with pytest.raises(QuantError, match="--quant-history"):
        read(tmp_path / "nothing")


def test_a_pipe_is_named_and_never_read(tmp_path, capsys):
    keep(tmp_path, record(0, measured()))
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    keep(tmp_path / "folder.json", record(1, measured()))
    found = read(tmp_path)
    assert found.runs == 2
    assert [sentence.rpartition("/")[2] for sentence in found.damaged] == [
        "pipe.json: is no regular file. Delete it, or put it elsewhere."
    ]
