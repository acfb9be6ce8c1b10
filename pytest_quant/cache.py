"""Where a user's cache lies, if nobody names another folder."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/pytest-quant``, or ``~/.cache/pytest-quant`` where that is unset or empty."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else expanded("~/.cache")) / "pytest-quant"


def expanded(name: str) -> Path:
    """With the home folder for ``~``; a name that only begins so stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)
