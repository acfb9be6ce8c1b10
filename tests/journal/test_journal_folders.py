"""Folders of runs: whose run is alive, what goes and what stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from journal_examples import KEY, measured

from pytest_quant import environment
from pytest_quant.journal import folders, journal
from pytest_quant.journal.encoding import Kept
from pytest_quant.journal.journal import Journal, Resumption

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="asked: locks; found: Windows; needed: flock")
OTHER = KEY[::-1]


def name(second: int) -> str:
    return f"20260101T0000{second:02}-{second:08x}"


def left(home: Path, second: int, *keys: str, arguments=("tests",)) -> Path:
    """A run that was killed once it had measured something."""
    journal = Journal(home / name(second), arguments)
    for key in keys:
        journal.keep(key, Kept(measured(remark=f"of run {second}")))
    journal.close()
    return journal.folder


def found(journal: Journal, key: str) -> str | None:
    kept = journal.find(key, lambda measurement: True)
    return None if kept is None else kept.measurement.remark


def test_what_a_run_keeps_another_process_of_it_finds(tmp_path):
    one, other = Journal(tmp_path / name(1), []), Journal(tmp_path / name(1), [])
    one.keep(KEY, Kept(measured()))
    assert found(other, KEY) == measured().remark
    assert one.find(KEY, lambda measurement: True) is None, "what it measured itself it knows better"
    assert other.news() == {"answered": [KEY], "reused": [], "said": []}
    assert other.news() == {"answered": [], "reused": [], "said": []}


def test_what_was_measured_under_conditions_is_measured_again(tmp_path):
    journal = Journal(tmp_path / name(1), [])
    journal.keep(KEY, Kept(measured(conditions=(("cpu-load", "other programs used 40% of the CPU"),))))
    journal.keep(OTHER, Kept(measured()))
    assert folders.keys(journal.folder) == {OTHER}
    assert journal.measured(KEY)
    assert journal.news()["answered"] == sorted([KEY, OTHER]), "of an earlier run it is of no more use"
    journal.close()


def test_what_is_not_enough_any_more_is_not_taken(tmp_path):
    left(tmp_path, 1, KEY)
    journal = Journal(tmp_path / name(2), [], [tmp_path / name(1)])
    assert journal.find(KEY, lambda measurement: measurement.complete) is None
    assert journal.news()["reused"] == []


def test_of_several_runs_the_newest_answers(tmp_path):
    left(tmp_path, 1, KEY, OTHER)
    left(tmp_path, 2, KEY)
    resumption = Resumption(tmp_path, name(3), [], wanted=True)
    journal = Journal(tmp_path / name(3), [], resumption.resumed)
    assert (found(journal, KEY), found(journal, OTHER)) == ("of run 2", "of run 1")
    assert journal.news()["reused"] == sorted([KEY, OTHER])
    (line,) = resumption.lines()
    assert "going on with 2 finished measurements of 2 interrupted runs" in line
    resumption.close()


def test_a_damaged_file_is_said_and_an_older_sound_one_taken(tmp_path):
    left(tmp_path, 1, KEY)
    newest = left(tmp_path, 2, KEY)
    folders.file(newest, KEY).write_bytes(b"{")
    journal = Journal(tmp_path / name(3), [], [newest, tmp_path / name(1)])
    assert found(journal, KEY) == "of run 1"
    (said,) = journal.news()["said"]
    assert str(folders.file(newest, KEY)) in said
    assert "measured anew: it is no JSON" in said


def test_a_run_that_is_alive_is_never_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0.0)
    held = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD}\nhold({str(tmp_path / name(1))!r})"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        left(tmp_path, 2, KEY)
        resumption = Resumption(tmp_path, name(3), [], wanted=True)
        assert resumption.resumed == (tmp_path / name(2),)
        assert (
            "a run of this project (or a worker of it) is still alive: its 1 finished measurement is not used"
            in list(resumption.lines())
        )
        resumption.settle({KEY})
        resumption.close()
        assert [path.name for path in tmp_path.iterdir()] == [name(1)]
    finally:
        held.kill()
        held.wait()
    resumption = Resumption(tmp_path, name(3), [], wanted=True)
    assert resumption.resumed == (tmp_path / name(1),), "killed, its lock is gone"
    resumption.close()


def test_workers_that_are_about_to_end_are_waited_for(tmp_path):
    held = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD.replace('sleep(60)', 'sleep(0.5)')}\nhold({str(tmp_path / name(1))!r})"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    resumption = Resumption(tmp_path, name(2), [], wanted=True)
    assert resumption.resumed == (tmp_path / name(1),)
    (line,) = resumption.lines()
    assert "going on with 1 finished measurement" in line
    resumption.close()
    held.wait()


HOLD = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from journal_examples import KEY, measured
from pytest_quant.journal.encoding import Kept
from pytest_quant.journal.journal import Journal
from pathlib import Path

def hold(folder):
    Journal(Path(folder), []).keep(KEY, Kept(measured()))
    journal = Journal(Path(folder), [])
    journal.join()
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_go_on_with_the_same_one(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE", 0.0)
    left(tmp_path, 1, KEY)
    one = Resumption(tmp_path, name(2), [], wanted=True)
    other = Resumption(tmp_path, name(3), [], wanted=True)
    assert (len(one.resumed), len(other.resumed)) == (1, 0)
    other.settle({KEY})
    assert folders.keys(tmp_path / name(1)) == {KEY}
    one.close()
    other.close()


def test_who_only_looks_keeps_nobody_from_going_on(tmp_path):
    left(tmp_path, 1, KEY)
    looking = Resumption(tmp_path, name(2), [], wanted=False)
    assert looking.resumed == ()
    (line,) = looking.lines()
    assert "left 1 finished measurement behind: --quant-resume goes on with them" in line
    resumed = Resumption(tmp_path, name(3), [], wanted=True)
    assert len(resumed.resumed) == 1
    looking.settle({KEY})
    assert folders.keys(tmp_path / name(1)) == {KEY}, "another run reads it"
    resumed.close()


def test_a_run_that_ended_takes_away_what_it_answered_and_no_more(tmp_path):
    left(tmp_path, 1, KEY, OTHER)
    resumption = Resumption(tmp_path, name(2), ["tests", "-k", "one"], wanted=False)
    resumption.settle({KEY})
    assert folders.keys(tmp_path / name(1)) == {OTHER}
    Resumption(tmp_path, name(3), ["tests", "-k", "one"], wanted=False).settle({OTHER})
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_started_again_and_ended_takes_the_whole_folder(tmp_path):
    left(tmp_path, 1, KEY, OTHER)
    resumption = Resumption(tmp_path, name(2), ["tests"], wanted=True)
    resumption.settle({KEY})
    resumption.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["packages", "commit"])
def test_another_version_or_commit_is_not_gone_on_with(tmp_path, monkeypatch, what):
    left(tmp_path, 1, KEY)
    if what == "packages":
        now = {**environment.packages(), "torch": "0.1"}
        monkeypatch.setattr(environment, "packages", lambda: now)
    else:
        monkeypatch.setenv("GITHUB_SHA", "f" * 40)
    resumption = Resumption(tmp_path, name(2), ["tests"], wanted=True)
    assert resumption.resumed == ()
    (line,) = resumption.lines()
    said = " -> 0.1" if what == "packages" else " -> ffffffffffff"
    assert "nothing of it is reused" in line
    assert said in line
    resumption.settle({KEY})
    resumption.close()
    assert folders.keys(tmp_path / name(1)) == {KEY}, "that commit may be checked out again"


def test_a_week_later_nobody_waits_for_it(tmp_path):
    old, young = left(tmp_path, 1, KEY), left(tmp_path, 2, KEY)
    empty = tmp_path / name(0)
    empty.mkdir()
    for folder in (old, empty):
        os.utime(folder, (time.time() - 8 * 24 * 3600,) * 2)
    (tmp_path / "of somebody else").mkdir()
    assert [run.folder for run in folders.interrupted(tmp_path, name(3))] == [young]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name(2), "of somebody else"]


def test_what_was_killed_before_it_kept_anything_or_while_it_was_removed_goes(tmp_path, monkeypatch):
    (tmp_path / name(1)).mkdir()
    folders.make(tmp_path / name(2), {}).close()
    killed = left(tmp_path, 3, KEY)
    with monkeypatch.context() as patch:
        patch.setattr(folders.shutil, "rmtree", lambda folder, ignore_errors: None)
        folders.remove(killed)
    assert len(list(tmp_path.iterdir())) == 3
    assert not killed.exists()
    assert folders.interrupted(tmp_path, name(4)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_for_a_dead_runs_is_made_again(tmp_path, monkeypatch):
    opened = os.open
    taken = []

    def steal(path, *rest, **named):
        found = opened(path, *rest, **named)
        if len(taken) < 2 and str(path).endswith(folders.LOCK):
            taken.append(path)
            folders.remove(tmp_path / name(1))
        return found

    monkeypatch.setattr(os, "open", steal)
    hold = folders.make(tmp_path / name(1), {"started": "now"})
    assert len(taken) == 2
    assert (tmp_path / name(1) / folders.HEADER).is_file()
    assert folders.interrupted(tmp_path, name(2)) == []
    assert (tmp_path / name(1)).is_dir(), "it is held"
    hold.close()


@pytest.mark.parametrize("header", ["", "[]", '{"schema": 2}', '{"schema": 1, "started": 3}'])
def test_a_header_that_cannot_be_understood_is_no_run(tmp_path, header):
    folder = left(tmp_path, 1, KEY)
    (folder / folders.HEADER).write_text(header)
    assert folders.interrupted(tmp_path, name(2)) == []


def test_where_there_are_no_locks_nobody_can_tell_and_nothing_is_touched(tmp_path, monkeypatch):
    from pytest_quant import locks

    left(tmp_path, 1, KEY)
    monkeypatch.setattr(locks, "acquire", lambda descriptor, shared=False: None)
    assert folders.interrupted(tmp_path, name(2)) == []
    assert folders.keys(tmp_path / name(1)) == {KEY}


def test_a_full_disk_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch):
    import errno

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    journal = Journal(tmp_path / name(1), [])
    for key in (KEY, OTHER):
        journal.keep(key, Kept(measured()))
    (said,) = journal.news()["said"]
    assert "cannot be written: No space left on device (ENOSPC); make room there" in said
    assert folders.keys(journal.folder) == frozenset()
    journal.close()


def test_what_is_no_plain_data_is_said_and_the_next_is_kept(tmp_path):
    journal = Journal(tmp_path / name(1), [])
    journal.keep(KEY, Kept(measured(detail={"what": object()})))
    journal.keep(OTHER, Kept(measured()))
    (said,) = journal.news()["said"]
    assert "a measurement of kl_divergence is not kept for --quant-resume: object is no plain data" in said
    assert folders.keys(journal.folder) == {OTHER}
    journal.close()
