"""All subcommands of the real parser, and the examples in their help."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator

from pytest_quant import cli


def parsers(parser: argparse.ArgumentParser | None = None) -> Iterator[argparse.ArgumentParser]:
    """The parser of the whole command line, and that of every subcommand below it."""
    parser = cli.parser() if parser is None else parser
    yield parser
    for each in subcommands(parser).values():
        yield from parsers(each)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def leaves() -> list[argparse.ArgumentParser]:
    """Those that do something."""
    return [parser for parser in parsers() if not subcommands(parser)]


def examples() -> list[list[str]]:
    """The words behind ``pytest-quant`` of every example in every help text, up to where a shell takes over, or where
    two spaces begin a remark."""
    found = []
    for parser in parsers():
        _, _, text = (parser.epilog or "").partition("examples:\n")
        for line in re.findall(r"^  pytest-quant (.*)$", text, re.MULTILINE):
            words = shlex.split(re.split(r"\s{2,}", line)[0], comments=True)
            ends = [place for place, word in enumerate(words) if word in (">", "|", "&&")]
            found.append(words[: ends[0]] if ends else words)
    return found
