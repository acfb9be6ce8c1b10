"""``pytest-quant reference`` with all of its actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quant import building
from pytest_quant.reference import commands as stored

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``reference`` to the command's subcommands: what deals with files, and ``build``, which loads a model."""
    building.add(stored.add(commands))
