"""What is in force for a run of pytest with some arguments: pytest itself reads its configuration, up to the point
where it would begin to collect tests."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_quant.configuration import table
from pytest_quant.configuration.reading import as_pytest
from pytest_quant.configuration.said import TABLE, Said
from pytest_quant.declarations import OPTIONS, Option
from pytest_quant.options import Settled, settle


@dataclass(frozen=True)
class Row:
    """One option, as it is in force."""

    option: Option
    value: Any
    """None where it is not set; plain data."""
    origin: str
    """Where it comes from, in words: the kind of place, without its file."""
    file: Path | None
    """The file that says it, where one does."""
    told: bool
    """Whether anybody said it; else it is a default."""
    problem: str | None
    """What is wrong with it; then ``value`` is as it was written, or None where that cannot be told."""


@dataclass(frozen=True)
class Answer:
    """All that is in force."""

    rootpath: Path
    inipath: Path | None
    table: Path | None
    """The file that holds ``[tool.pytest-quant]``; None where no file does."""
    rows: tuple[Row, ...]
    problems: tuple[str, ...]


def ask(arguments: Sequence[str]) -> Answer:
    """What a run of ``pytest ARGUMENTS`` started here would be told. ``conftest.py`` files are imported as in that run,
    no test is. :class:`UsageError` where pytest itself cannot read its configuration."""
    return as_pytest(arguments, _answer)


def _answer(config: pytest.Config) -> Answer:
    settled = settle(config)
    found = settled.sources.table
    return Answer(
        rootpath=config.rootpath,
        inipath=config.inipath,
        table=found.file if found.found else None,
        rows=tuple(_row(config, option, settled) for option in OPTIONS),
        problems=settled.problems,
    )


def _row(config: pytest.Config, option: Option, settled: Settled) -> Row:
    said = settled.sources.said[option.name]
    problem = settled.wrong.get(option.name)
    if option.name in settled.sources.wrong:
        return Row(option, None, "see the mistake", None, True, problem)
    return Row(
        option=option,
        value=_plain(option, settled.values[option.name]) if problem is None else _written(said),
        origin=_origin(config, option, said),
        file=said.origin.file,
        told=said.origin.kind not in ("default", "CI"),
        problem=problem,
    )


def _written(said: Said) -> Any:
    """A value that cannot be understood, as text where JSON has no other way to say it: a date, infinity."""
    try:
        json.dumps(said.value, allow_nan=False)
    except (TypeError, ValueError):
        return said.shown()
    return said.value


def _plain(option: Option, value: Any) -> Any:
    """A value as JSON has it; in the form that the table takes."""
    if option.kind == "arguments" and value:
        return {name: json.loads(text) for name, text in value}
    if option.kind == "checkpoints" and value:
        return dict(value)
    if isinstance(value, tuple):
        return list(value) or None
    return str(value) if isinstance(value, Path) else value


def _origin(config: pytest.Config, option: Option, said: Said) -> str:
    kind = said.origin.kind
    if kind == "command line":
        return _by(config, (option.flag,), (option.flag + "=",))
    if kind == "override":
        starts = tuple(before + option.ini + "=" for before in ("", "-o", "--override-ini="))
        return f"-o, {_by(config, (), starts)}"
    if kind == "ini":
        return _section(said.origin.file)
    if kind == "table":
        return TABLE
    return "CI is set" if kind == "CI" else "default"


def _by(config: pytest.Config, whole: tuple[str, ...], starts: tuple[str, ...]) -> str:
    """Which of the three parts of pytest's command line has a word; the later ones win."""
    overridden = any(word.startswith("addopts=") for word in config.getoption("override_ini") or ())
    addopts = "addopts of -o" if overridden else f"addopts in {config.inipath.name if config.inipath else 'no file'}"
    parts = (
        ("command line", map(str, config.invocation_params.args)),
        ("PYTEST_ADDOPTS", shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))),
        (addopts, config.getini("addopts")),
    )
    for name, words in parts:
        if any(word in whole or word.startswith(starts) for word in words):
            return name
    return "command line"  # by a file of arguments, @FILE


def _section(file: Path | None) -> str:
    """The section of pytest's ini file that options stand in."""
    if file is None or file.suffix == ".ini":
        return "[pytest]"
    if file.suffix == ".cfg":
        return "[tool:pytest]"
    document = table.document(file)
    if "pytest" in document:
        return "[pytest]"
    return "[tool.pytest.ini_options]" if "ini_options" in document["tool"]["pytest"] else "[tool.pytest]"
