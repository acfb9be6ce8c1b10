"""One worker does the work, the others wait for it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from pytest_quant.distribution.one_at_a_time import first_word, turn

pytest.importorskip("filelock")


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    source = textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE, text=True)


def test_two_processes_take_turns(tmp_path):
    code = """
        import pathlib, sys, time
        from pytest_quant.distribution.one_at_a_time import turn
        folder = pathlib.Path(sys.argv[1])
        with turn(folder, "work"):
            with (folder / "log").open("a") as log:
                log.write("in "), log.flush(), time.sleep(0.2), log.write("out ")
    """
    running = [start(code, str(tmp_path)) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "in out " * 3


def test_a_process_that_dies_gives_its_turn_back(tmp_path):
    code = """
        import os, pathlib, sys
        from pytest_quant.distribution.one_at_a_time import turn
        with turn(pathlib.Path(sys.argv[1]), "work"):
            os._exit(3)
    """
    assert start(code, str(tmp_path)).wait() == 3
    with turn(tmp_path, "work"):
        assert (tmp_path / "work.lock").exists()


def test_without_a_folder_or_where_it_is_gone_the_work_goes_on(tmp_path):
    with turn(None, "work"):
        assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    done = []
    with turn(tmp_path / "file" / "gone", "work"):
        done.append(first_word(tmp_path / "file" / "gone", "work", 3))
    assert done == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_first_word_counts(tmp_path):
    assert [first_word(tmp_path, "a", said) for said in (0, 5, 7)] == [0, 0, 0]
    assert first_word(tmp_path, "b", 5) == 5
    assert first_word(None, "a", 9) == 9
