"""The corpus ``python-docstrings``: what the modules of Python's standard library say of themselves."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pytest_quant.errors import UsageError

NAME = "python-docstrings"
_NOT_THE_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"})


def documents() -> tuple[str, ...]:
    """The docstrings of each module, its classes and functions, one document a module, by the files' paths; about
    1.8 million characters in 3.11. Needs no network, and changes with Python.

    :class:`UsageError` where Python came without the sources of its library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found = tuple(text for text in map(_docstrings, sorted(_sources(folder))) if text)
    if not found:
        raise UsageError(f"the corpus {NAME!r}: {folder} holds no Python sources; name another corpus")
    return found


def _sources(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*.py"):
        if _NOT_THE_LIBRARY.isdisjoint(file.relative_to(folder).parts):
            yield file


def _docstrings(file: Path) -> str:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    said = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in said if text)
