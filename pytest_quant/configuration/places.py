"""Names that may be folders or files of the user's."""

from __future__ import annotations

from pathlib import Path

from pytest_quant.cache import expanded


def local_folder(root: Path, name: str | None) -> str | None:
    """A relative folder is meant from the rootdir, wherever pytest was started; other names are hub ids."""
    if name is None:
        return None
    below = root / expanded(name)
    return str(below) if below.is_dir() else name


def local_place(root: Path, name: str) -> str:
    """As :func:`local_folder`, for a folder or a file."""
    below = root / expanded(name)
    return str(below) if below.exists() else name


def local_file(root: Path, name: str) -> str:
    """As :func:`local_folder`, for a file."""
    below = root / expanded(name)
    return str(below) if below.is_file() else name


def local_corpus(root: Path, name: str) -> str:
    """As :func:`local_place`, for a path that may stand in ``wikitext2:PATH`` or ``PATH:COLUMN``."""
    before, colon, after = name.rpartition(":")
    for start, path, end in (("", name, ""), ("", before, colon + after), (before + colon, after, "")):
        below = root / expanded(path)
        if path and below.exists():
            return f"{start}{below}{end}"
    return name
