"""``pytest-quant matrix``: which format runs on which units of which device."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_quant import asking

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers

SIX = ("H100 SXM5", "A100", "A10G", "L40S", "RTX 4090", "RTX 3090")
"""The GPUs of the table that is widely copied."""


def add(commands: Subparsers) -> None:
    """Add ``matrix`` to the command's subcommands."""
    command = commands.add_parser("matrix", help="which format runs on which units of which device")
    command.add_argument(
        "--device", metavar="NAME", action="append", help="a device (may be repeated); 'here' is this one"
    )
    command.add_argument(
        "--matrix", metavar="NAME", default="corrected", help="corrected (default), lesson or a TOML file"
    )
    command.add_argument("--diff", metavar="NAME", help="print the cells in which another matrix differs, with sources")
    command.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Print the table, or the cells in which two of them differ."""
    from pytest_quant.hardware import matrix
    from pytest_quant.report.matrix import render_differences, render_matrix

    table = matrix.load(told.matrix)
    devices = [(name, asking.device(name)) for name in told.device or SIX]
    if told.diff is None:
        print(render_matrix(table, devices))
    else:
        other = matrix.load(told.diff)
        print(render_differences(matrix.differences(table, other, devices), table.name, other.name))
    return 0
