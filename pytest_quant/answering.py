"""What every subcommand of ``pytest-quant`` answers with under ``--json``: one object on standard output, no more."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1


def add_json(parser: Any) -> None:
    """Add ``--json`` to a subcommand."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def asked(words: list[str]) -> bool:
    """Whether a command line asks for JSON, also where it cannot be parsed."""
    own = words[: words.index("--")] if "--" in words else words
    return any(word.partition("=")[0] == "--json" for word in own)


def answer(data: Mapping[str, Any], code: int = 0) -> int:
    """Print the object with its ``schema`` and ``exit_code``; returns the code."""
    found = {**plain(data), "schema": SCHEMA, "exit_code": code}
    print(json.dumps(found, indent=1, sort_keys=True, allow_nan=False))
    return code


def plain(value: Any) -> Any:
    """As JSON has it: in an object, what is unknown (``None``, NaN, infinite) or empty text is absent; in a list it is
    null. Dataclasses become objects of their fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        found = {str(name): plain(each) for name, each in value.items()}
        return {name: each for name, each in found.items() if each is not None and each != ""}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(each) for each in value)
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def undisturbed(told: argparse.Namespace) -> Iterator[None]:
    """While a model is at work: what libraries print goes to standard error where JSON was asked for, that of C and of
    child processes too, so that standard output has the answer only."""
    if not told.json:
        yield
        return
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # streams that are no files, as under pytest
            ours, theirs = sys.stdout.fileno(), sys.stderr.fileno()
            kept = os.dup(ours)
            os.dup2(theirs, ours)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, ours)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield
