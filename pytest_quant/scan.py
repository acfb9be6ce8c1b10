"""``pytest-quant scan``: which layers a format hurts, and which to keep wide for a budget."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quant import asking
from pytest_quant.errors import UsageError
from pytest_quant.formats import registry
from pytest_quant.reference.commands import add_cache_dir
from pytest_quant.spec import ModelSpec
from pytest_quant.writing import json_file, write_json

if TYPE_CHECKING:
    from pytest_quant.formats.rounding import Rounding
    from pytest_quant.metrics.keeping import Budget
    from pytest_quant.reference.commands import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``scan`` to the command's subcommands."""
    text = "which layers a format hurts, one at a time, and which to keep wide for a budget"
    parser = commands.add_parser("scan", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    what = parser.add_argument_group("what the layers are put into")
    what.add_argument("--format", metavar="NAME", help="a format, e.g. nf4 (default, unless --numeric is given)")
    what.add_argument("--numeric", metavar="NAME", help="a rounding of weights: int2 ... int8, fp8, nf4, fp4")
    what.add_argument("--strategy", metavar="NAME", help="of --numeric: tensor, channel or group")
    what.add_argument("--group-size", metavar="N", type=int, help="of --strategy group; smaller where it does not fit")
    what.add_argument("--checkpoint", metavar="PLACE", help="of --format, where that is made beforehand")
    what.add_argument("--blocks", action="store_true", help="a whole decoder block at a time")
    what.add_argument("--only", metavar="PATTERN", action="append", default=[], help="layers, e.g. '*.down_proj'")
    how = parser.add_argument_group("how it is measured")
    how.add_argument(
        "--windows", metavar="N", type=int, default=8, help="of the corpus, in its drawn order (%(default)s)"
    )
    asking.add_text(how, "gptq-512")
    budget = parser.add_argument_group(
        "a budget that the rest is to keep once the worst layers stay wide (exit code 1 where all of them do not do)"
    )
    limits = budget.add_mutually_exclusive_group()
    limits.add_argument("--max", metavar="PPL", type=float, help="perplexity above the reference's")
    limits.add_argument("--max-ratio", metavar="R", type=float, help="perplexity over the reference's")
    limits.add_argument("--max-nats", metavar="X", type=float, help="NLL a token above the reference's")
    parser.add_argument("--top", metavar="N", type=int, default=20, help="layers that are printed (%(default)s)")
    parser.add_argument("--json", metavar="PATH", help="write all of it there")
    asking.add_source(parser)
    add_cache_dir(parser)
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Scan, print the table and, for a budget, what to keep wide; 1 where the budget is not kept even so."""
    from pytest_quant.report import sensitivity as report
    from pytest_quant.sensitivity import Sensitivity
    from pytest_quant.session import Session

    if told.top < 1:
        raise UsageError("--top must be 1 or more")
    asked, budget, spec = _asked(told), _budget(told), _spec(told)
    place = json_file(told.json, "--json") if told.json else None
    settings, progress = asking.settings(told), asking.progress()
    session = Session(settings, progress)
    for name in (spec.reference, *([asked] if isinstance(asked, str) else [])):
        session.check(spec, name)
    sensitivity = Sensitivity(settings, session.device, session.population, session.model, progress)
    of = "block" if told.blocks else "layer"
    scan = sensitivity.scan(spec, asked, of=of, windows=told.windows, only=told.only)
    record, code = scan.record(), 0
    print(report.render(scan, told.top))
    if budget is not None:
        sys.stdout.flush()
        kept = sensitivity.keep(spec, asked, scan, budget)
        record["keep"], code = kept.record(), 0 if kept.holds else 1
        print(f"\n{report.render_kept(scan, kept)}")
    if place is not None:
        write_json(place, record)
    return code


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
