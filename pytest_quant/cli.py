"""The command ``pytest-quant``. Exit codes: 0 all held, 1 a gate broke or a budget is not kept, 2 could not judge,
130 interrupted, 141 nobody read what it printed (``| head``)."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module

from pytest_quant import __version__, answering, mistakes, parsing
from pytest_quant.errors import QuantError, StoreWarning

GROUPS: tuple[tuple[str, Mapping[str, str]], ...] = (
    (
        "What can run here?",
        {
            "doctor": "pytest_quant.doctor",
            "matrix": "pytest_quant.matrix_command",
            "plan": "pytest_quant.planning.command",
        },
    ),
    (
        "Is it still good?",
        {
            "compare": "pytest_quant.compare",
            "history": "pytest_quant.history_command",
            "report": "pytest_quant.report_command",
            "baseline": "pytest_quant.baseline_commands",
        },
    ),
    (
        "Where is it lost?",
        {
            "scan": "pytest_quant.scan",
            "floor": "pytest_quant.floor",
        },
    ),
    (
        "Preparing",
        {
            "init": "pytest_quant.init.command",
            "reference": "pytest_quant.reference_command",
            "quantize": "pytest_quant.quantize",
            "config": "pytest_quant.config_command",
            "completion": "pytest_quant.completion",
        },
    ),
)
"""Each question with the commands that answer it, and the module whose ``add(commands)`` adds each. Only the one that
is asked for is imported; all of them for help and for what is misspelt."""

_DESCRIPTION = """Quantization regression testing of language models: what a model loses, gains and takes when its
weights are stored in fewer bits, and whether that got worse. The tests themselves run under pytest; this command
answers what is asked before and after."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", StoreWarning)
        try:
            code = _run(words)
            sys.stdout.flush()  # here it is told that nobody reads on
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            return 128 + 13  # as of a program that SIGPIPE ends
    for warning in heard:
        if issubclass(warning.category, StoreWarning):
            print(f"pytest-quant: {warning.message}", file=sys.stderr)
    return code


def _run(words: list[str]) -> int:
    """Parse and run; what goes wrong is said where people look, and on standard output too where a program asked."""
    try:
        told = parser(*words[:1]).parse_args(words)
        if not hasattr(told, "run"):
            print(told.parser.format_help(), end="")
            return 2  # nothing was asked, so nothing is judged
        return int(told.run(told))
    except BrokenPipeError:
        raise
    except QuantError as error:
        text, code = str(error), 2
    except KeyboardInterrupt:
        text, code = "interrupted", 130
    except Exception as error:
        text, code = mistakes.unexpected(error), 2
    print(f"pytest-quant: {text}", file=sys.stderr)
    return answering.answer({"error": text}, code) if answering.asked(words) else code


def parser(command: str = "") -> parsing.Groups:
    """The parser of the whole command line; with one subcommand only where that is named, which is quicker."""
    found = parsing.Groups(prog="pytest-quant", description=_DESCRIPTION, epilog=parsing.EPILOG)
    found.add_argument("--version", action="version", version=f"pytest-quant {__version__}")
    one = command == "--version" or any(command in commands for _, commands in GROUPS)
    for question, commands in GROUPS:
        found.add_group(question, [import_module(commands[name]) for name in commands if name == command or not one])
    return found
