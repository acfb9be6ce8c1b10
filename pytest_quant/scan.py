"""``pytest-quant scan``: which layers a format hurts, and which to keep wide for a budget."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quant import answering, asking
from pytest_quant.errors import UsageError
from pytest_quant.formats import registry
from pytest_quant.reference.commands import add_cache_dir
from pytest_quant.spec import ModelSpec
from pytest_quant.writing import json_file, write_json

if TYPE_CHECKING:
    from pytest_quant.formats.rounding import Rounding
    from pytest_quant.metrics.keeping import Budget
    from pytest_quant.reference.commands import Subparsers


_DESCRIPTION = """Where does a format lose quality? Puts one layer at a time into the format, the rest unquantized, and
ranks the layers by how far the model's predictions move (KL divergence) and by the loss in nats a token. Given a
budget, finds the fewest layers to leave unquantized so that the rest keeps it, and prints the lines to paste.

Exit code 1: the budget is not kept even so."""
_EXAMPLES = """examples:
  pytest-quant scan ./model --format nf4
  pytest-quant scan org/name --format nf4 --reference bf16 --max-ratio 1.05
  pytest-quant scan ./model --numeric int4 --group-size 64 --blocks --json"""


def add(commands: Subparsers) -> None:
    """Add ``scan`` to the command's subcommands."""
    parser = commands.add_parser(
        "scan",
        help="which layers a format hurts, and which to leave unquantized",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    asking.add_model(parser)
    what = parser.add_argument_group("what the layers are put into")
    what.add_argument("--format", metavar="NAME", help="a format (default: nf4, unless --numeric is given)")
    what.add_argument("--numeric", metavar="NAME", help="instead: weights rounded to int2 ... int8, fp8, nf4, fp4")
    what.add_argument("--strategy", metavar="NAME", help="of --numeric, who shares a scale: tensor, channel or group")
    what.add_argument("--group-size", metavar="N", type=int, help="weights in a group; smaller where it does not fit")
    what.add_argument(
        "--checkpoint", metavar="PLACE", help="folder or hub id of --format, where that is made beforehand"
    )
    what.add_argument("--blocks", action="store_true", help="a whole decoder block at a time, not a single layer")
    what.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        default=[],
        help="only these layers, e.g. '*.down_proj'; may be repeated",
    )
    how = parser.add_argument_group("how it is measured")
    how.add_argument(
        "--windows", metavar="N", type=int, default=8, help="pieces of the text that are scored (default: %(default)s)"
    )
    asking.add_text(how, "gptq-512")
    budget = parser.add_argument_group("a budget to keep, with the worst layers unquantized")
    limits = budget.add_mutually_exclusive_group()
    limits.add_argument("--max", metavar="PPL", type=float, help="perplexity above the reference's, e.g. 1.0")
    limits.add_argument("--max-ratio", metavar="R", type=float, help="perplexity over the reference's, e.g. 1.05")
    limits.add_argument("--max-nats", metavar="X", type=float, help="nats a token above the reference's, e.g. 0.02")
    parser.add_argument(
        "--top", metavar="N", type=int, default=20, help="layers that are printed (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", help="also write all of it to a file, as JSON")
    asking.add_source(parser)
    add_cache_dir(parser)
    answering.add_json(parser)
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Scan, print the table and, for a budget, what to keep wide; 1 where the budget is not kept even so."""
    from pytest_quant.report import sensitivity as report
    from pytest_quant.sensitivity import Sensitivity
    from pytest_quant.session import Session

    if told.top < 1:
        raise UsageError("--top must be 1 or more")
    asked, budget, spec = _asked(told), _budget(told), _spec(told)
    place = json_file(told.output, "--output") if told.output else None
    settings, progress = asking.settings(told), asking.progress()
    with answering.undisturbed(told):
        session = Session(settings, progress)
        for name in (spec.reference, *([asked] if isinstance(asked, str) else [])):
            session.check(spec, name)
        sensitivity = Sensitivity(settings, session.device, session.population, session.model, progress)
        of = "block" if told.blocks else "layer"
        scan = sensitivity.scan(spec, asked, of=of, windows=told.windows, only=told.only)
    record, code = scan.record(), 0
    if not told.json:
        print(report.render(scan, told.top))
    if budget is not None:
        sys.stdout.flush()
        with answering.undisturbed(told):
            kept = sensitivity.keep(spec, asked, scan, budget)
        record["keep"], code = kept.record(), 0 if kept.holds else 1
        if not told.json:
            print(f"\n{report.render_kept(scan, kept)}")
    if place is not None:
        write_json(place, record)
    return answering.answer(record, code) if told.json else code


def _asked(told: argparse.Namespace) -> str | Rounding:
    """The format or the rounding of the command line."""
    from pytest_quant.formats.rounding import Rounding

    if told.numeric is None:
        if told.strategy is not None or told.group_size is not None:
            raise UsageError("--strategy and --group-size are of --numeric, e.g. --numeric int8 --strategy channel")
        return registry.get(told.format or "nf4").name
    if told.format is not None:
        raise UsageError("give --format or --numeric, not both")
    return Rounding.asked(told.numeric, told.strategy, told.group_size)


def _budget(told: argparse.Namespace) -> Budget | None:
    from pytest_quant.metrics.keeping import Budget

    if told.max is None and told.max_ratio is None and told.max_nats is None:
        return None
    return Budget(max_nats=told.max_nats, max_delta=told.max, max_ratio=told.max_ratio)


def _spec(told: argparse.Namespace) -> ModelSpec:
    spec = ModelSpec(asking.source(told), asking.reference(told), require_native=False)
    if told.checkpoint is None:
        return spec
    if told.format is None:
        raise UsageError("--checkpoint is of a --format")
    return replace(spec, checkpoints=((told.format, told.checkpoint),))
