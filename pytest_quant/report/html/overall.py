"""The head of the page: the verdict of all its runs in one word, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_quant.counting import counted
from pytest_quant.report.html.told import TONES, Broken, Overall, Run

_NAMED = 3
"""Broken gates that the head of the page names."""


def overall(runs: Sequence[Run], counts: Mapping[str, int]) -> Overall:
    """The standing of all runs; ``counts`` are gates by verdict."""
    gates, broken = sum(counts.values()), sum(len(each.broken) for each in runs)
    skipped, troubles = sum(len(each.skipped) for each in runs), sum(len(each.troubles) for each in runs)
    reasons = []
    measured = gates - counts.get("not-measured", 0)
    if broken:
        reasons.append(f"{broken} of {counted(gates, 'gate')} {'breaks' if broken == 1 else 'break'} the build:")
        reasons += _first_reasons([each for run in runs for each in run.broken])
    if elsewhere := sum(len(each.elsewhere) for each in runs):
        reasons.append(f"{counted(elsewhere, 'test')} failed outside {'its' if elsewhere == 1 else 'their'} gates.")
    if troubles:
        reasons.append(f"{counted(troubles, 'trouble')} besides the gates, named below.")
    if any(each.incomplete for each in runs):
        reasons.append("The run was interrupted: tests that had not run yet are missing here.")
    if skipped:
        reasons.append(f"{counted(skipped, 'test')} skipped, with the reasons below.")
    if broken or troubles or elsewhere:
        return Overall("bad", "✗", "Red", tuple(reasons))
    if not measured:
        why = "Every quantization test was skipped." if skipped else "No test with a gate ran."
        return Overall("open", "∅", "Nothing was measured", (f"{why} This is no pass.", *reasons))
    undecided = sum(count for word, count in counts.items() if TONES[word] == "open")
    if undecided:
        reasons.insert(0, f"{undecided} of {counted(gates, 'gate')} could not be judged to the end.")
    if any(each.incomplete for each in runs):
        return Overall("open", "…", "Interrupted", tuple(reasons))
    if undecided:
        return Overall("open", "…", "No gate breaks, not all are decided", tuple(reasons))
    if expected := sum(count for word, count in counts.items() if TONES[word] == "bad"):
        reasons.insert(0, f"{expected} of {counted(gates, 'gate')} broke in tests that were expected to fail (xfail).")
        return Overall("good", "✓", "No gate broke unexpectedly", tuple(reasons))
    reasons += _tightest(runs)
    return Overall("good", "✓", f"All {gates} gates hold" if gates > 1 else "The gate holds", tuple(reasons))


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
