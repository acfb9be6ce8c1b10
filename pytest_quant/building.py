"""``pytest-quant reference build``: what an unquantized model says of a corpus, stored for other machines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_quant import asking
from pytest_quant.errors import QuantError
from pytest_quant.reference import commands
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers


_HIGHEST_FLOOR = 1e-3


def add(actions: Subparsers) -> None:
    """Add ``build`` to the actions of ``pytest-quant reference``; its options are those of the pytest plugin."""
    text = "score every window with the unquantized model, and store what it says"
    parser = actions.add_parser("build", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    asking.add_text(parser)
    asking.add_source(parser)
    parser.add_argument("--max-windows", metavar="N", type=int, help="only the first N windows of the drawn order")
    commands.add_cache_dir(parser)
    parser.set_defaults(run=build)


def build(told: argparse.Namespace) -> int:
    """Build and store a reference, and say where it is, its size and its floor."""
    from pytest_quant.session import Session

    spec = ModelSpec(asking.source(told), asking.reference(told))
    session = Session(asking.settings(told), asking.progress())
    session.check(spec, spec.reference)
    path, floor = session.build_reference(spec)
    print(commands.table([entry for entry in commands.store(told).entries() if entry.path == path]))
    print(f"stored in {path}")
    print(f"floor: {floor:.1e} nats a token (the reference against its own file)")
    if not floor < _HIGHEST_FLOOR:
        raise QuantError(f"{path}: the reference does not answer as its own file says; do not use it")
    return 0
