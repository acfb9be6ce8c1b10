"""``pytest-quant compare``: what became of the measurements of one side on the other."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pytest_quant import answering
from pytest_quant.cache import expanded
from pytest_quant.gates.verdict import Verdict
from pytest_quant.visible import one_line

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION = """What became of each measurement, from OLD to NEW? Compares baselines (quant-baselines) or run
records (written by pytest --quant-json) by the rules of a test run: quality window by window, speed by its ratio.

With --fail, exit code 1: something regressed, failed or was not measured; 2: something could not be judged (missing,
incomparable, unreadable). Without it: 2 only for a file that cannot be read."""
_EXAMPLES = """examples:
  pytest-quant compare quant-baselines merged --fail
  pytest-quant compare old.json new.json --only-changed
  pytest-quant compare old.json new.json --json > changes.json"""


def add(commands: Subparsers) -> None:
    """Add ``compare`` to a command's subcommands."""
    parser = commands.add_parser(
        "compare", help="two runs or baselines, measurement by measurement", description=_DESCRIPTION, epilog=_EXAMPLES
    )
    parser.add_argument(
        "old", metavar="OLD", help="a folder of baselines, a baseline file, a run record, or HISTORY@COMMIT"
    )
    parser.add_argument("new", metavar="NEW", help="the same, of later")
    parser.add_argument("--fail", action="store_true", help="say by the exit code what was found")
    parser.add_argument("--allow-missing", action="store_true", help="no exit code 2 for what NEW does not have")
    parser.add_argument("--only-changed", action="store_true", help="leave out what passed")
    answering.add_json(parser)
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Read both sides, print the comparison and return the exit code."""
    from pytest_quant.comparing import judging, sides
    from pytest_quant.report import comparison

    old, new = sides.read(expanded(told.old)), sides.read(expanded(told.new))
    damaged = [*old.damaged, *new.damaged]
    for sentence in damaged:
        print(f"pytest-quant: {one_line(sentence)}", file=sys.stderr)
    rows, beyond = judging.compare(old, new), judging.beyond(old, new)
    code = judging.exit_code(
        rows, fail=told.fail, unreadable=bool(damaged), allow_missing=told.allow_missing, nothing=not rows
    )
    shown = [row for row in rows if row.verdict is not Verdict.PASSED or not told.only_changed]
    if told.json:
        data = {
            "old": told.old,
            "new": told.new,
            "rows": comparison.plain(shown),
        }
        if damaged:
            data["unreadable"] = damaged
        return answering.answer(data, code)
    known = {**old.hardware, **new.hardware}
    for line in comparison.table(shown, {key: str(of["name"]) for key, of in known.items() if "name" in of}):
        print(one_line(line))
    print(*([""] if shown else []), comparison.summary(rows, beyond), sep="\n" if shown else "")
    return code
