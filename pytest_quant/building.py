"""``pytest-quant reference build``: what an unquantized model says of a corpus, stored for other machines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_quant import answering, asking
from pytest_quant.errors import QuantError
from pytest_quant.reference import commands
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers


_HIGHEST_FLOOR = 1e-3
_DESCRIPTION = """Scores a text with the unquantized model and stores what it says of each token, in the cache. Tests
with the same model, reference, corpus and protocol then need not load it, also on a machine on which it does not fit:
see pytest-quant reference export."""
_EXAMPLES = """examples:
  pytest-quant reference build org/name --reference bf16
  pytest-quant reference build ./model --protocol gptq-512 --max-windows 64"""


def add(actions: Subparsers) -> None:
    """Add ``build`` to the actions of ``pytest-quant reference``; its options are those of the pytest plugin."""
    parser = actions.add_parser(
        "build",
        help="score a text with the unquantized model, and store what it says",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    asking.add_model(parser)
    asking.add_text(parser)
    asking.add_source(parser)
    parser.add_argument("--max-windows", metavar="N", type=int, help="only so many windows of the text (default: all)")
    commands.add_cache_dir(parser)
    answering.add_json(parser)
    parser.set_defaults(run=build)


def build(told: argparse.Namespace) -> int:
    """Build and store a reference, and say where it is, its size and its floor."""
    from pytest_quant.session import Session

    spec = ModelSpec(asking.source(told), asking.reference(told))
    with answering.undisturbed(told):
        session = Session(asking.settings(told), asking.progress())
        session.check(spec, spec.reference)
        path, floor = session.build_reference(spec)
    entries = [entry for entry in commands.store(told).entries() if entry.path == path]
    if not told.json:
        print(commands.table(entries))
        print(f"stored in {path}")
        print(f"floor: {floor:.1e} nats a token (the reference against its own file)")
    if not floor < _HIGHEST_FLOOR:
        raise QuantError(f"{path}: the reference does not answer as its own file says; do not use it")
    if told.json:
        return answering.answer({"references": list(map(commands.described, entries)), "floor": floor})
    return 0
