"""What the page says, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quant.report.rows import LOUDEST
from pytest_quant.report.standing import Standing

Record = Mapping[str, Any]

TONES = {
    "failed": "bad",
    "not-measured": "bad",
    "regressed": "bad",
    "missing": "open",
    "incomparable": "open",
    "inconclusive": "open",
    "new": "known",
    "improved": "good",
    "passed": "good",
}
SYMBOLS = {
    "failed": "✗",
    "not-measured": "∅",
    "regressed": "↘",
    "missing": "?",
    "incomparable": "≠",
    "inconclusive": "…",
    "new": "+",
    "improved": "↗",
    "passed": "✓",
}


@dataclass(frozen=True)
class Bar:
    """A margin as a bar: places on a line from 0 to 1, and the same in words."""

    value: float
    low: float
    high: float
    limit: float
    kept: bool
    smaller_is_better: bool
    text: str


@dataclass(frozen=True)
class Row:
    """One gate."""

    place: int
    """In the run's order, from 0."""
    format: str
    metric: str
    value: str
    interval: str
    limit: str
    baseline: str
    verdict: str
    bars: tuple[Bar, ...]
    number: str
    """The value as a plain number, empty where there is none: what the table is sorted by."""
    used: str
    """Of the fullest of its budgets, in the same way."""
    room: str
    """The same in words."""
    below: tuple[str, ...]

    @property
    def tone(self) -> str:
        return TONES[self.verdict]

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.verdict]

    @property
    def loudness(self) -> int:
        """0 for the verdict that counts most: what the table is sorted by."""
        return LOUDEST.index(self.verdict)


@dataclass(frozen=True)
class Group:
    """The gates of one test (all its formats) on one model."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Broken:
    """A gate that breaks its test, and everything that is known of why."""

    test: str
    title: str
    format: str
    metric: str
    verdict: str
    reasons: tuple[str, ...]
    next: tuple[str, ...]
    """What to do, commands and pieces of Python."""
    lines: tuple[str, ...]
    """Windows, layers, items: laid out as in the terminal."""

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.verdict]

    @property
    def tone(self) -> str:
        return TONES[self.verdict]


@dataclass(frozen=True)
class Run:
    """What one record holds."""

    hardware: str
    """Its name; of several runs on such hardware with a number, so that no two runs of a page are called the same."""
    groups: tuple[Group, ...]
    broken: tuple[Broken, ...]
    remarks: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str, str], ...]
    """Test, format, reason."""
    standing: Standing
    troubles: tuple[str, ...]
    incomplete: bool
    facts: tuple[tuple[str, str], ...]
    """The environment: name and value."""
    packages: tuple[tuple[str, str], ...]
    proofs: tuple[tuple[str, ...], ...]
    """Model, format, share of weights quantized, bits a weight, bytes, kernels; see :data:`PROOF_HEADERS`."""
    protocols: tuple[str, ...]
    """Each identity of a protocol as ``name: value`` pairs in a line."""
    models: tuple[str, ...]
    record: Record
    commit: str
    started: str


PROOF_HEADERS = ("model", "format", "weights quantized", "bits a weight", "weight bytes", "kernels")


@dataclass(frozen=True)
class Overall:
    """The standing of all in a word or two, and why."""

    tone: str
    symbol: str
    word: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """All runs of one page."""

    overall: Overall
    runs: tuple[Run, ...]
    counts: tuple[tuple[str, int], ...]
    """How many gates there are of each verdict, the one that counts most first."""
    version: str
