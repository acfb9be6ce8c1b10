"""The command ``pytest-quant``. Exit codes: 0 all held, 1 a gate broke or a budget is not kept, 2 could not judge,
130 interrupted, 141 nobody read what it printed (``| head``)."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from pytest_quant import __version__, answering, mistakes, parsing
from pytest_quant.errors import QuantError, StoreWarning
from pytest_quant.visible import one_line

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
    _prepare_streams()
    if sys.stdout is None:
        _tell("standard output is closed, so nothing was done: leave it open, or send it to a file")
        return 2
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", StoreWarning)
        try:
            try:
                code = _run(words)
            finally:  # --help ends the program
                sys.stdout.flush()  # here it is told that nobody reads on, or that the disk is full
        except BrokenPipeError:
            _give_up_output()
            return 128 + 13  # as of a program that SIGPIPE ends
        except OSError as error:
            _give_up_output()
            _tell(f"standard output cannot be written: {error.strerror or error}")
            return 2
    for warning in heard:
        if issubclass(warning.category, StoreWarning):
            _tell(str(warning.message))
    return code


def _prepare_streams() -> None:
    """What a terminal or a pipe cannot show is printed as ``\\u00e9``; complaints have somewhere to go."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is None:  # closed: else they would go to standard output
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  as long as the process


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # standard error is full, or nobody reads it: the exit code says it
        print(f"pytest-quant: {one_line(text)}", file=sys.stderr, flush=True)


def _give_up_output() -> None:
    """Let go what cannot be written: Python flushes once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_fails() -> bool:
    """Whether the error at hand is that of standard output."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


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
        if isinstance(error, OSError) and _output_fails():
            raise
        text, code = mistakes.unexpected(error), 2
    _tell(text)
    if not answering.asked(words):
        return code
    try:
        answering.answer({"error": text}, code)
        sys.stdout.flush()
        return code
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        _give_up_output()  # it was told already that something cannot be written, or else this is
        return code


def parser(command: str = "") -> parsing.Groups:
    """The parser of the whole command line; with one subcommand only where that is named, which is quicker."""
    found = parsing.Groups(prog="pytest-quant", description=_DESCRIPTION, epilog=parsing.EPILOG)
    found.add_argument("--version", action="version", version=f"pytest-quant {__version__}")
    one = command == "--version" or any(command in commands for _, commands in GROUPS)
    for question, commands in GROUPS:
        found.add_group(question, [import_module(commands[name]) for name in commands if name == command or not one])
    return found
