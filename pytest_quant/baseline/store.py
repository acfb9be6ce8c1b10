"""Baseline files on disk: where they lie, how they are read, merged, pruned and written.

A file is replaced as a whole or not at all: whatever fails, the old one stays. Two processes that write one file leave
the content of one of them (the last), never a mixture. Every failure is a `BaselineError` that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pytest_quant import atomic
from pytest_quant.atomic import cause
from pytest_quant.baseline.schema import BaselineError, Entry, File, parse, render

_LONGEST = 80  # characters of a name that are kept: with hash and ending far below the 255 bytes of a file system
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_HASHED = re.compile(r"-[0-9a-f]{8}$")
_REMEDY = {
    errno.ENOSPC: "Free space on this disk, then record again",
    errno.EDQUOT: "Free space within the disk quota, then record again",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), then record again",
    errno.EROFS: "This file system is read-only: choose another folder with --quant-baseline-path",
    errno.EACCES: "Make the file and its folder writable, or choose another folder with --quant-baseline-path",
    errno.EPERM: "Make the file and its folder writable, or choose another folder with --quant-baseline-path",
}


def path_for(root: str | Path, hardware_key: str, model: str) -> Path:
    """`<root>/<hardware>/<model>.json`, with names that every file system takes and that stay below `root`.

    A name is kept where it consists of lower-case letters, digits and `._-`; otherwise it is made so and a hash of the
    exact name follows, so that two names never share a file (on a file system that ignores case neither). A path to a
    local model should be made relative by the caller: it is part of the name.

    Raises BaselineError if a name is empty.
    """
    for what, name in (("hardware key", hardware_key), ("model", model)):
        if not name.strip():
            raise BaselineError(f"{root}: the {what} is {name!r}, so its baseline has no place. Give it a name.")
    return Path(root) / _slug(hardware_key) / f"{_slug(model)}.json"


def _slug(name: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "--"))[:_LONGEST].strip("-. ")
    if _RESERVED.match(safe):
        safe = f"_{safe}"
    if safe and safe == name == name.lower() and not _HASHED.search(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe or '_'}-{digest}"


def read(path: str | Path) -> File | None:
    """The baseline file at `path`; None only if there is none.

    Raises BaselineError if it is malformed, or not a regular file, or cannot be read.
    """
    path = Path(path)
    content = read_bytes(path)
    return None if content is None else _decode(content, path)


def read_bytes(path: Path) -> bytes | None:
    """The content of a file, None only if there is none. Raises BaselineError if it cannot be had."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BaselineError(f"{path}: is not a regular file, so it is no baseline. Move it away and record anew.")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        remedy = "Make it readable, or choose another folder with --quant-baseline-path."
        raise BaselineError(f"{path}: cannot be read: {cause(error)}. {remedy}") from error


def _decode(content: bytes, path: Path) -> File:
    return parse(readable(content, path), path)


def readable(content: bytes, path: Path) -> str:
    """The text of a file. Raises BaselineError if it is none."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        file = shlex.quote(str(path))
        raise BaselineError(
            f"{path}: line {line}: found binary data (byte {error.start} is not UTF-8), expected a baseline in JSON. "
            f"Restore it with `git checkout -- {file}`, or delete it and record anew."
        ) from None


def find_other_hardware(root: str | Path, hardware_key: str, model: str) -> list[tuple[str, Path]]:
    """The files of `model` for other hardware, as (name of the hardware's folder, path), sorted by that name.

    The folder's name is the hardware key wherever the key is a safe name; the exact key is in the file. The files are
    not read. Raises BaselineError if `root` cannot be listed; a root that does not exist holds no files.
    """
    own = path_for(root, hardware_key, model)
    try:
        folders = sorted(p.name for p in Path(root).iterdir() if p.is_dir() and p.name != own.parent.name)
        paths = [(name, Path(root) / name / own.name) for name in folders]
        return [(name, path) for name, path in paths if path.exists()]
    except FileNotFoundError:
        return []
    except OSError as error:
        remedy = "Make it a readable folder, or choose another with --quant-baseline-path."
        raise BaselineError(f"{root}: cannot be listed: {cause(error)}. {remedy}") from error


def merge(file: File | None, hardware: Mapping[str, Any], model: str, new_entries: Iterable[Entry]) -> File:
    """`file` with `new_entries` in the place of those of the same metric, format and identity; all others stay.

    Of two new entries of one identity the last counts. Raises BaselineError if `file` is of another model or hardware.
    """
    if file is not None and (file.model, file.hardware.get("key")) != (model, hardware.get("key")):
        raise BaselineError(
            f"baseline of {file.model} on {file.hardware.get('key')}: measurements of {model} on {hardware.get('key')} "
            "cannot be put into it. The file was moved or copied: move it back, or delete it and record anew."
        )
    merged = {entry.key: entry for entry in (file.entries if file else ())}
    merged.update((entry.key, entry) for entry in new_entries)
    return File(hardware, model, tuple(merged.values()))


def prune(file: File, keep: Callable[[Entry], bool]) -> File:
    """`file` with only the entries for which `keep` is true."""
    return File(file.hardware, file.model, tuple(entry for entry in file.entries if keep(entry)))


def write(path: str | Path, file: File) -> bool:
    """Replace the content of `path` by `file`; False if it was there already, byte for byte, and nothing was done.

    The content goes to a temporary file in the same folder, to the disk, and then into place by one rename. A symbolic
    link stays, its target is replaced. An existing file keeps its permissions, a new one gets those of the umask.

    Raises BaselineError, and leaves the old file, if `file` cannot be rendered, if what lies there is malformed or of a
    newer schema, or if the system refuses (disk full, read-only, ...).
    """
    path = Path(path)
    content = render(file, path).encode()
    existing = read_bytes(path)
    if existing == content:
        return False
    if existing is not None:
        _decode(existing, path)
    try:
        _replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        fate = "nothing was recorded" if existing is None else "the old file is untouched"
        remedy = _REMEDY.get(error.errno or 0, "Correct the cause, then record again")
        raise BaselineError(f"{path}: cannot be written: {cause(error)}; {fate}. {remedy}.") from error
    return True


def _replace(target: Path, content: bytes) -> None:
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(target.stat().st_mode)
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # a rename would replace it all the same
    atomic.replace(target, content, prefix="baseline", mode=mode)
