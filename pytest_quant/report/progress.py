"""Progress on a terminal: one line that replaces itself, and nothing at all in a pipe."""

from __future__ import annotations

import time

import pytest

from pytest_quant.progress import Progress, Quiet

_EVERY = 0.1
"""Seconds between two lines, so that fast work is not slowed by telling of it."""


class TerminalProgress:
    """Writes past pytest's capture, below what is there, and wipes its line when the work is done."""

    def __init__(self, reporter: pytest.TerminalReporter, capture: pytest.Config) -> None:
        self._reporter = reporter
        self._manager = capture.pluginmanager.getplugin("capturemanager")
        self._shown = False
        self._last = 0.0

    def show(self, text: str) -> None:
        moment = time.monotonic()
        if self._shown and moment - self._last < _EVERY:
            return
        self._last = moment
        self._write(text, first=not self._shown)
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            self._write("", first=False)
            self._shown = False

    def _write(self, text: str, *, first: bool) -> None:
        if self._manager is None:
            self._line(text, first)
            return
        with self._manager.global_and_fixture_disabled():
            self._line(text, first)

    def _line(self, text: str, first: bool) -> None:
        if first:
            self._reporter.ensure_newline()
        width = self._reporter._tw.fullwidth - 1
        self._reporter.write(f"\r\x1b[K{text[:width]}", flush=True)


def for_config(config: pytest.Config) -> Progress:
    """Progress where a person is watching: on a terminal, in the process that owns it."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput") or not getattr(reporter, "isatty", False):
        return Quiet()
    return TerminalProgress(reporter, config)
