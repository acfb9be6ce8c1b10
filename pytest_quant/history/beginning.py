"""From where on a history is looked at: ``--since``."""

from __future__ import annotations

import re

from pytest_quant.errors import UsageError
from pytest_quant.history.store import Run

_DATE = re.compile(r"\d{4}-[01]\d(-[0-3]\d(T.*)?)?")
_FEWEST = 4
"""Characters of a commit's hash, as git asks for."""


def since_then(runs: list[Run], since: str | None) -> list[Run]:
    """The runs from the first of a commit on, or those that began on a day or later; ``runs`` are in their order.

    Raises :class:`UsageError` where that names no run, or two commits.
    """
    if since is None:
        return runs
    if _DATE.fullmatch(since):
        if runs and not (later := [run for run in runs if run.started >= since]):
            latest = max(run.started for run in runs)
            raise UsageError(
                f"--since={since}: no run began then or later, the last did at {latest}; name that or earlier"
            )
        return later if runs else []
    if len(since) < _FEWEST or not since.isalnum():
        raise UsageError(
            f"--since={since}: name {_FEWEST} characters of a commit's hash or more, or a date (2026-01-31)"
        )
    places = {run.commit: place for place, run in reversed(list(enumerate(runs))) if run.commit}
    several = sorted(commit for commit in places if commit.startswith(since.lower()))
    if not several:
        raise UsageError(f"--since={since}: no run is of that commit; name one of the table, or a date (2026-01-31)")
    if len(several) > 1:
        raise UsageError(f"--since={since}: may be {' or '.join(each[:12] for each in several)}; name more of the hash")
    return runs[places[several[0]] :]
