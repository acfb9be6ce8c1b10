"""The Python code that a task consists of besides its config: by content, wherever it lies."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

_SHORT = 16
_TESTS = ("conftest.py", "test_*.py", "*_test.py")
"""Beside a module, but no part of it unless it imports them."""


def digest(task: Any) -> str | None:
    """Of the files of all functions and classes that the task names, all modules beside them, and what these import
    that is not installed; None for a task without code of its own."""
    contents = sorted(_content(file) for file in files(task))
    return hashlib.sha256("".join(contents).encode()).hexdigest()[:_SHORT] if contents else None


def files(task: Any) -> frozenset[Path]:
    """Those files. A function of an installed library has its own file alone; what lm-eval ships with its tasks counts
    as code of theirs, the rest of lm-eval and Python itself do not."""
    first = {file for value in _named(task) for file in _behind(value) if not _is_of_python_or_lm_eval(file)}
    own = {file for file in first if not _is_installed(file)}
    folders = {file.parent for file in own}
    source = Path(str((getattr(task.config, "metadata", None) or {}).get("config_source")))
    if source.is_file() and any(source.resolve().parent in file.parents for file in own):
        folders.add(source.resolve().parent)
    waiting = [*own, *(file for folder in folders for file in _beside(folder))]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += [each for each in _imported(file) if not _is_installed(each)]
    return frozenset(first | seen)


def _named(task: Any) -> Iterator[Any]:
    """The task's class with its bases, and all callables of its config."""
    yield from type(task).__mro__
    yield from _callables(vars(task.config))


def _callables(value: Any) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from _callables([value.func, value.args, value.keywords])
    elif isinstance(value, Mapping):
        yield from _callables(list(value.values()))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            yield from _callables(each)
    elif callable(value):
        yield value
    elif hasattr(value, "__dict__"):
        yield from _callables(vars(value))


def _behind(value: Any) -> Iterator[Path]:
    """The files that a function, a class or a callable object is written in; of what is wrapped, both."""
    for each in {id(one): one for one in (value, inspect.unwrap(value), type(value))}.values():
        try:
            written = inspect.getsourcefile(each)
        except (OSError, TypeError):
            written = None
        module = sys.modules.get(str(getattr(each, "__module__", None)))
        for name in (written, getattr(module, "__file__", None)):
            if name and name.endswith(".py") and Path(name).is_file():
                yield Path(name).resolve()


def _beside(folder: Path) -> Iterator[Path]:
    return (file.resolve() for file in folder.glob("*.py") if not any(file.match(test) for test in _TESTS))


def _imported(file: Path) -> Iterator[Path]:
    """The files of modules that a module names in its imports, as far as they were imported."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from _modules(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from _modules([f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            base = file.parents[min(node.level, len(file.parents)) - 1].joinpath(*parts)
            yield from _written([base, *(base / alias.name for alias in node.names)])


def _modules(names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        for end in range(1, name.count(".") + 2):  # a package's own file, too
            file = getattr(sys.modules.get(".".join(name.split(".")[:end])), "__file__", None)
            if file and file.endswith(".py"):
                yield Path(file).resolve()


def _written(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if file.is_file():
                yield file.resolve()


def _is_installed(file: Path) -> bool:
    """Whether it came with Python or a distribution, whose version says what it is."""
    in_packages = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    return (in_packages or file.is_relative_to(_python())) and not _is_shipped_with_a_task(file)


def _is_of_python_or_lm_eval(file: Path) -> bool:
    """Whether it is no code of a task's, whoever wrote that."""
    if file.is_relative_to(_of_lm_eval()):
        return not _is_shipped_with_a_task(file)
    return file.is_relative_to(_python()) and {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _is_shipped_with_a_task(file: Path) -> bool:
    """Whether it lies in a folder of lm-eval's tasks; what lies above finds and builds them."""
    return _of_lm_eval() / "tasks" in file.parent.parents


@lru_cache(maxsize=1)
def _python() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


@lru_cache(maxsize=1)
def _of_lm_eval() -> Path:
    import lm_eval

    return Path(str(lm_eval.__file__)).resolve().parent


def _content(file: Path) -> str:
    """The hash of a file, however its lines end."""
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
