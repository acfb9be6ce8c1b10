"""``pytest-quant config``: what is in force, and where each value comes from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant import answering, visible
from pytest_quant.declarations import GROUPS

if TYPE_CHECKING:
    from pytest_quant.configuration.inquiry import Answer, Row

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION = """\
What would `pytest` be told here, and by whom? Each option of the plugin with
its value and the place that says it: the command line, PYTEST_ADDOPTS, addopts,
pytest's ini file, [tool.pytest-quant] of pyproject.toml, the environment
variable CI, or the default. pytest itself reads its configuration for that,
conftest.py files with it; no test is collected and no model is loaded. All
mistakes are printed, not only the first.

Exit code: 0 if all is right, 2 if something cannot be understood."""
_EPILOG = """\
examples:
  pytest-quant config
  pytest-quant config --json
  pytest-quant config -- --quant-full -o quant_price=2.5
"""
_NOTE = "Arguments of a test's own markers win over all of this."


def add(commands: Subparsers) -> None:
    """Add ``config`` to a command's subcommands."""
    parser = commands.add_parser(
        "config",
        help="which options are in force here, and where each comes from",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    answering.add_json(parser)
    parser.add_argument(
        "arguments", metavar="-- ARGUMENT", nargs="*", help="what pytest would be started with, after two dashes"
    )
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Ask pytest, print the answer and return the exit code."""
    from pytest_quant.configuration import inquiry

    answer = inquiry.ask([word for word in told.arguments if word != "--"])
    code = 2 if answer.problems else 0
    if told.json:
        answering.answer(plain(answer), code)
    else:
        print(visible.lines(lines(answer)))
    for problem in answer.problems:
        print(f"pytest-quant: {visible.one_line(problem)}", file=sys.stderr)
    return code


def plain(answer: Answer) -> dict[str, Any]:
    """The answer as JSON has it (docs/configuration.md); what is not there is absent."""
    files = {"ini_file": answer.inipath, "table_file": answer.table}
    return {
        "rootdir": str(answer.rootpath),
        **{name: str(file) for name, file in files.items() if file is not None},
        "options": [_plain(row) for row in answer.rows],
        "problems": list(answer.problems),
    }


def _plain(row: Row) -> dict[str, Any]:
    option = row.option
    found: dict[str, Any] = {
        "option": option.name,
        "group": option.group,
        "value": row.value,
        "origin": row.origin,
        "told": row.told,
        "default": (False if option.kind == "switch" else option.default),
        "unset": option.unset,
        "default_in_ci": option.in_ci,
        "problem": row.problem,
        "file": str(row.file) if row.file is not None else None,
        "flag": option.flag if option.on_command_line else None,
        "ini": option.ini if option.in_files else None,
        "key": option.key if option.in_files else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def lines(answer: Answer) -> list[str]:
    """The answer for people: the options that somebody set first in each part, and marked."""
    width = max(len(row.option.key) for row in answer.rows)
    shown = {row.option.name: _shown(row, answer.rootpath) for row in answer.rows}
    values = min(36, max(map(len, shown.values())))
    out = [
        f"rootdir: {answer.rootpath}",
        f"pytest's ini file: {_near(answer.inipath, answer.rootpath) if answer.inipath else 'none'}",
        f"[tool.pytest-quant]: {_near(answer.table, answer.rootpath) if answer.table else 'none'}",
        "",
        "* is set by somebody, ! cannot be understood, the rest are defaults.",
        _NOTE,
    ]
    for group, title in GROUPS.items():
        rows = [row for row in answer.rows if row.option.group == group]
        out += ["", title[0].upper() + title[1:]]
        for row in sorted(rows, key=lambda row: not row.told):
            mark = "!" if row.problem else "*" if row.told else " "
            origin = f"{_near(row.file, answer.rootpath)} {row.origin}" if row.file else row.origin
            out.append(f"{mark} {row.option.key:<{width}}  {shown[row.option.name]:<{values}}  {origin}")
    return out


def _near(file: Path, rootpath: Path) -> str:
    return str(file.relative_to(rootpath)) if file.is_relative_to(rootpath) else str(file)


def _shown(row: Row, rootpath: Path) -> str:
    if row.value is None:
        return f"({row.option.unset})" if row.option.unset else "not set"
    if isinstance(row.value, bool):
        return "on" if row.value else "off"
    if isinstance(row.value, list):
        return ", ".join(map(str, row.value))
    if isinstance(row.value, dict):
        return ", ".join(f"{name}={value}" for name, value in row.value.items())
    text = f"{row.value:g}" if isinstance(row.value, float) else str(row.value)
    return text.removeprefix(f"{rootpath}/")
