"""A file is replaced as a whole or not at all, and what killed writers leave goes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from pytest_quant import atomic, locks

LEFT = f".some-{'0' * 16}.tmp"


def test_it_is_replaced_and_nothing_is_left(tmp_path):
    target = tmp_path / "below" / "file"
    for content in (b"one", b"two"):
        atomic.replace(target, content, prefix="some")
        assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_the_mode_is_what_is_told(tmp_path):
    atomic.replace(tmp_path / "file", b"", prefix="some", mode=0o640)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="asked: locks; found: Windows; needed: flock")
def test_a_leftover_goes_and_what_is_being_written_stays(tmp_path):
    (tmp_path / LEFT).write_bytes(b"half")
    others = [".some-0.tmp", ".other-0000000000000000.tmp", "some-0000000000000000.tmp", LEFT + "x"]
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    alive = tmp_path / f".some-{'1' * 16}.tmp"
    with alive.open("xb") as stream:
        assert locks.acquire(stream.fileno())
        atomic.replace(tmp_path / "file", b"new", prefix="some")
        assert alive.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", alive.name, *others])


@pytest.mark.parametrize("age, goes", [(0.0, False), (2 * 3600.0, True)])
def test_where_there_are_no_locks_age_decides(tmp_path, monkeypatch, age, goes):
    monkeypatch.setattr(locks, "acquire", lambda descriptor, shared=False: None)
    (tmp_path / LEFT).write_bytes(b"half")
    os.utime(tmp_path / LEFT, (time.time() - age,) * 2)
    atomic.replace(tmp_path / "file", b"new", prefix="some")
    assert (tmp_path / LEFT).exists() is not goes
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_writer_whose_file_was_taken_for_a_leftover_writes_another(tmp_path, monkeypatch):
    """By a host that does not see our locks: before the first byte, and before the rename."""
    acquire, fsync, taken = locks.acquire, os.fsync, []

    def steal(when: str) -> None:
        if when not in taken:
            taken.append(when)
            for path in tmp_path.glob(".some-*.tmp"):
                path.unlink()

    def locked(descriptor, *, shared=False):
        steal("lock")
        return acquire(descriptor, shared=shared)

    def synced(descriptor):
        fsync(descriptor)
        steal("sync")

    monkeypatch.setattr(locks, "acquire", locked)
    monkeypatch.setattr(os, "fsync", synced)
    atomic.replace(tmp_path / "file", b"whole", prefix="some")
    assert taken == ["lock", "sync"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_whoever_removes_it_every_time_is_an_error_and_no_endless_loop(tmp_path, monkeypatch):
    fsync = os.fsync

    def synced(descriptor):
        fsync(descriptor)
        for path in tmp_path.glob(".some-*.tmp"):
            path.unlink()

    monkeypatch.setattr(os, "fsync", synced)
    with pytest.raises(OSError, match="No such file"):
        atomic.replace(tmp_path / "file", b"whole", prefix="some")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_its_place_is_an_error_and_nothing_is_left(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):  # noqa: PT011
        atomic.replace(Path(tmp_path / "file"), b"whole", prefix="some")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
