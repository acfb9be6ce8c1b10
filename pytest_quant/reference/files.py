"""Whole files: read at once, replaced as a whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Iterator
from pathlib import Path

from pytest_quant import atomic
from pytest_quant.atomic import cause
from pytest_quant.reference.errors import StoreError

_READABLE = "Make it readable, or name another folder with --cache-dir (pytest: --quant-cache-dir)"
_WRITABLE = "Make the folder writable, or name another one (the cache: --cache-dir, in pytest --quant-cache-dir)"
_REMEDY = {
    errno.ENOSPC: "Free space on this disk, then try again",
    errno.EDQUOT: "Free space within the disk quota, then try again",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), then try again",
}


def content(path: Path) -> bytes | None:
    """The bytes of the file at `path`, a symbolic link followed; None if there is none.

    Raises StoreError if it is not a regular file or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreError(f"{path}: is not a regular file, so it is no stored reference. Move it away.")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {cause(error)}. {_READABLE}.") from error


def put(target: Path, data: bytes) -> None:
    """Make `data` the content of `target`: a temporary file beside it, to the disk, then one rename.

    A symbolic link is replaced, what it points to stays. Raises StoreError, and leaves what was there and no temporary
    file, if the system refuses (disk full, read-only, a folder in its place, ...).
    """
    try:
        atomic.replace(target, data, prefix=target.stem)
    except OSError as error:
        remedy = _REMEDY.get(error.errno or 0, _WRITABLE)
        raise StoreError(
            f"{target}: cannot be written: {cause(error)}; what was there is untouched. {remedy}."
        ) from error


def sweep(target: Path) -> None:
    """Remove temporary files that a killed process left beside `target`; only while its lock is held."""
    with contextlib.suppress(OSError):
        for leftover in target.parent.glob(f".{target.stem}-*.tmp"):
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(lock: Path, seconds: float) -> Iterator[None]:
    """Hold the lock file `lock`. Raises StoreError after `seconds`, or if the file cannot be made."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=seconds)
    except Timeout:
        raise StoreError(
            f"{lock}: is held by another process for more than {seconds:g} seconds. Wait until it has written its "
            "reference, or end it, then try again."
        ) from None
    except (OSError, NotImplementedError) as error:
        why = cause(error) if isinstance(error, OSError) else str(error)
        raise StoreError(f"{lock}: cannot be locked: {why}. {_WRITABLE}.") from error
    try:
        yield
    finally:
        held.release()
