"""``pytest-quant history``: what moved across commits, and at which."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_quant import answering
from pytest_quant.cache import expanded
from pytest_quant.counting import counted

if TYPE_CHECKING:
    from pytest_quant.history.series import Series

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT = "quant-history"
_DESCRIPTION = """At which commit did a metric move beyond noise? Reads the runs that `pytest --quant-history=DIR` kept,
each measurement as a series in the order of commits, and names the first commit of each move: window by window where
windows were scored, and for speeds once three runs or more agree. A history without a change is said to have moved
with a probability of 1 % at most, in all its series together and however long it grows. Runs of other branches than the
one that is checked out are left out.

Exit code with --fail: 1 if a series is worse than what was accepted last (by a baseline, or at first), or the last run
that tried could not measure it; else 2 if nothing could be compared, or a file is damaged; else 0. Without --fail: 2 if
a file is damaged, else 0."""
_EXAMPLES = """examples:
  pytest --quant-history=quant-history      # in CI: restore and save it
  pytest-quant history                      # what moved, at which commit
  pytest-quant history --format nf4 --only-changed
  pytest-quant history --since 1f0c2ab --fail   # red while worse than there"""


def add(commands: Subparsers) -> None:
    """Add ``history`` to a command's subcommands."""
    parser = commands.add_parser(
        "history",
        help="the first commit at which a metric moved",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    parser.add_argument("place", metavar="DIR", nargs="?", default=_DEFAULT, help="where runs were kept (%(default)s)")
    parser.add_argument("--model", metavar="NAME", help="of this model")
    parser.add_argument("--format", metavar="NAME", help="of this format")
    parser.add_argument("--metric", metavar="NAME", help="of this metric: its marker's name, or words of the table")
    parser.add_argument("--hardware", metavar="KEY", help="of this hardware")
    parser.add_argument("--since", metavar="COMMIT", help="from this commit, or this date (2026-01-31), on")
    parser.add_argument("--only-changed", action="store_true", help="leave out what never moved")
    parser.add_argument("--all", action="store_true", help="with runs of other branches, which are not judged")
    parser.add_argument("--fail", action="store_true", help="say by the exit code what was found")
    answering.add_json(parser)
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Read the folder, print its series and return the exit code."""
    from pytest_quant.history.reading import read
    from pytest_quant.report import history as report
    from pytest_quant.visible import visible

    found = read(expanded(told.place), told.since, everything=told.all)
    for sentence in found.damaged:
        print(f"pytest-quant: {visible(sentence)}", file=sys.stderr)
    asked = [each for each in found.series if _asked(each, told)]
    code = exit_code(asked, fail=told.fail, damaged=bool(found.damaged))
    shown = [each for each in asked if not told.only_changed or report.is_changed(each)]
    if told.json:
        data = {"runs": found.runs, "others": found.others, "series": report.plain(shown)}
        if found.damaged:
            data["unreadable"] = list(found.damaged)
        return answering.answer(data, code)
    for line in report.table(shown, pictures=report.can_draw(sys.stdout.encoding)):
        print(line)
    print(
        *([""] if shown else []), report.summary(asked, found.runs, told.place, found.others), sep="\n" if shown else ""
    )
    if found.others and not told.all:
        print(f"{counted(found.others, 'run')} of other branches left out; --all shows what they measured")
    return code


def exit_code(series: Sequence[Series], *, fail: bool, damaged: bool) -> int:
    """1 if a series is worse than what was accepted, or was tried in vain; else 2 if a file is damaged or nothing could
    be compared, else 0; without ``fail`` only what is damaged counts."""
    if fail and any(each.state in ("worse", "not measured") for each in series):
        return 1
    judged = any(each.state in ("same", "better") for each in series)
    return 2 if damaged or (fail and not judged) else 0


def _asked(series: Series, told: argparse.Namespace) -> bool:
    pairs = ((told.model, series.model), (told.format, series.format), (told.hardware, series.hardware))
    metric = told.metric is None or told.metric == series.name or told.metric.casefold() in series.metric.casefold()
    return metric and all(wanted in (None, found) for wanted, found in pairs)
