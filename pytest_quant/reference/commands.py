"""`pytest-quant reference`: stored references, listed, carried from machine to machine and verified."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quant.cache import expanded, user_cache
from pytest_quant.reference.errors import StoreError
from pytest_quant.reference.store import Entry, Store

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_WIDEST = (21, 9, 19, 11)  # characters of model, format, protocol and corpus
_SHORT = 8  # digits of a digest in a list


def add(commands: Subparsers) -> Subparsers:
    """Add `reference` to a command's subcommands; returns its own subcommands, to which others may be added.

    Each sets `run`, which takes the parsed arguments and returns the exit code: 0, or 2 if any file is damaged.
    """
    reference = commands.add_parser(
        "reference", help="what unquantized models said, stored for machines on which they do not fit"
    )
    actions = reference.add_subparsers(metavar="ACTION")
    _action(actions, "list", _list, "the stored references, each verified")

    export = _action(actions, "export", _export, "copy a stored reference to a file, for another machine")
    export.add_argument("digest", metavar="DIGEST", nargs="?", help="its first digits; not needed if there is one only")
    export.add_argument("--to", metavar="FILE", help="a file or folder (default: DIGEST.safetensors here)")

    import_ = _action(actions, "import", _import, "verify exported files and copy them into the cache")
    import_.add_argument("files", metavar="FILE", nargs="+")

    verify = _action(actions, "verify", _verify, "read everything and say what is damaged; exit code 2 if anything is")
    verify.add_argument("files", metavar="FILE", nargs="*", help="exported files (default: all in the cache)")
    verify.add_argument("--delete", action="store_true", help="delete what is damaged in the cache; never a FILE")
    return actions


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    """Add `--cache-dir`, as every subcommand of `reference` has it; :func:`store` reads it."""
    parser.add_argument("--cache-dir", metavar="DIR", help="where the cache lies (default: the user's cache folder)")


def store(told: argparse.Namespace) -> Store:
    """The store in the folder that the command line names, or else in the user's cache."""
    return Store(expanded(told.cache_dir) if told.cache_dir else user_cache())


def _action(
    actions: Subparsers, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    add_cache_dir(parser)
    parser.set_defaults(run=run)
    return parser


def _list(told: argparse.Namespace) -> int:
    here = store(told)
    entries = here.entries()
    if not entries:
        print(f"no stored references in {here.folder}")
    else:
        print(table(entries))
    return 2 if any(entry.damage for entry in entries) else 0


def _export(told: argparse.Namespace) -> int:
    here = store(told)
    digest = told.digest or _only(here)
    target = here.export(digest, expanded(told.to) if told.to else Path())
    print(f"exported {_content(here.verify([target])[0])}\nto {target}")
    return 0


def _only(here: Store) -> str:
    """The digest of the one reference that is there. Raises StoreError if there is none, or more."""
    entries = here.entries()
    digests = sorted({entry.digest for entry in entries})
    if len(digests) == 1:
        return digests[0]
    if not digests:
        raise StoreError(f"{here.folder}: holds no stored reference, so there is nothing to export.")
    raise StoreError(f"{here.folder}: holds several references; give the first digits of one:\n{table(entries)}")


def _import(told: argparse.Namespace) -> int:
    here = store(told)
    code = 0
    for name in told.files:
        try:
            reference = here.import_(expanded(name))
        except StoreError as error:
            print(f"pytest-quant: {error}", file=sys.stderr)
            code = 2
            continue
        path = here.path(reference.key.digest, "imported")
        print(f"imported {_content(here.verify([path])[0])}\nto {path}")
    return code


def _verify(told: argparse.Namespace) -> int:
    here = store(told)
    entries = here.verify([expanded(name) for name in told.files] if told.files else None)
    if not entries:
        print(f"no stored references in {here.folder}")
    for entry in entries:
        print(f"sound    {entry.path}" if entry.damage is None else f"damaged  {entry.damage}")
        if told.delete and here.remove_damaged(entry):
            print(f"deleted  {entry.path}")
    return 2 if any(entry.damage for entry in entries) else 0


def table(entries: Sequence[Entry]) -> str:
    """Aligned lines, seldom wider than 90 columns; below them a line for each damaged file."""
    rows = [("DIGEST", "MODEL", "FORMAT", "PROTOCOL", "CORPUS", "WINDOWS", "SIZE", "ORIGIN")]
    rows += [_row(entry) for entry in entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"damaged: {entry.damage}" for entry in entries if entry.damage)])


def _row(entry: Entry) -> tuple[str, str, str, str, str, str, str, str]:
    shortened = [
        text if len(text) <= width else f"{text[: width - 1]}…"
        for text, width in zip(_names(entry), _WIDEST, strict=True)
    ]
    model, format, protocol, corpus = shortened
    windows = "damaged" if entry.damage else f"{entry.windows}/{entry.total}"
    return entry.digest[:_SHORT], model, format, protocol, corpus, windows, _size(entry.bytes), entry.origin


def _names(entry: Entry) -> tuple[str, str, str, str]:
    engine = "" if entry.engine in ("transformers", "?") else f" {entry.engine}"
    return entry.model, f"{entry.dtype}{engine}", entry.protocol, entry.corpus


def _content(entry: Entry) -> str:
    model, format, protocol, corpus = _names(entry)
    extent = f"{entry.windows} of {entry.total} windows, top {entry.top_k}, {_size(entry.bytes)}"
    return f"{entry.digest[:_SHORT]}: {model}, {format}, {protocol} on {corpus}: {extent}"


def _size(count: int) -> str:
    for unit, bytes_each in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= bytes_each:
            return f"{count / bytes_each:.1f} {unit}"
    return f"{count} B"
