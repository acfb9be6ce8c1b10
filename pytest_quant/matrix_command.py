"""``pytest-quant matrix``: which format runs on which units of which device."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pytest_quant import answering, asking

if TYPE_CHECKING:
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Difference, Matrix
    from pytest_quant.reference.commands import Subparsers

SIX = ("H100 SXM5", "A100", "A10G", "L40S", "RTX 4090", "RTX 3090")
"""The GPUs of the table that is widely copied."""


_DESCRIPTION = """In which numeric types do a device's units multiply? A table for several devices; for one device
every answer with its reason and source, and what each library can run on it."""
_EXAMPLES = """examples:
  pytest-quant matrix
  pytest-quant matrix --device here
  pytest-quant matrix --device H100 --device "RTX 4090"
  pytest-quant matrix --diff lesson        # where a common table is wrong"""


def add(commands: Subparsers) -> None:
    """Add ``matrix`` to the command's subcommands."""
    command = commands.add_parser(
        "matrix",
        help="which numeric types run on which devices, with reasons",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    asking.add_device(command, action="append", help="a device, or 'here'; may be repeated (default: six usual GPUs)")
    asking.add_matrix(command)
    command.add_argument("--diff", metavar="NAME", help="print the cells in which another matrix differs, with sources")
    answering.add_json(command)
    command.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Print the table, or the cells in which two of them differ."""
    from pytest_quant.hardware import matrix
    from pytest_quant.report.matrix import render_differences, render_matrix

    table = matrix.load(told.matrix)
    devices = [(name, asking.device(name)) for name in told.device or SIX]
    if told.diff is None:
        if told.json:
            return answering.answer(
                {"matrix": table.name, "devices": [_cells(table, name, device) for name, device in devices]}
            )
        print(render_matrix(table, devices))
        return 0
    other = matrix.load(told.diff)
    found = matrix.differences(table, other, devices)
    if told.json:
        return answering.answer({"matrix": table.name, "other": other.name, "differences": list(map(_cell, found))})
    print(render_differences(found, table.name, other.name))
    return 0


def _cells(table: Matrix, name: str, device: Device) -> dict[str, Any]:
    """All that the table says of one device."""
    from pytest_quant.environment import describe_hardware
    from pytest_quant.hardware.matrix import NUMERICS

    return {
        "device": name,
        "hardware": describe_hardware(device),
        "units": [{"numeric": each, **answering.plain(table.units(each, device))} for each in NUMERICS],
        "backends": [
            {"backend": backend, "capability": each, **answering.plain(table.backend(backend, device, each))}
            for backend, each in sorted(table.capabilities)
        ],
    }


def _cell(found: Difference) -> dict[str, Any]:
    return {"device": found.label, "numeric": found.numeric, "first": found.first, "second": found.second}
