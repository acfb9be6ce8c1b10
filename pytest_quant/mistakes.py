"""Errors that nobody raised on purpose, in one line: what the system or a library refuses, and bugs of our own."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path

DEBUG = "PYTEST_QUANT_DEBUG"
"""The environment variable that has tracebacks printed."""


def unexpected(error: Exception) -> str:
    """What is said of an error. Its traceback is printed where :data:`DEBUG` is set; of a bug it is kept in a file
    otherwise, so that a run of hours need not be repeated to see it."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    shown = bool(os.environ.get(DEBUG))
    if shown:
        print(text, end="", file=sys.stderr)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory: free some, or use a smaller model, fewer windows or another machine"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("pytest_quant"):
        return (
            f"the library {error.name} is missing: pytest-quant doctor says what is needed for which format, and "
            f"pip install 'pytest-quant[transformers]' is enough for most"
        )
    first = next(iter(str(error).splitlines()), "")
    where = "the traceback is above" if shown else _kept(text)
    return (
        f"unexpected {type(error).__name__}{f': {first}' if first else ''} ({_place(error)}); this is most likely a "
        f"bug of pytest-quant: please report it with the command and the traceback; {where}"
    )


def _place(error: Exception) -> str:
    """Where it was raised, and the line of ours that led there."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parent)]
    frame = ours[-1] if ours else frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _kept(text: str) -> str:
    try:
        number, name = tempfile.mkstemp(prefix="pytest-quant-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError:
        return f"{DEBUG}=1 prints it"
    return f"it is in {name}"
