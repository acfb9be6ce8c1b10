"""The nine verdicts."""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """What a gate or a baseline says. None but ``passed`` is green without a word.

    ``new`` was recorded now, ``missing`` has no baseline where one is required, ``incomparable`` has one of
    another identity, ``inconclusive`` has an interval that contains the limit, ``not-measured`` has no number.
    """

    PASSED = "passed"
    """Within its limit, and not worse than its baseline: green."""
    FAILED = "failed"
    """Beyond its limit, or NaN: red."""
    NEW = "new"
    """Had no baseline, and was recorded: green."""
    MISSING = "missing"
    """Has no baseline where one is required: red."""
    REGRESSED = "regressed"
    """Worse than its baseline: red, until it is accepted."""
    IMPROVED = "improved"
    """Better than its baseline: green."""
    INCOMPARABLE = "incomparable"
    """The baseline is of another model, protocol or parameters: red where baselines are required; or its file is
    damaged: always red."""
    INCONCLUSIVE = "inconclusive"
    """The interval contains the limit: red in CI, else green."""
    NOT_MEASURED = "not-measured"
    """There is no number: the proof failed, or the reference answers NaN: red."""

    def __str__(self) -> str:
        return self.value
