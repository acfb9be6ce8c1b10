"""Is a file the baseline that a run would have written, at the place where a run looks for it?

A baseline that a merge tool, a formatter or a hand changed is found here before it is committed. A file that cannot be
read is one problem, in the words of a run; a file that can be read may be at the wrong place, or in another form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_quant.baseline.joining import place
from pytest_quant.baseline.schema import BaselineError, File, parse, render
from pytest_quant.baseline.store import path_for, read_bytes, readable


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file."""

    path: Path
    kind: str
    """``unreadable`` (not the JSON of a baseline), ``misplaced`` or ``form``."""
    text: str
    """A line that names the file and says what to do."""
    fixable: bool = False
    """Whether writing the same content again mends it."""


@dataclass(frozen=True)
class Checked:
    """One file, what it holds where it can be read, and what is wrong with it."""

    path: Path
    file: File | None
    findings: tuple[Finding, ...]


def files_at(place: Path) -> list[Path]:
    """The files that are meant by a path: itself, or every JSON file in and below a folder, sorted.

    Raises BaselineError where there is no such path.
    """
    if place.is_dir():
        return sorted(path for path in place.rglob("*.json") if path.is_file())
    if not place.exists():
        raise BaselineError(f"{place}: there is no such folder or file. Give a folder of baselines, or files of one.")
    return [place]


def check(path: Path) -> Checked:
    """Read one file and compare it with what a run would write. Raises BaselineError where the system refuses."""
    content = read_bytes(path)
    if content is None:
        raise BaselineError(f"{path}: there is no such file any more. Check the files that are there.")
    try:
        file = parse(readable(content, path), path)
        misplaced = list(_misplaced(path, file))  # which refuses names that no file can have
    except BaselineError as error:
        return Checked(path, None, (Finding(path, "unreadable", str(error)),))
    return Checked(path, file, (*misplaced, *_form(path, file, content)))


def _misplaced(path: Path, file: File) -> Iterable[Finding]:
    """Whether a run that measures this model on this hardware would find the file.

    Only its own name and its folder's are told: where the folder of all baselines is, nobody says here.
    """
    due = path_for(path.absolute().parent.parent, *place(file))
    here = path.absolute()
    if (here.parent.name, here.name) != (due.parent.name, due.name):
        belongs = f"{due.parent.name}/{due.name}"
        text = (
            f"{path}: is the baseline of {file.model} on {file.hardware['key']}, which a run looks for in {belongs}. "
            "Move it there, or delete it if it is a copy."
        )
        yield Finding(path, "misplaced", text)


def _form(path: Path, file: File, content: bytes) -> Iterable[Finding]:
    """Whether the bytes are those that a run writes; line ends are git's matter, which may give Windows its own."""
    if content.replace(b"\r\n", b"\n") != render(file, path).encode():
        text = (
            f"{path}: holds a sound baseline in another form than a run writes (edited by hand, or by a formatter), so "
            "the next run would rewrite it. Run `pytest-quant baseline check --fix`, and keep formatters away from it."
        )
        yield Finding(path, "form", text, fixable=True)
