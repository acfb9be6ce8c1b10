"""`pytest-quant reference`: stored references, listed, carried from machine to machine and verified."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant import answering
from pytest_quant.cache import expanded, user_cache
from pytest_quant.reference.errors import StoreError
from pytest_quant.reference.store import Entry, Store

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_WIDEST = (21, 9, 19, 11)  # characters of model, format, protocol and corpus
_SHORT = 8  # digits of a digest in a list


_DESCRIPTION = """What the unquantized model says of each token of a text, stored once: tests compare a format with it,
also on a machine on which the unquantized model does not fit. Build it where it fits, export it, import it where it
does not."""


def add(commands: Subparsers) -> Subparsers:
    """Add `reference` to a command's subcommands; returns its own subcommands, to which others may be added.

    Each sets `run`, which takes the parsed arguments and returns the exit code: 0, or 2 if any file is damaged.
    """
    reference = commands.add_parser(
        "reference",
        help="what an unquantized model says, stored for small machines",
        description=_DESCRIPTION,
        epilog="""examples:
  pytest-quant reference build org/name --reference bf16
  pytest-quant reference export --to model.safetensors
  pytest-quant reference import model.safetensors      # on the other machine""",
    )
    actions = reference.add_subparsers(metavar="ACTION")
    _action(actions, "list", _list, "the stored references, each verified", "pytest-quant reference list")

    export = _action(
        actions,
        "export",
        _export,
        "copy a stored reference to a file, for another machine",
        "pytest-quant reference export",
        "pytest-quant reference export 3f9c --to model.safetensors",
    )
    export.add_argument("digest", metavar="DIGEST", nargs="?", help="its first digits; not needed if there is one only")
    export.add_argument("--to", metavar="FILE", help="a file or folder (default: DIGEST.safetensors here)")

    import_ = _action(
        actions,
        "import",
        _import,
        "verify exported files and copy them into the cache",
        "pytest-quant reference import model.safetensors",
        "pytest-quant reference import *.safetensors --cache-dir ci-cache",
    )
    import_.add_argument("files", metavar="FILE", nargs="+", help="what pytest-quant reference export wrote")

    verify = _action(
        actions,
        "verify",
        _verify,
        "read everything and say what is damaged; exit code 2 if anything is",
        "pytest-quant reference verify",
        "pytest-quant reference verify model.safetensors",
        "pytest-quant reference verify --delete",
    )
    verify.add_argument("files", metavar="FILE", nargs="*", help="exported files (default: all in the cache)")
    verify.add_argument("--delete", action="store_true", help="delete what is damaged in the cache; never a FILE")
    return actions


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    """Add `--cache-dir`, as every subcommand of `reference` has it; :func:`store` reads it."""
    parser.add_argument("--cache-dir", metavar="DIR", help="the cache (default: the user's cache folder)")


def store(told: argparse.Namespace) -> Store:
    """The store in the folder that the command line names, or else in the user's cache."""
    return Store(expanded(told.cache_dir) if told.cache_dir else user_cache())


def _action(
    actions: Subparsers, name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str
) -> argparse.ArgumentParser:
    epilog = "\n".join(["examples:", *(f"  {line}" for line in examples)])
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
    add_cache_dir(parser)
    answering.add_json(parser)
    parser.set_defaults(run=run)
    return parser


def _list(told: argparse.Namespace) -> int:
    here = store(told)
    entries = here.entries()
    code = 2 if any(entry.damage for entry in entries) else 0
    if told.json:
        return answering.answer({"folder": here.folder, "references": list(map(described, entries))}, code)
    if not entries:
        print(f"no stored references in {here.folder}")
    else:
        print(table(entries))
    return code


def _export(told: argparse.Namespace) -> int:
    here = store(told)
    digest = told.digest or _only(here)
    target = here.export(digest, expanded(told.to) if told.to else Path())
    entry = here.verify([target])[0]
    if told.json:
        return answering.answer({"references": [described(entry)]})
    print(f"exported {_content(entry)}\nto {target}")
    return 0


def _only(here: Store) -> str:
    """The digest of the one reference that is there. Raises StoreError if there is none, or more."""
    entries = here.entries()
    digests = sorted({entry.digest for entry in entries})
    if len(digests) == 1:
        return digests[0]
    if not digests:
        raise StoreError(
            f"{here.folder}: holds no stored reference, so there is nothing to export. "
            f"Build one: pytest-quant reference build MODEL."
        )
    raise StoreError(f"{here.folder}: holds several references; give the first digits of one:\n{table(entries)}")


def _import(told: argparse.Namespace) -> int:
    here = store(told)
    code = 0
    made, failed = [], []
    for name in told.files:
        try:
            reference = here.import_(expanded(name))
        except StoreError as error:
            print(f"pytest-quant: {error}", file=sys.stderr)
            failed.append({"file": name, "error": str(error)})
            code = 2
            continue
        entry = here.verify([here.path(reference.key.digest, "imported")])[0]
        made.append(described(entry))
        if not told.json:
            print(f"imported {_content(entry)}\nto {entry.path}")
    return answering.answer({"references": made, "failed": failed}, code) if told.json else code


def _verify(told: argparse.Namespace) -> int:
    here = store(told)
    entries = here.verify([expanded(name) for name in told.files] if told.files else None)
    code = 2 if any(entry.damage for entry in entries) else 0
    if not entries and not told.json:
        print(f"no stored references in {here.folder}")
    found = []
    for entry in entries:
        if not told.json:
            print(f"sound    {entry.path}" if entry.damage is None else f"damaged  {entry.damage}")
        gone = bool(told.delete) and here.remove_damaged(entry)
        if gone and not told.json:
            print(f"deleted  {entry.path}")
        found.append({**described(entry), **({"deleted": True} if gone else {})})
    return answering.answer({"folder": here.folder, "references": found}, code) if told.json else code


def described(entry: Entry) -> dict[str, Any]:
    """The file as plain data; of a damaged one only what can still be told."""
    known = ("path", "digest", "origin", "bytes")
    content = ("model", "dtype", "engine", "protocol", "corpus", "windows", "total", "top_k")
    names = (*known, "damage") if entry.damage else (*known, *content)
    found: dict[str, Any] = answering.plain({name: getattr(entry, name) for name in names})
    return found


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
