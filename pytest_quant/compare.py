"""``pytest-quant compare``: what became of the measurements of one side on the other."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from pytest_quant.cache import expanded
from pytest_quant.gates.verdict import Verdict

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION = """Compare baselines or run records (--quant-json), measurement by measurement, by the rules of a run.
Exit code with --fail: 1 if anything regressed, failed or was not measured; else 2 if something could not be judged
(missing, incomparable, unreadable); else 0. Without --fail: 2 if a file cannot be read, else 0."""


def add(commands: Subparsers) -> None:
    """Add ``compare`` to a command's subcommands."""
    parser = commands.add_parser("compare", help="two runs or baselines, side by side", description=_DESCRIPTION)
    parser.add_argument("old", metavar="OLD", help="a folder of baselines, a baseline file or a run record")
    parser.add_argument("new", metavar="NEW", help="the same, of later")
    parser.add_argument("--fail", action="store_true", help="say by the exit code what was found")
    parser.add_argument("--allow-missing", action="store_true", help="no exit code 2 for what NEW does not have")
    parser.add_argument("--only-changed", action="store_true", help="leave out what passed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Read both sides, print the comparison and return the exit code."""
    from pytest_quant.comparing import judging, sides
    from pytest_quant.report import comparison

    old, new = sides.read(expanded(told.old)), sides.read(expanded(told.new))
    damaged = [*old.damaged, *new.damaged]
    for sentence in damaged:
        print(f"pytest-quant: {sentence}", file=sys.stderr)
    rows, beyond = judging.compare(old, new), judging.beyond(old, new)
    code = judging.exit_code(
        rows, fail=told.fail, unreadable=bool(damaged), allow_missing=told.allow_missing, nothing=not rows
    )
    shown = [row for row in rows if row.verdict is not Verdict.PASSED or not told.only_changed]
    if told.json:
        data = {
            "schema": comparison.SCHEMA,
            "old": told.old,
            "new": told.new,
            "rows": comparison.plain(shown),
            "exit_code": code,
        }
        if damaged:
            data["unreadable"] = damaged
        print(json.dumps(data, indent=1, sort_keys=True, allow_nan=False))
        return code
    known = {**old.hardware, **new.hardware}
    for line in comparison.table(shown, {key: str(of["name"]) for key, of in known.items() if "name" in of}):
        print(line)
    print(*([""] if shown else []), comparison.summary(rows, beyond), sep="\n" if shown else "")
    return code
