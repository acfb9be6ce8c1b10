"""Files that are replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import BinaryIO

from pytest_quant import locks

_TRIES = 5
_STALE_SECONDS = 3600.0
"""Age of a temporary file that nobody can be writing any more, where locks cannot tell: it is written in one go."""


def replace(target: Path, content: bytes, *, prefix: str, mode: int | None = None) -> None:
    """Make ``content`` what ``target`` holds: a temporary file beside it (``.PREFIX-....tmp``), to the disk, then one
    rename; ``mode`` are its permissions, None those of the umask.

    What killed writers of that prefix left beside it is removed. Raises :class:`OSError` where the system refuses; what
    was there stays then, and no temporary file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, prefix)
    for attempt in range(_TRIES):
        temporary = target.parent / f".{prefix}-{secrets.token_hex(8)}.tmp"
        try:
            with temporary.open("xb") as stream:
                if not _held(stream):
                    continue
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
                if mode is not None:
                    temporary.chmod(mode)
                if os.name != "nt":
                    temporary.replace(target)  # while its lock says that somebody is at it
            if os.name == "nt":  # where an open file cannot be renamed
                temporary.replace(target)
        except BaseException as error:
            swept = isinstance(error, FileNotFoundError) and attempt + 1 < _TRIES and target.parent.is_dir()
            with contextlib.suppress(OSError):
                temporary.unlink()
            if swept and not target.is_dir():  # a host that does not see our locks took it for a leftover
                continue
            raise
        break
    else:
        raise OSError(errno.EBUSY, f"temporary files beside it were removed {_TRIES} times")
    # The new file is in place. If the folder cannot be synced, power loss brings back the old one: whole, too.
    with contextlib.suppress(OSError):
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path, prefix: str) -> None:
    """Remove the temporary files of that prefix that killed writers left in a folder.

    A writer holds the lock of its file, so one that can be locked is a leftover. Where there are no locks, one that is
    an hour older than now, by the clock of the file system's own host.
    """
    with contextlib.suppress(OSError):
        left = [
            each for each in folder.iterdir() if re.fullmatch(rf"\.{re.escape(prefix)}-[0-9a-f]{{16}}\.tmp", each.name)
        ]
        for leftover in left:
            with contextlib.suppress(OSError), leftover.open("r+b") as stream:
                mine = locks.acquire(stream.fileno())
                old = time.time() - leftover.stat().st_mtime > _STALE_SECONDS
                if mine or (mine is None and old):
                    leftover.unlink()


def _held(stream: BinaryIO) -> bool:
    """Whether a file that was just made is ours to write: another process may have taken it for a leftover before it
    was locked, and removed it."""
    if locks.acquire(stream.fileno()) is False:
        return False
    status = os.fstat(stream.fileno())
    return status.st_nlink > 0 or not stat.S_ISREG(status.st_mode)


def cause(error: OSError) -> str:
    """The system's words and the name of its error number."""
    return f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, type(error).__name__)})"
