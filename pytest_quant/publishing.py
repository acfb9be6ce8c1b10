"""A finished run in every form that was asked for."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from pytest_quant.errors import QuantError
from pytest_quant.ledger import relative
from pytest_quant.options import Options

Record = dict[str, Any]
"""A run record (docs/run-record.md)."""
Write = Callable[[Path, Record], list[str]]
"""Writes a record to a place and returns what is to be said of it, a line each; :class:`OSError` or
:class:`QuantError` where it cannot."""


def publish(finished: Callable[[], Record], told: Options) -> tuple[list[str], list[str]]:
    """Write what was asked for. Returns good news and what could not be written, a line each; what one writer cannot
    do keeps none of the others from their work."""
    messages: list[str] = []
    failed: list[str] = []
    asked = list(_asked(told))
    try:
        record = finished() if asked else {}
    except Exception as error:
        return messages, [f"the run record could not be made: {bug(error)}"]
    for option, place, write in asked:
        try:
            messages += write(place, record)
        except OSError as error:
            failed.append(f"{option}: {place} cannot be written: {error.strerror or error}")
        except QuantError as error:
            failed.append(f"{option}: {error}")
        except Exception as error:
            failed.append(f"{option}: {place} was not written: {bug(error)}")
    return messages, failed


def bug(error: Exception) -> str:
    """What to say of an error that nobody foresaw: what it is, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = " ".join(traceback.format_exception_only(error)[-1].split())
    return f"{said}{where}. This is a bug of pytest-quant; please report it."


def places(told: Options) -> list[Path]:
    """Files and folders that a run writes."""
    found = (told.baseline_path, told.history, told.json, told.markdown, told.report)
    return [place for place in found if place is not None]


def _asked(told: Options) -> Iterable[tuple[str, Path, Write]]:
    """What the user wrote, the place and its writer, in the order of writing."""
    if told.history is not None:
        yield "--quant-history", told.history, _history
    if told.json is not None:
        yield "--quant-json", told.json, _json
    if told.report is not None:
        yield "--quant-report", told.report, partial(_report, told.history)
    if told.markdown is not None:
        yield "--quant-markdown", told.markdown, _markdown
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        yield "GITHUB_STEP_SUMMARY", Path(summary), _step_summary


def _history(place: Path, record: Record) -> list[str]:
    from pytest_quant.history.store import keep

    kept = keep(place, record)
    return [] if kept is None else [f"kept in the history as {relative(kept)}"]


def _json(place: Path, record: Record) -> list[str]:
    from pytest_quant.report.json import write

    write(place, record)
    return []


def _report(history: Path | None, place: Path, record: Record) -> list[str]:
    from pytest_quant.history import read
    from pytest_quant.report.html import page

    is_there = history is not None and history.is_dir()  # not before the first run that measured something
    page.write(place, [record], read(history) if history is not None and is_there else None)
    return [f"report: {relative(place)}"]


def _markdown(place: Path, record: Record) -> list[str]:
    from pytest_quant import atomic
    from pytest_quant.report.markdown import render

    atomic.replace(place, render(record).encode("utf-8"), prefix=place.name)
    return []


def _step_summary(place: Path, record: Record) -> list[str]:
    from pytest_quant.report.step_summary import append

    return append(place, record)
