"""Locks that the system frees when the process that holds them ends, however it ends."""

from __future__ import annotations

import sys

if sys.platform == "win32":

    def acquire(descriptor: int, *, shared: bool = False) -> bool | None:
        """There is no such lock here: it cannot be told."""
        return None

else:
    import fcntl

    def acquire(descriptor: int, *, shared: bool = False) -> bool | None:
        """Lock an open file without waiting, until its descriptor is closed; one that is locked by it already changes
        its kind. False where another process holds it; None where the file system has no locks, so that nobody can
        tell."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True
