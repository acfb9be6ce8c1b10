"""The journal of a run in each of its processes: where it lies, what it takes from others, and when it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_quant.journal import folders
from pytest_quant.journal.journal import Journal, Resumption, finished
from pytest_quant.options import Options


class Keeper:
    """``name`` is the run's, ``resumed`` the folders that it goes on with, as a worker hears them from the process that
    started it; that one chooses them, and gives None."""

    def __init__(self, told: Options, command: Sequence[str], name: str, resumed: Sequence[str] | None = None) -> None:
        self._home = folders.home(told.cache_dir, told.rootpath)
        self._name = name
        self._command = command
        self._wanted = told.resume
        self._resumed = resumed
        self._answered: set[str] = set()
        self._reused: set[str] = set()
        self._said: dict[str, None] = {}
        self._is_said = False

    @cached_property
    def journal(self) -> Journal:
        resumed = self.resumption.resumed if self._resumed is None else map(Path, self._resumed)
        return Journal(self._home / self._name, self._command, tuple(resumed))

    @cached_property
    def resumption(self) -> Resumption:
        """The interrupted runs; of the process that is no worker."""
        return Resumption(self._home, self._name, self._command, wanted=self._wanted)

    def lines(self) -> list[str]:
        """What to say of interrupted runs, before anything is measured."""
        self._is_said = True
        return list(self.resumption.lines())

    def hear(self, news: Mapping[str, Any]) -> None:
        """Of a process of the run, with a test's report."""
        self._answered.update(news["answered"])
        self._reused.update(news["reused"])
        self._said.update(dict.fromkeys(news["said"]))
        if news["answered"]:
            self.journal.join()

    def finish(self, *, ended: bool) -> list[str]:
        """The run is over: what it and those before it kept is of no more use if it ``ended``. Lines for the
        summary."""
        lines = [] if self._is_said else self.lines()  # with pytest-xdist nothing was collected here
        lines += self._said
        if self._reused:
            lines.append(f"{finished(len(self._reused))} of an interrupted run reused")
        if ended:
            self.resumption.settle(self._answered)
            folders.remove(self.journal.folder)
        elif kept := folders.keys(self.journal.folder) | self._reused:
            lines.append(f"{finished(len(kept))} kept: --quant-resume goes on with them")
        return lines

    def close(self) -> None:
        """Let go of the folders."""
        for name in ("journal", "resumption"):
            if name in self.__dict__:
                getattr(self, name).close()
