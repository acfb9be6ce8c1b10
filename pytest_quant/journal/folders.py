"""The folders of runs: ``<cache>/journal/<digest of the rootdir>/<run>/``, one file for each finished measurement.

Every process of a run holds the lock of its folder together with the others, and the system frees it when they are
gone, however they went. A folder whose lock can be had is that of an interrupted run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quant import atomic, locks

LOCK, HEADER = "lock", "run.json"
_SCHEMA = 1
_KEY = re.compile(r"([0-9a-f]{32})\.json")
_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")
_GONE = ".gone-"
"""Begins the name of a folder that is being removed."""
_TRIES = 20
_KEPT_SECONDS = 7 * 24 * 3600.0
"""How long an interrupted run is waited for."""


def home(cache_dir: Path, rootpath: Path) -> Path:
    """Where the runs of one rootdir lie."""
    digest = hashlib.sha256(os.fsencode(rootpath.resolve())).hexdigest()[:16]
    return cache_dir / "journal" / digest


def new_name() -> str:
    """A name for a run that sorts by its start, UTC."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


def file(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def keys(folder: Path) -> frozenset[str]:
    """The questions of which a folder holds the answer; whether it is sound shows when it is read."""
    try:
        found = [_KEY.fullmatch(name) for name in os.listdir(folder)]  # noqa: PTH208
    except OSError:
        return frozenset()
    return frozenset(match[1] for match in found if match)


class Hold:
    """The lock of a run's folder, held together with the other processes of the run until it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def make(folder: Path, header: Mapping[str, Any]) -> Hold:
    """Make a run's folder, or join it. Raises :class:`OSError` where the system refuses."""
    hold = _made(folder)
    try:
        if not (folder / HEADER).exists():
            content = json.dumps({"schema": _SCHEMA, **header}, indent=1) + "\n"
            atomic.replace(folder / HEADER, content.encode(), prefix="run")
    except BaseException:
        hold.close()
        raise
    return hold


def _made(folder: Path) -> Hold:
    """A folder with its lock, held. Another run may take one that is empty and not locked yet for a dead run's."""
    for _ in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        # where there are no locks, nobody takes it for a dead run's
        if locks.acquire(descriptor, shared=True) is not False and _is_in(folder, descriptor):
            return Hold(descriptor)
        os.close(descriptor)
        time.sleep(0.01)
    raise OSError(errno.EBUSY, f"it was removed {_TRIES} times")


def _is_in(folder: Path, descriptor: int) -> bool:
    """Whether an open lock is still that of the folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat())
    except FileNotFoundError:
        return False


def remove(folder: Path) -> None:
    """Remove a run's folder: at once it is no run's any more, whatever happens while its files go."""
    gone = folder.with_name(f"{_GONE}{folder.name}")
    try:
        folder.rename(gone)
    except OSError:
        gone = folder
    shutil.rmtree(gone, ignore_errors=True)


def join(folder: Path) -> Hold | None:
    """Hold a run's folder where another process of the run made it; None where there is none."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return None
    locks.acquire(descriptor, shared=True)
    return Hold(descriptor)


@dataclass
class Interrupted:
    """A run that did not come to its end, and whose processes are gone: it is ours while we hold it."""

    folder: Path
    header: Mapping[str, Any]
    hold: Hold

    @property
    def keys(self) -> frozenset[str]:
        return keys(self.folder)

    @property
    def started(self) -> str:
        return str(self.header["started"])

    def take(self) -> bool:
        """Hold it again; False where another process has gone on with it, or it is gone."""
        descriptor = _locked(self.folder)
        if descriptor is not None:
            self.hold.close()
            self.hold = Hold(descriptor)
        return descriptor is not None

    def drop(self, answered: Collection[str]) -> None:
        """Remove what a later run has answered; the folder too, where nothing else is in it."""
        for key in self.keys & set(answered):
            with contextlib.suppress(OSError):
                file(self.folder, key).unlink()
        if not self.keys:
            self.remove()

    def remove(self) -> None:
        remove(self.folder)


def interrupted(where: Path, but: str) -> list[Interrupted]:
    """The interrupted runs of a rootdir, the newest first, ``but`` apart. What is too old, empty or half removed
    goes by the way."""
    try:
        names = sorted(os.listdir(where), reverse=True)  # noqa: PTH208
    except OSError:
        return []
    for name in names:
        if name.startswith(_GONE):
            shutil.rmtree(where / name, ignore_errors=True)
    names = [name for name in names if _NAME.fullmatch(name)]
    found = (_interrupted(where / name) for name in names if name != but)
    return [run for run in found if run is not None]


def alive(where: Path, but: str) -> frozenset[str]:
    """What those runs of a rootdir have kept that some process holds, ``but`` apart."""
    try:
        names = [name for name in os.listdir(where) if _NAME.fullmatch(name) and name != but]  # noqa: PTH208
    except OSError:
        return frozenset()
    held = (folder for folder in map(where.joinpath, names) if _is_held(folder))
    return frozenset[str]().union(*map(keys, held))


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return locks.acquire(descriptor) is False
    finally:
        os.close(descriptor)


def _interrupted(folder: Path) -> Interrupted | None:
    """The run of a folder, held by us; None where it is alive, where nobody can tell, or where it has no use."""
    try:
        old = time.time() - folder.stat().st_mtime > _KEPT_SECONDS
    except OSError:
        return None
    descriptor = _locked(folder)
    if descriptor is None:
        with contextlib.suppress(OSError):
            folder.rmdir()  # killed before it could lock, it is empty
        return None
    run = Interrupted(folder, _header(folder), Hold(descriptor))
    if old or not run.keys:
        run.remove()
    elif run.header and locks.acquire(descriptor, shared=True):
        return run
    run.hold.close()
    return None


def _locked(folder: Path) -> int | None:
    """The lock of a folder that no process holds, ours alone now; None where it cannot be had."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return None
    if locks.acquire(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _header(folder: Path) -> Mapping[str, Any]:
    """What a run says of itself; nothing where that is not what this version writes."""
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    parts = {"started": str, "arguments": list, "packages": dict}
    if not isinstance(header, dict) or header.get("schema") != _SCHEMA:
        return {}
    return header if all(isinstance(header.get(name), kind) for name, kind in parts.items()) else {}
