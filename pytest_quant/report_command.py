"""``pytest-quant report``: run records as one page."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant import answering
from pytest_quant.cache import expanded
from pytest_quant.errors import QuantError, UsageError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION = """What did a run find, how near are its limits, and what does it look like? Writes one HTML file that
needs no network: verdicts with their margins, quality against memory and speed, how each gate decided, layers, the
roofline, the environment. Several records, such as those of shards, become one page, grouped by hardware."""
_EXAMPLES = """examples:
  pytest-quant report run.json                # writes quant-report.html
  pytest-quant report run.json --history quant-history   # across commits
  pytest-quant report shard1.json shard2.json -o all.html
  pytest-quant report run.json -o run.md      # Markdown instead

A run writes it by itself with pytest --quant-report=PATH.html."""


def add(commands: Subparsers) -> None:
    """Add ``report`` to a command's subcommands."""
    parser = commands.add_parser(
        "report",
        help="run records as an HTML page (or Markdown)",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    parser.add_argument("records", metavar="RUN.json", nargs="+", help="what pytest --quant-json wrote")
    parser.add_argument("--history", metavar="DIR", help="a folder of --quant-history, for pictures across commits")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        default="quant-report.html",
        help="an .html or .md file (default: %(default)s)",
    )
    answering.add_json(parser)
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Read and check the records, write the page and return the exit code."""
    place = Path(expanded(told.output))
    is_html = place.suffix.lower() in (".html", ".htm")
    if not is_html and place.suffix.lower() != ".md":
        raise UsageError(f"{place}: a report is written as .html or .md; name it so, such as quant-report.html")
    records = [read(Path(expanded(name))) for name in told.records]
    if is_html:
        from pytest_quant.history import read as read_history
        from pytest_quant.report.html import libraries, page

        libraries.check()
        history = None if told.history is None else read_history(Path(expanded(told.history)))
        content = page.render(records, history)
    else:
        content = _markdown(records, told)
    _write(place, content)
    if told.json:
        data = {
            "written": str(place),
            "bytes": len(content.encode("utf-8")),
            "records": list(told.records),
            "measurements": sum(len(record["measurements"]) for record in records),
        }
        return answering.answer(data)
    print(f"written: {place}")
    return 0


def read(place: Path) -> Mapping[str, Any]:
    """A run record, checked as a side of a comparison is; :class:`QuantError` with the place of what is wrong."""
    from pytest_quant.comparing import run_record
    from pytest_quant.report.html import view

    if place.is_dir():
        raise UsageError(f"{place}: this is a folder; name a file in it, which pytest --quant-json wrote")
    found = run_record.load(place)
    if found is None:
        raise QuantError(f"{place}: this is no run record. Name a file that pytest --quant-json wrote.")
    run_record.side(found, place)
    try:
        view.run(found)
    except QuantError as error:
        raise QuantError(f"{place}: {error}") from error
    return found


def _markdown(records: Sequence[Mapping[str, Any]], told: argparse.Namespace) -> str:
    if told.history is not None:
        raise UsageError("--history is drawn in HTML only: leave it out, or write an .html file with -o")
    from pytest_quant.report.html import view
    from pytest_quant.report.markdown import COMMENT, render

    share = COMMENT // len(records) - 1
    said = []
    for name, record in zip(told.records, records, strict=True):
        try:
            said.append(render(record, share))
        except view.DAMAGE as error:
            raise QuantError(f"{name}: {view.damaged('measurements, skipped, environment', error)}") from error
    return "\n".join(said)


def _write(place: Path, content: str) -> None:
    from pytest_quant import atomic

    if place.is_dir():
        raise UsageError(f"{place}: this is a folder; name a file in it, such as {place / 'quant-report.html'}")
    try:
        atomic.replace(place, content.encode("utf-8"), prefix=place.name)
    except OSError as error:
        raise QuantError(f"{place}: cannot be written: {atomic.cause(error)}. Name another place with -o.") from error
