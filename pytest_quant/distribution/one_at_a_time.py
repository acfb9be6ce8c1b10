"""What one worker does while the others wait for the result, so that it is done once a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextlib.contextmanager
def turn(folder: Path | None, name: str) -> Iterator[None]:
    """Hold the lock ``name`` among the workers that share ``folder``; without one, nothing.

    The system releases the lock of a process that dies. Where it cannot be had at all (no ``filelock``, a folder that
    is gone) the work goes on without it: then it may be done twice, to the same result.
    """
    held = None if folder is None else _acquired(folder / f"{name}.lock")
    try:
        yield
    finally:
        if held is not None:
            held.release()


def _acquired(path: Path) -> BaseFileLock | None:
    try:
        from filelock import FileLock

        lock = FileLock(path)
        lock.acquire()
    except (ImportError, OSError, NotImplementedError):
        return None
    return lock


def first_word(folder: Path | None, name: str, said: int) -> int:
    """What the first worker of the run said under a name; to be asked while its lock is held."""
    if folder is None:
        return said
    path = folder / f"{name}.first"
    try:
        return int(json.loads(path.read_text(encoding="ascii")))
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(said), encoding="ascii")
        return said
