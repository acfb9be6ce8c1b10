"""The head of the page: how all its runs stand in a word, and why."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_quant.report.html.told import Broken, Overall, Run
from pytest_quant.report.standing import WORDS, worst

_NAMED = 3
"""Broken gates that the head of the page names."""
_SIGNS = {
    "red": ("bad", "✗"),
    "interrupted": ("open", "…"),
    "empty": ("open", "∅"),
    "undecided": ("open", "…"),
    "green": ("good", "✓"),
}


def overall(runs: Sequence[Run]) -> Overall:
    """The standing of all runs: that of the worst of them; each run's own sentence is among the reasons."""
    found = worst([each.standing for each in runs])
    tone, symbol = _SIGNS[found.word]
    ranked = sorted(runs, key=lambda run: tuple(WORDS).index(run.standing.word))
    reasons = []
    for run in ranked:
        of = f"{run.hardware or 'hardware not known'}: {run.standing.said}. " if len(runs) > 1 else ""
        reasons.append(f"{of}{run.standing.sentence}")
    if found.word == "red":
        reasons += _first_reasons([each for run in runs for each in run.broken])
    if found.word == "green":
        reasons += _tightest(runs)
    return Overall(tone, symbol, found.said.capitalize(), tuple(reasons))


def _first_reasons(broken: Sequence[Broken]) -> list[str]:
    said = [f"{each.format} {each.metric}: {'; '.join(each.reasons) or each.verdict}" for each in broken[:_NAMED]]
    return said if len(broken) <= _NAMED else [*said, f"and {len(broken) - _NAMED} more"]


def _tightest(runs: Sequence[Run]) -> list[str]:
    """Which gate has the least room, where a share of a budget is known."""
    rows = [row for each in runs for group in each.groups for row in group.rows if row.used]
    if not rows:
        return []
    row = max(rows, key=lambda row: float(row.used))
    return [f"Least room: {row.format} {row.metric}, {row.room} ({row.limit})."]
