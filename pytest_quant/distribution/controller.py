"""The process that starts pytest-xdist's workers: gives each its lane, chooses the scheduler, enters the dead."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quant.distribution import devices, telling
from pytest_quant.distribution.groups import plan
from pytest_quant.run import CARRIED

if TYPE_CHECKING:
    from pytest_quant.distribution.by_model import ByModel
    from pytest_quant.run import Run

ALONE = "alone"
"""The file of the folder that is there once the other workers have ended."""
_SECONDS_TO_END = 2.0
"""That a process has once its worker has ended; then it is terminated, and after as long again killed."""
_SECONDS_KEPT = 7 * 24 * 3600.0
"""After which a folder of workers is taken for that of a run that was killed."""
_PREFIX = "pytest-quant-"
_NAME = re.compile(rf"{_PREFIX}[0-9a-f]{{32}}")


class Controller:
    """Hooks of xdist; registered when its workers are to be set up, so that a run without any knows nothing of it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._folder = Path(tempfile.gettempdir()) / f"{_PREFIX}{os.urandom(16).hex()}"
        """Made by the first worker that has something to tell."""
        sweep(self._folder.parent)
        self._heard: telling.Told | None = None
        self._lanes: dict[Any, int] = {}
        self._replaced: set[Any] = set()
        self._lost = 0
        self._ended: list[Any] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """A worker gets the lowest free lane. One on another machine does not share this one's folder."""
        lane = next(number for number in range(len(self._lanes) + 1) if number not in self._lanes.values())
        self._lanes[node] = lane
        if node.gateway.spec.popen:
            node.workerinput[telling.WORKERS] = {"folder": str(self._folder), "lane": lane}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object | None) -> None:
        from xdist.dsession import get_default_max_worker_restart

        self._lanes.pop(node, None)
        self._ended.append(node)
        if error is None:
            return
        self._lost += 1  # as xdist counts, which says afterwards whether another worker starts
        most = get_default_max_worker_restart(node.config)
        if most is None or self._lost <= most:
            self._replaced.add(node)

    @pytest.hookimpl(optionalhook=True, wrapper=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config) -> Generator[None, Any, Any]:
        from pytest_quant.distribution.scheduling import scheduler

        own = yield
        return scheduler(own, lambda nodes, ids: self._choose(config, nodes, ids))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        if self._told is not None:
            self._run.known_tests.update(self._told.known)
            self._run.wanted = self._run.wanted or [test for test in ids if test in self._told.tests]
            self._run.arranged = self._run.arranged or list(ids)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Each gate of the test that a worker died in has no number; the other plugins may have it run again."""
        why = f"the worker died{_how(getattr(report, 'node', None))}"
        report.longrepr = f"{report.longrepr}: {why}"
        told = self._told
        if told is not None and crashitem in told.tests:
            lost = [{**each, "record": {**each["record"], "reason": why}} for each in told.lost[crashitem]]
            formats = list(told.formats[crashitem])
            vars(report)[CARRIED] = {"outcomes": lost, "hardware": dict(told.hardware), "formats": formats}

    def pytest_unconfigure(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _told(self) -> telling.Told | None:
        """What the workers told, read once; before they have, nothing is remembered."""
        if self._heard is None:
            self._heard = telling.heard(self._folder)
        return self._heard

    def _choose(self, config: pytest.Config, nodes: Sequence[Any], ids: Sequence[str]) -> ByModel | None:
        """The scheduler for these tests; None where none of them is a quantization test."""
        told = self._told
        if told is None or not set(told.tests) & set(ids):
            return None
        from pytest_quant.distribution.by_model import ByModel

        return ByModel(
            ids,
            plan(ids, told.tests, by_xdist_group=config.getvalue("dist") == "loadgroup"),
            nodes,
            lane=lambda node: self._lanes.get(node, len(self._lanes)),
            lanes=devices.lanes(told.kind, told.count),
            replaced=self._replaced.__contains__,
            settle=self._settle,
            most_at_once=config.getoption("maxschedchunk", None),
        )

    def _settle(self) -> None:
        """Have the processes of all workers that have ended be gone, with what they hold of CPU and GPU, then tell the
        last one that it is alone."""
        for node in self._ended:
            node.gateway.exit()
        until = time.monotonic() + _SECONDS_TO_END
        processes = [process for process in map(_process, self._ended) if process is not None]
        for process in processes:
            end(process, until - time.monotonic())
        (self._folder / ALONE).touch()


def sweep(where: Path) -> None:
    """Remove the folders of workers that killed runs have left, once they are old; those of other users, which the
    system guards, stay."""
    old = time.time() - _SECONDS_KEPT
    with contextlib.suppress(OSError), os.scandir(where) as found:
        for each in found:
            is_ours = _NAME.fullmatch(each.name) and each.is_dir(follow_symlinks=False)
            if is_ours and each.stat(follow_symlinks=False).st_mtime < old:
                shutil.rmtree(each.path, ignore_errors=True)


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Have a process end that has nothing left to do: of itself, asked to, or killed."""
    for force in (process.terminate, process.kill, None):
        try:
            process.wait(max(seconds, 0.0))
            return
        except subprocess.TimeoutExpired:
            if force is not None:
                force()
            seconds = _SECONDS_TO_END


def _process(node: Any) -> subprocess.Popen[bytes] | None:
    """The process of a worker; None where it runs elsewhere."""
    found: subprocess.Popen[bytes] | None = getattr(getattr(getattr(node, "gateway", None), "_io", None), "popen", None)
    return found


def _ending(node: Any, seconds: float) -> int | None:
    """The exit code of a worker's process, which is waited for; None where it lives on, or runs elsewhere."""
    process = _process(node)
    if process is None:
        return None
    try:
        code: int = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    return code


def _how(node: Any) -> str:
    """``" of SIGKILL"`` or ``" with exit code 3"``; nothing where the system does not tell."""
    code = _ending(node, 1.0)
    if code is None:
        return ""
    if code >= 0:
        return f" with exit code {code}"
    try:
        return f" of {signal.Signals(-code).name}"
    except ValueError:
        return f" of signal {-code}"
