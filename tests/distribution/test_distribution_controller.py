"""What the process that starts the workers does besides sharing out tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from pytest_quant.distribution import controller, telling
from pytest_quant.distribution.controller import Controller, end, sweep

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="asked: signals; found: Windows; needed: POSIX")


def run() -> SimpleNamespace:
    return SimpleNamespace(known_tests=set(), arranged=[], wanted=[])


def test_before_a_worker_has_told_nothing_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(controller.tempfile, "gettempdir", lambda: str(tmp_path))
    told, asked = telling.Told(known=("t",)), iter([None, telling.Told(known=("t",))])
    monkeypatch.setattr(telling, "heard", lambda folder: next(asked))
    ours = Controller(run())
    assert ours._told is None, "its folder may be there, and the file in it not yet"
    assert ours._told == told
    assert ours._told == told, "it is read once"


def sleeper(deaf: bool) -> subprocess.Popen[bytes]:
    code = "import signal, sys, time\n" + ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else "")
    code += "print('ready', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


@pytest.mark.parametrize(("deaf", "code"), [(False, -15), (True, -9)])
def test_a_process_that_outlives_its_worker_is_ended(monkeypatch, deaf, code):
    monkeypatch.setattr(controller, "_SECONDS_TO_END", 0.2)
    process = sleeper(deaf)
    end(process, 0.1)
    assert process.wait(10) == code


def test_a_process_that_has_ended_is_left_as_it_is():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    end(process, 30)
    assert process.returncode == 3


def test_folders_that_killed_runs_left_go_once_they_are_old(tmp_path):
    old, young, other = (tmp_path / f"pytest-quant-{name}" for name in ("0" * 32, "1" * 32, "mine"))
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "gw0.json").write_text("{}")
    (tmp_path / f"pytest-quant-{'2' * 32}").symlink_to(other)
    for folder in (old, other):
        os.utime(folder, (time.time() - 8 * 24 * 3600,) * 2)
    sweep(tmp_path)
    assert not old.exists()
    assert (young / "gw0.json").exists()
    assert (other / "gw0.json").exists()
    sweep(tmp_path / "absent")
