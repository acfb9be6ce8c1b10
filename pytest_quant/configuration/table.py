"""``[tool.pytest-quant]``: the project's own table, in native TOML types."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quant.configuration.said import TABLE
from pytest_quant.declarations import OPTIONS
from pytest_quant.errors import like

NAME = "pytest-quant"
_OF_PYTEST = ("pytest.toml", ".pytest.toml")
"""Files whose tables are pytest's alone."""


@dataclass(frozen=True)
class Table:
    """What a file holds."""

    file: Path
    found: bool = False
    """Whether it has the table."""
    written: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Key as it is spelled there, and value, by the name of the option."""
    problems: tuple[str, ...] = ()


def file_of(rootpath: Path, inipath: Path | None) -> Path:
    """The file that may hold the table: pytest's own where that is a ``pyproject.toml`` or a TOML file named by ``-c``,
    else the ``pyproject.toml`` of the rootdir; the file that is no file by which ``-c`` asks for none."""
    if inipath is not None:
        if inipath.suffix == ".toml" and inipath.name not in _OF_PYTEST:
            return inipath
        if not inipath.is_file():
            return inipath
    return rootpath / "pyproject.toml"


def read(file: Path) -> Table:
    """The table of a file, as far as its keys are right; all that is wrong with them is told in it."""
    if not file.is_file():
        return Table(file)
    try:
        tool = document(file).get("tool", {})
    except (OSError, ValueError) as error:  # not there to read, no text, no TOML
        return Table(file, problems=(f"{file}: cannot be read: {error}",))
    if not isinstance(tool, dict) or NAME not in tool:
        other = [name for name in tool if name in ("pytest_quant", "pytestquant")] if isinstance(tool, dict) else []
        return Table(file, problems=tuple(f"{file}: [tool.{name}]: the table is called {TABLE}" for name in other))
    if not isinstance(tool[NAME], dict):
        return Table(file, problems=(f"{file}: tool.{NAME} must be a table: write {TABLE} and the keys below it",))
    written: dict[str, tuple[str, Any]] = {}
    problems = []
    for key, value in tool[NAME].items():
        name = f"quant-{key.replace('_', '-')}"
        if name not in _NAMES:
            problems.append(f"{file}: {TABLE} {key}: {_why_not(key)}")
        elif name in written:
            problems.append(f"{file}: {TABLE} has both {written[name][0]} and {key}, which are one: leave one out")
        else:
            written[name] = (key, value)
    return Table(file, True, written, tuple(problems))


def document(file: Path) -> dict[str, Any]:
    """A TOML file. :class:`OSError` where it cannot be read, :class:`ValueError` where it holds no TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    found: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    return found


def _why_not(key: str) -> str:
    """Of a key that the table does not have, what to do instead."""
    plain = key.replace("_", "-").removeprefix("quant-")
    if plain in _KEYS:
        return f"keys are without quant: write {plain}"
    if plain in _ELSEWHERE:
        return f"is said on the command line only: --quant-{plain}"
    return f"there is no such key{like(plain, _KEYS) or '; there are ' + ', '.join(_KEYS)}"


_NAMES = {option.name for option in OPTIONS if option.in_files}
_KEYS = tuple(option.key for option in OPTIONS if option.in_files)
_ELSEWHERE = {option.key for option in OPTIONS if not option.in_files}
