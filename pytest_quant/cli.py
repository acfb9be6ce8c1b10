"""The command ``pytest-quant``. Exit codes: 0 all held, 1 a gate broke or a budget is not kept, 2 could not judge,
130 interrupted, 141 nobody read what it printed (``| head``)."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from pytest_quant import (
    __version__,
    baseline_commands,
    building,
    compare,
    config_command,
    doctor,
    floor,
    quantize,
    scan,
)
from pytest_quant.errors import QuantError, StoreWarning, UsageError
from pytest_quant.hardware import Device, detect, matrix, specs
from pytest_quant.planning import command as planning
from pytest_quant.reference import commands as reference

SIX = ("H100 SXM5", "A100", "A10G", "L40S", "RTX 4090", "RTX 3090")
"""The GPUs of the table that is widely copied."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code."""
    told = _parser().parse_args(arguments)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", StoreWarning)
        try:
            code: int = told.run(told)
            sys.stdout.flush()  # here it is told that nobody reads on
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            return 128 + 13  # as of a program that SIGPIPE ends
        except QuantError as error:
            print(f"pytest-quant: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            print("pytest-quant: interrupted", file=sys.stderr)
            code = 130
    for warning in heard:
        if issubclass(warning.category, StoreWarning):
            print(f"pytest-quant: {warning.message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pytest-quant", description="Quantization regression testing of language models."
    )
    parser.add_argument("--version", action="version", version=f"pytest-quant {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("matrix", help="which format runs on which units of which device")
    command.add_argument(
        "--device", metavar="NAME", action="append", help="a device (may be repeated); 'here' is this one"
    )
    command.add_argument(
        "--matrix", metavar="NAME", default="corrected", help="corrected (default), lesson or a TOML file"
    )
    command.add_argument("--diff", metavar="NAME", help="print the cells in which another matrix differs, with sources")
    command.set_defaults(run=_matrix)
    doctor.add(commands, _device)
    building.add(reference.add(commands))
    quantize.add(commands)
    scan.add(commands)
    floor.add(commands)
    planning.add(commands, _device)
    compare.add(commands)
    baseline_commands.add(commands)
    config_command.add(commands)
    return parser


def _matrix(told: argparse.Namespace) -> int:
    from pytest_quant.report.matrix import render_differences, render_matrix

    table = matrix.load(told.matrix)
    devices = [(name, _device(name)) for name in told.device or SIX]
    if told.diff is None:
        print(render_matrix(table, devices))
    else:
        other = matrix.load(told.diff)
        print(render_differences(matrix.differences(table, other, devices), table.name, other.name))
    return 0


def _device(name: str) -> Device:
    if name == "here":
        return detect()
    found = specs.device(name)
    if found is None:
        raise UsageError(f"no specification of the device {name!r}; known are 'here', {', '.join(specs.names())}")
    return found
