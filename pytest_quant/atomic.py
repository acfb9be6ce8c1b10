"""Files that are replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path


def replace(target: Path, content: bytes, *, prefix: str, mode: int | None = None) -> None:
    """Make ``content`` what ``target`` holds: a temporary file beside it (``.PREFIX-....tmp``), to the disk, then one
    rename; ``mode`` are its permissions, None those of the umask.

    Raises :class:`OSError` where the system refuses; what was there stays then, and no temporary file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{prefix}-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # The new file is in place. If the folder cannot be synced, power loss brings back the old one: whole, too.
    with contextlib.suppress(OSError):
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cause(error: OSError) -> str:
    """The system's words and the name of its error number."""
    return f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, type(error).__name__)})"
