"""Reads small files of ``/sys`` and ``/proc`` below a root that tests may choose."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path("/")


def text(path: Path) -> str | None:
    """A file's text without the white space around it, or ``None`` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The integer (decimal or ``0x...``) that a file holds, or ``None``."""
    try:
        return int(text(path) or "", 0)
    except ValueError:
        return None


def numbers(path: Path) -> dict[str, int]:
    """The ``name value`` lines of a file, as KFD and control groups print them; empty if it cannot be read."""
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text(path) or "", re.MULTILINE)}


def folders(path: Path, pattern: str) -> list[Path]:
    """What in a folder has a name that matches the regular expression whole, in the order of the numbers in it."""
    try:
        found = [entry for entry in path.iterdir() if re.fullmatch(pattern, entry.name)]
    except OSError:
        return []
    return sorted(found, key=lambda entry: ([int(digits) for digits in re.findall(r"\d+", entry.name)], entry.name))


def has_display_of(root: Path, vendor: int) -> bool:
    """Whether the PCI bus shows a display controller or accelerator (class 03 or 12) of a vendor."""
    for entry in folders(root / "sys/bus/pci/devices", ".*"):
        if number(entry / "vendor") == vendor and (number(entry / "class") or 0) >> 16 in (0x03, 0x12):
            return True
    return False
