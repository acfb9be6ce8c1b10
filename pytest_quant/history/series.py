"""What a history says, as plain values: a series for each measurement, a point for each run that has it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One measurement of one run. ``value``, ``low`` and ``high`` are in the unit of the series."""

    commit: str | None
    """The whole hash; None where the run was in no repository."""
    started: str
    """Of the run, UTC, as in ``2026-11-21T22:48:39Z``."""
    value: float
    low: float | None
    """None for an end that is not bounded; an exact value has ``low == value == high``."""
    high: float | None
    verdict: str
    """Of the run: the limit's or the baseline's, the louder of the two."""
    moved: str = ""
    """``worse`` or ``better`` at the first run at which the series moved beyond noise; empty at all others."""
    change: str = ""
    """Since the level before, in a few characters with its unit; empty where there is nothing to compare with."""
    event: str = ""
    """What else sets this point apart, in a few words: ``another model: ...``, ``outlier``, ``not confirmed yet``."""
    reason: str = ""
    """Where it moved: the sentence that says from what to what, and what else is known to have changed."""
    began: str = ""
    """Where it drifted there: the commit (or start) at which the drift began."""
    before: str = ""
    """Where it moved: the commit of the last run that was as before; empty where that is not known."""
    between: int | None = None
    """Where it moved: commits from ``before`` to this one, this one counted; None where git does not know."""
    subject: str = ""
    """First line of the commit's message, where git knows it."""
    dirty: bool = False
    """Whether files of the working tree differed from the commit."""
    level: int = 0
    """Number of the level that the point belongs to: points of one number are alike but for noise."""
    run: str = ""
    """Name of the file that it was read from."""


@dataclass(frozen=True)
class Series:
    """One measurement across runs, in the order of commits where git knows it, else of time."""

    model: str
    format: str
    metric: str
    """In the words of the other tables, such as ``perplexity_delta`` or ``memory_budget weights``."""
    hardware: str
    """The key."""
    unit: str
    limit: float | None
    """Of the last run, on the value and in its unit; None where that run has none on it."""
    smaller_is_better: bool | None
    points: tuple[Point, ...]
    name: str = ""
    """The metric's own name: of its marker."""
    hardware_name: str = ""
    """For people; empty where unknown."""
    state: str = ""
    """Of the last run against the level that was accepted last: ``worse``, ``better``, ``same``, ``open`` where it
    could not be told, empty where there is nothing to compare with. ``not measured`` where the last run that tried has
    no number, ``retired`` where no run of several commits has tried."""
    test: str = ""
    """The node id of the last run's test; of several gates on one question that of the one with the loudest verdict."""
    behind: int = 0
    """Later commits whose runs on this hardware do not have this measurement."""
    reason: str = ""
    """Where it is ``not measured``: the commit, the day and why."""
    apart: bool = False
    """Whether its runs are of commits that do not lead to the one that is checked out; nothing is judged then."""


@dataclass(frozen=True)
class History:
    """All series of a folder of run records; ``damaged`` holds a sentence for each file that cannot be believed."""

    series: tuple[Series, ...]
    damaged: tuple[str, ...] = ()
    runs: int = 0
    """Those of the commits that lead to the one that is checked out, where git knows which they are."""
    others: int = 0
    """Runs of other branches."""
