"""What one run keeps of its measurements, and what it takes from interrupted ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quant import atomic, environment
from pytest_quant.atomic import cause
from pytest_quant.counting import counted
from pytest_quant.gates.measurement import Measurement
from pytest_quant.journal import folders
from pytest_quant.journal.encoding import DamagedError, Kept, decode, encode

PATIENCE = 16.0
"""Seconds that the processes of a run have to end when one is to go on with it. A worker of pytest-xdist that is in a
test when the process that started it is gone is interrupted by execnet after five seconds, and ended after ten more."""


class Journal:
    """One process's view of its run's folder, which all processes of the run write to.

    Nothing here is a reason for a run to fail: what cannot be read is measured anew, what cannot be written is said
    once.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], resumed: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._arguments = list(arguments)
        self._resumed = tuple(resumed)
        self._started = time.time()
        self._hold: folders.Hold | None = None
        self._can_write = True
        self._own: set[str] = set()
        self._answered: set[str] = set()
        self._reused: set[str] = set()
        self._said: list[str] = []

    def find(self, key: str | None, enough: Callable[[Measurement], bool]) -> Kept | None:
        """What another process of this run, or an interrupted run, has measured for a question, if it is ``enough``
        for what is asked of it now. What this process measured itself it knows better."""
        if key is None or key in self._own:
            return None
        for folder in (self.folder, *self._resumed):
            kept = self._read(folder, key)
            if kept is not None and enough(kept.measurement):
                self._answered.add(key)
                if folder != self.folder:
                    self._reused.add(key)
                return kept
        return None

    def measured(self, key: str) -> bool:
        """Whether this process measured it itself."""
        return key in self._own

    def keep(self, key: str | None, kept: Kept) -> None:
        """Write a finished measurement to the disk, unless it was measured under conditions that nobody accepted: then
        it is no baseline, and whoever goes on measures it again, as a run does that is started anew."""
        if key is not None:
            self._own.add(key)
            self._answered.add(key)
            self._reused.discard(key)
            if not kept.measurement.conditions:
                self.write(key, kept)

    def write(self, key: str, kept: Kept) -> None:
        """Write what is known of a measurement now, whoever made it."""
        if not self._can_write:
            return
        try:
            content = encode(key, kept)
        except TypeError as error:
            self._said.append(f"a measurement of {kept.measurement.metric} is not kept for --quant-resume: {error}")
            return
        try:
            if self._hold is None:
                self._hold = folders.make(self.folder, self._header())
            atomic.replace(folders.file(self.folder, key), content, prefix=key)
        except OSError as error:
            self._can_write = False
            self._said.append(
                f"finished measurements are not kept for --quant-resume: {self.folder} cannot be written: "
                f"{cause(error)}; make room there, or name another folder with --quant-cache-dir"
            )

    def join(self) -> None:
        """Hold the folder that another process of the run has made."""
        if self._hold is None:
            self._hold = folders.join(self.folder)

    def news(self) -> dict[str, list[str]]:
        """What happened since it was asked last, as plain data: questions ``answered``, those of them ``reused`` from
        interrupted runs, and sentences ``said``."""
        found = {"answered": sorted(self._answered), "reused": sorted(self._reused), "said": list(self._said)}
        self._answered, self._reused, self._said = set(), set(), []
        return found

    def close(self) -> None:
        """Let go of the folder."""
        if self._hold is not None:
            self._hold.close()
            self._hold = None

    def _read(self, folder: Path, key: str) -> Kept | None:
        path = folders.file(folder, key)
        try:
            return decode(path.read_bytes(), key)
        except FileNotFoundError:
            return None
        except (OSError, DamagedError) as error:
            why = cause(error) if isinstance(error, OSError) else str(error)
            self._said.append(f"{path} is not used, and measured anew: {why}")
            return None

    def _header(self) -> dict[str, Any]:
        return {
            "started": environment.timestamp(self._started),
            "arguments": self._arguments,
            "packages": environment.packages(),
            "commit": environment.commit(),
        }


class Resumption:
    """The interrupted runs of a rootdir, in the process that keeps the ledger, and which of them are gone on with."""

    def __init__(self, where: Path, own: str, arguments: Sequence[str], *, wanted: bool) -> None:
        self._arguments = list(arguments)
        self._alive = _left_alone(where, own) if wanted else frozenset()
        self._found = folders.interrupted(where, own)
        self._refused = {run.folder: why for run in self._found if (why := _differs(run.header))}
        self._wanted = wanted
        if not wanted:
            self.close()  # another process may go on with them

    @property
    def resumed(self) -> tuple[Path, ...]:
        """The folders to read from, the newest first."""
        return tuple(run.folder for run in self._usable()) if self._wanted else ()

    def lines(self) -> Iterator[str]:
        """What to say before anything is measured."""
        if usable := list(self._usable()):
            of = _of(usable)
            count = finished(len(frozenset[str]().union(*(run.keys for run in usable))))
            yield (
                f"going on with {count} of {of}"
                if self._wanted
                else (f"{of} left {count} behind: --quant-resume goes on with them")
            )
        if self._alive:
            yield (
                f"a run of this project (or a worker of it) is still alive: its {finished(len(self._alive))} "
                f"{'is' if len(self._alive) == 1 else 'are'} not used"
            )
        for run in self._found if self._wanted else ():
            if run.folder in self._refused:
                yield (
                    f"the run of {run.started} was interrupted, and nothing of it is reused: "
                    f"{self._refused[run.folder]}"
                )

    def settle(self, answered: set[str]) -> None:
        """This run came to its end: of the others only what it has not answered is still of use, and nothing of those
        that it was started to finish."""
        for run in self._found:
            if run.folder in self._refused:
                continue  # its commit may be checked out again
            if run.folder in self.resumed and run.header["arguments"] == self._arguments:
                run.remove()
            elif self._wanted or run.take():
                run.drop(answered)
        self.close()

    def close(self) -> None:
        """Let go of them."""
        for run in self._found:
            run.hold.close()

    def _usable(self) -> Iterator[folders.Interrupted]:
        return (run for run in self._found if run.folder not in self._refused)


def _left_alone(where: Path, own: str) -> frozenset[str]:
    """What living processes have kept. Workers outlive a process of theirs that was killed by some seconds, so those
    are waited for first."""
    until = time.monotonic() + PATIENCE
    while (held := folders.alive(where, own)) and time.monotonic() < until:
        time.sleep(0.1)
    return held


def _differs(header: Mapping[str, Any]) -> str:
    """Why what a run measured says nothing of now; empty where it does."""
    changes = environment.changed_packages(header["packages"])
    before, now = header.get("commit"), environment.commit()
    if before != now:
        changes.insert(0, f"commit {str(before or 'none')[:12]} -> {str(now or 'none')[:12]}")
    return ", ".join(changes)


def _of(runs: Sequence[folders.Interrupted]) -> str:
    if len(runs) == 1:
        return f"the interrupted run of {runs[0].started}"
    return f"{len(runs)} interrupted runs, the last of {runs[0].started},"


def finished(count: int) -> str:
    return counted(count, "finished measurement")
