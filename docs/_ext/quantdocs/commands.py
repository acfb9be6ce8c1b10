"""The page of the command ``pytest-quant``: the help of each subcommand, as it is printed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from unittest import mock

from pytest_quant import cli
from quantdocs import rst

INTRODUCTION = """
What each says of itself with ``--help``. Exit codes: 0 all held, 1 a gate broke or a budget is not kept, 2 could not
judge, 130 interrupted.
"""


def page() -> str:
    """The command and every subcommand, in the order of its help."""
    parts = [rst.title("Command line"), INTRODUCTION]
    with mock.patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}):
        for parser in parsers(cli.parser()):
            parts += [rst.title(parser.prog, "-"), rst.block("text", parser.format_help())]
    return rst.page(*parts)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser itself, then each below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from parsers(below)
