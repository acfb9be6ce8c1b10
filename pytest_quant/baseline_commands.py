"""``pytest-quant baseline``: what is in baselines, joined from several runners, and cleaned."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant import answering, baseline, baseline_check, visible
from pytest_quant.cache import expanded
from pytest_quant.counting import counted
from pytest_quant.environment import timestamp
from pytest_quant.errors import UsageError
from pytest_quant.gates.gate import LIMITS

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT = "quant-baselines"
_DESCRIPTION = """Baselines are the accepted measurements of an earlier commit, which pytest --quant-baseline records
and compares with. They lie in quant-baselines, a file for each hardware and model, made to be committed."""
_SELECTORS = ("hardware", "model", "format", "metric", "test", "older_than")


def add(commands: Subparsers) -> None:
    """Add ``baseline`` with its actions to a command's subcommands."""
    parser = commands.add_parser(
        "baseline",
        help="accepted measurements: shown, checked, joined, pruned",
        description=_DESCRIPTION,
        epilog="""examples:
  pytest-quant baseline show
  pytest-quant baseline merge part-* --into merged
  pytest-quant baseline prune --format nf4 --yes""",
    )
    actions = parser.add_subparsers(metavar="ACTION")

    show = _action(
        actions,
        "show",
        _show,
        "what is there; exit code 2 if a file is damaged",
        "pytest-quant baseline show",
        "pytest-quant baseline show quant-baselines --json",
    )
    show.add_argument(
        "place", metavar="PATH", nargs="?", default=_DEFAULT, help="a folder or file (default: %(default)s)"
    )

    merge = _action(
        actions,
        "merge",
        _merge,
        "join what several runners measured; exit code 1 for a conflict",
        "pytest-quant baseline merge part-* --into merged",
        "pytest-quant baseline merge a b --into quant-baselines --on-conflict fail",
    )
    merge.add_argument("parts", metavar="PART", nargs="+", help="a folder of baselines, or a file")
    merge.add_argument("--into", metavar="DIR", required=True, help="where it goes; what lies there is joined too")
    merge.add_argument(
        "--on-conflict",
        metavar="HOW",
        choices=("newest", "fail"),
        default="newest",
        help="where values differ: newest takes the one that was recorded last (where that cannot be told, as fail), "
        "fail writes nothing and exits with 1 (default: %(default)s)",
    )

    baseline_check.add(actions)

    prune = _action(
        actions,
        "prune",
        _prune,
        "drop measurements; without --yes, only say which",
        "pytest-quant baseline prune --format nf4",
        "pytest-quant baseline prune --older-than 90d --yes",
    )
    prune.add_argument(
        "place", metavar="PATH", nargs="?", default=_DEFAULT, help="a folder or file (default: %(default)s)"
    )
    prune.add_argument("--hardware", metavar="KEY", help="of this hardware, as baseline show names it")
    prune.add_argument("--model", metavar="NAME", help="of this model, as baseline show names it")
    prune.add_argument("--format", metavar="NAME", help="of this format")
    prune.add_argument("--metric", metavar="NAME", choices=sorted(LIMITS), help="of this metric, e.g. perplexity_delta")
    prune.add_argument("--test", metavar="NODEID", help="recorded by this test, or by a test of this file or class")
    prune.add_argument("--older-than", metavar="AGE", help="recorded before a date (2026-01-31) or days ago (90d)")
    prune.add_argument("--yes", action="store_true", help="do it")


def _action(
    actions: Subparsers, name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str
) -> argparse.ArgumentParser:
    epilog = "\n".join(["examples:", *(f"  {line}" for line in examples)])
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
    answering.add_json(parser)
    parser.set_defaults(run=run)
    return parser


def _show(told: argparse.Namespace) -> int:
    from pytest_quant.report import baselines

    found = baseline.contents(expanded(told.place))
    _complain(found.damaged)
    if told.json:
        data: dict[str, Any] = {"measurements": baselines.listed(found.files)}
        if found.damaged:
            data["unreadable"] = list(map(str, found.damaged))
        return answering.answer(data, 2 if found.damaged else 0)
    if found.files:
        print(visible.lines(baselines.table(found.files)))
    elif not found.damaged:
        print(f"no baselines in {told.place}; pytest --quant-baseline records them")
    return 2 if found.damaged else 0


def _merge(told: argparse.Namespace) -> int:
    from pytest_quant.report import baselines

    into = expanded(told.into)
    parts = list(dict.fromkeys(expanded(name) for name in told.parts))
    others = [part for part in parts if part.resolve() != into.resolve()]
    read = [(part, baseline.contents(part)) for part in others]
    base = baseline.contents(into) if into.exists() else baseline.Contents(())
    damaged = [error for _, contents in [*read, (into, base)] for error in contents.damaged]
    damaged += _misplaced(into, base)
    if damaged:
        return _nothing(told, damaged, "nothing was written")
    joined = baseline.join(
        [baseline.Source(str(part), file) for part, contents in read for _, file in contents.files],
        [baseline.Source(str(into), file) for _, file in base.files],
    )
    empty = [str(part) for part, contents in read if not contents.files]
    disputed = [baselines.conflict(found) for found in joined.conflicts]
    refused = any(told.on_conflict == "fail" or not found.decided for found in joined.conflicts)
    written = [] if refused else [path for path in (_write(into, file) for file in joined.files) if path]
    entries = sum(len(file.entries) for file in joined.files)
    if told.json:
        data = {
            "measurements": entries,
            "files": len(joined.files),
            "written": written,
            "conflicts": disputed,
            "notes": list(joined.notes),
            "empty": empty,
        }
        return answering.answer(data, 1 if refused else 0)
    lines = [f"{part}: holds no baselines" for part in empty]
    for line in [*lines, *disputed, *joined.notes]:
        print(visible.one_line(line))
    if refused:
        print(f"{counted(len(disputed), 'conflict')}: nothing was written")
        return 1
    there = f"{counted(entries, 'measurement')} in {counted(len(joined.files), 'file')} of {told.into}"
    print(f"{there}, {len(written) or 'none'} of them written")
    return 0


def _write(root: Path, file: baseline.File) -> str | None:
    """Write one file to its place; its path if it changed."""
    path = baseline.path_for(root, *baseline.place(file))
    return path.as_posix() if baseline.write(path, file) else None


def _misplaced(root: Path, found: baseline.Contents) -> list[baseline.BaselineError]:
    """Files of a folder that is written to which lie where a run would not look for them."""
    wrong = []
    for path, file in found.files:
        place = baseline.path_for(root, *baseline.place(file))
        if path != place:
            wrong.append(baseline.BaselineError(f"{path}: is the baseline that belongs at {place}. Move it there."))
    return wrong


def _prune(told: argparse.Namespace) -> int:
    from pytest_quant.report import baselines

    if not any(getattr(told, name) for name in _SELECTORS):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in _SELECTORS)
        raise UsageError(f"baseline prune: say what goes, by one or more of {names}")
    before = None if told.older_than is None else moment(told.older_than, time.time())
    found = baseline.contents(expanded(told.place))
    if found.damaged:
        return _nothing(told, found.damaged, "nothing was pruned")
    gone = 0
    chosen: list[dict[str, Any]] = []
    for path, file in found.files:
        goes = [entry for entry in file.entries if _chosen(told, file, entry, before)]
        chosen += baselines.listed([(path, replace(file, entries=tuple(goes)))])
        for entry in () if told.json else goes:
            text = visible.one_line(baselines.line(*baseline.place(file), entry))
            print(f"{'pruned' if told.yes else 'would go'}: {text}")
        gone += len(goes)
        if goes and told.yes:
            _leave(path, baseline.prune(file, partial(_stays, goes)))
    if told.json:
        return answering.answer({"measurements": chosen, "pruned": bool(told.yes and gone)})
    verb = "pruned" if told.yes else "would go; --yes prunes them"
    print(f"{counted(gone, 'measurement')} {verb}" if gone else f"nothing in {told.place} is chosen by that")
    return 0


def _chosen(told: argparse.Namespace, file: baseline.File, entry: baseline.Entry, before: str | None) -> bool:
    """Whether all that was asked for holds. What has no date is never old."""
    found = {"hardware": file.hardware["key"], "model": file.model, "format": entry.format, "metric": entry.metric}
    if any(getattr(told, name) not in (None, value) for name, value in found.items()):
        return False
    if told.test is not None:
        test = str(entry.recorded.get("test", ""))
        if test != told.test and not test.startswith((f"{told.test}::", f"{told.test}[")):
            return False
    recorded = entry.recorded.get("date")
    return before is None or (isinstance(recorded, str) and recorded < before)


def _stays(goes: Sequence[baseline.Entry], entry: baseline.Entry) -> bool:
    return entry not in goes


def _leave(path: Path, file: baseline.File) -> None:
    """Write what is left; a file, and a folder, of nothing goes."""
    if file.entries:
        baseline.write(path, file)
        return
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def moment(age: str, now: float) -> str:
    """A date, or some days before ``now`` (seconds since the epoch), in the shape of ``recorded.date``.

    Raises :class:`UsageError` for anything else.
    """
    if days := re.fullmatch(r"(\d{1,5})d", age):
        return timestamp(now - 86400 * int(days[1]))
    try:
        return datetime.date.fromisoformat(age).isoformat()
    except ValueError:
        raise UsageError(f"--older-than={age}: write a date, such as 2026-01-31, or days, such as 90d") from None


def _nothing(told: argparse.Namespace, damaged: Sequence[baseline.BaselineError], outcome: str) -> int:
    """Say what is damaged, and that therefore nothing was done."""
    _complain(damaged)
    print(f"pytest-quant: {outcome}", file=sys.stderr)
    return answering.answer({"error": outcome, "unreadable": list(map(str, damaged))}, 2) if told.json else 2


def _complain(errors: Sequence[baseline.BaselineError]) -> None:
    for error in errors:
        print(f"pytest-quant: {visible.one_line(str(error))}", file=sys.stderr)
