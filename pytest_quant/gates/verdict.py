"""The nine verdicts."""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """What a gate or a baseline says. None but ``passed`` is green without a word.

    ``new`` was recorded now, ``missing`` has no baseline where one is required, ``incomparable`` has one of
    another identity, ``inconclusive`` has an interval that contains the limit, ``not-measured`` has no number.
    """

    PASSED = "passed"
    FAILED = "failed"
    NEW = "new"
    MISSING = "missing"
    REGRESSED = "regressed"
    IMPROVED = "improved"
    INCOMPARABLE = "incomparable"
    INCONCLUSIVE = "inconclusive"
    NOT_MEASURED = "not-measured"

    def __str__(self) -> str:
        return self.value
