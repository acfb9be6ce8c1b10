"""What git knows of the commits that were measured. Nothing where there is no git or no repository: history then goes
by time. Git is only asked what it has: it writes nothing, fetches nothing, and runs no program of the repository's own
configuration."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 10.0
_QUIET = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True)
class Commit:
    """A commit that git knows; the smaller ``place``, the earlier: parents come before their children."""

    hash: str
    place: int
    seconds: int
    """Its date, since the epoch, and never before that of a parent among those that were asked for."""
    subject: str


def commits(hashes: Iterable[str], folder: Path) -> dict[str, Commit]:
    """Those of ``hashes`` that the repository around ``folder`` knows, by hash. Of a shallow clone that are few."""
    asked = sorted({each for each in hashes if _HASH.fullmatch(each)})
    if (
        not asked
        or (told := _git(folder, "cat-file", "--batch-check=%(objectname) %(objecttype)", given=asked)) is None
    ):
        return {}
    known = [line.split()[0] for line in told.splitlines() if line.endswith(" commit")]
    if not known:
        return {}
    found = _git(folder, "rev-list", "--no-walk=unsorted", "--format=%H %ct %s", "--stdin", given=known)
    if found is None:
        return {}
    ranks = {each: place for place, each in enumerate(_in_order(known, folder))}
    described = [line.split(" ", 2) for line in found.splitlines() if not line.startswith("commit ")]
    dates = {parts[0]: int(parts[1]) for parts in described if len(parts) > 1 and parts[1].isdecimal()}
    subjects = {parts[0]: _printable(parts[2]) if len(parts) > 2 else "" for parts in described}
    places: dict[str, Commit] = {}
    latest = 0
    for place, each in enumerate(sorted(dates, key=lambda each: (ranks.get(each, -1), dates[each], each))):
        latest = max(latest, dates[each]) if each in ranks else dates[each]
        places[each] = Commit(each, place, latest, subjects[each])
    return places


def first_parents(folder: Path) -> frozenset[str] | None:
    """The commits that were checked out before the one that is now, each the first parent of the next: what a merge
    brought in is not among them. None where git does not know, as in a shallow clone."""
    shallow = _git(folder, "rev-parse", "--is-shallow-repository")
    if shallow is None or shallow.strip() != "false":
        return None
    walked = _git(folder, "rev-list", "--first-parent", "HEAD")
    return None if walked is None else frozenset(walked.split())


def between(good: str, bad: str, folder: Path) -> int | None:
    """How many commits lie on the way from ``good`` to ``bad``, the latter counted; None where git does not know, or
    one does not lead to the other."""
    if not (_HASH.fullmatch(good) and _HASH.fullmatch(bad)):
        return None
    if _git(folder, "merge-base", "--is-ancestor", good, bad) is None:
        return None
    counted = _git(folder, "rev-list", "--count", f"{good}..{bad}")
    return int(counted) if counted is not None and counted.strip().isdecimal() else None


def dirty(folder: Path, ignoring: Collection[Path] = ()) -> bool | None:
    """Whether tracked files differ from the commit that is checked out; None where that is not known. ``ignoring`` are
    folders and files that do not count, such as those that the run itself writes."""
    here = folder.resolve()
    root = _git(here, "rev-parse", "--show-toplevel")
    if root is None or not root.strip():
        return None
    top = Path(root.strip())
    inside = [each.resolve() for each in ignoring]
    left_out = [
        f":(exclude,top,literal){each.relative_to(top).as_posix()}"
        for each in inside
        if each != top and each.is_relative_to(top)
    ]
    found = _git(here, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", *left_out)
    return None if found is None else bool(found.strip())


def _in_order(known: Sequence[str], folder: Path) -> list[str]:
    """The known commits, parents before children; empty where git cannot tell."""
    oldest = _git(folder, "merge-base", "--octopus", *known[:500]) if len(known) > 1 else None
    base = [f"^{oldest.strip()}"] if oldest and oldest.strip() else []
    walked = _git(folder, "rev-list", "--topo-order", "--reverse", "--stdin", given=[*known, *base])
    if walked is None:
        return []
    wanted = set(known)
    first = [oldest.strip()] if oldest and oldest.strip() in wanted else []
    return [*first, *(line for line in walked.splitlines() if line in wanted)]


def _printable(text: str) -> str:
    return "".join(each for each in text if each.isprintable())


def _git(folder: Path, *arguments: str, given: Sequence[str] = ()) -> str | None:
    """What git prints; None where it cannot be run, takes too long or fails."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command,
            input="".join(f"{line}\n" for line in given).encode(),
            capture_output=True,
            env={**os.environ, **_QUIET},
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
