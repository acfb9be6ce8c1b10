"""How a finished run stands, in words: red with the reason, green, or neither because it says nothing. Every report
takes its headline from here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quant.counting import counted
from pytest_quant.report.naming import shown_metric
from pytest_quant.report.rows import LOUDEST, verdict

_BROKEN = ("failed", "not-measured", "regressed")
"""Verdicts that break a build whatever it was told, where a record does not say itself what broke it."""
_OPEN = ("missing", "incomparable", "inconclusive")
"""Verdicts that decide nothing."""
_NAMED = 3
WORDS = {
    "red": "red",
    "interrupted": "interrupted",
    "empty": "nothing measured",
    "undecided": "not all decided",
    "green": "green",
}
"""What each standing is called, the one that counts most first: several runs stand as the worst of them does."""


@dataclass(frozen=True)
class Standing:
    """Of one run record."""

    word: str
    """Of :data:`WORDS`; of a run that is interrupted and broken, ``red``."""
    text: str
    """Why, as the rest of one sentence."""
    broken: tuple[Mapping[str, Any], ...]
    """Measurements that make the run red."""
    elsewhere: tuple[str, ...]
    """Tests that failed though none of their gates is broken, in their bodies say."""
    unexpected: tuple[str, ...]
    """Tests that passed against a strict ``xfail``, which makes them fail."""

    @property
    def said(self) -> str:
        """The word as people read it."""
        return WORDS[self.word]

    @property
    def sentence(self) -> str:
        """The text with a capital where it begins with a word of ours: an error may begin with the name of a file."""
        ours = self.text.startswith(("of ", "nothing ", "the run "))
        return (self.text[0].upper() + self.text[1:] if ours else self.text).removesuffix(".") + "."


def standing(record: Mapping[str, Any]) -> Standing:
    """The standing of a run, from its record alone."""
    measurements: Sequence[Mapping[str, Any]] = record["measurements"]
    broken = tuple(each for each in measurements if is_broken(each, record.get("failed")))
    of_gates = {each["test"] for each in broken}
    unexpected = tuple(record.get("unexpected", ()))
    elsewhere = tuple(test for test in record.get("failed", ()) if test not in of_gates and test not in unexpected)
    troubles = record.get("troubles", ())
    measured = any("value" in each or each["verdict"] == "failed" for each in measurements)  # NaN is no number
    interrupted = bool(record.get("incomplete"))
    reasons = []
    if broken:
        reasons.append(f"{len(broken)} of {_gates(len(measurements))} broken: {_listed(broken)}")
    if elsewhere:
        whose = "its gates" if len(elsewhere) == 1 else "their gates"
        reasons.append(f"{counted(len(elsewhere), 'test')} failed outside {whose}")
    if unexpected:
        reasons.append(f"{counted(len(unexpected), 'test')} passed against xfail(strict=True)")
    reasons += [trouble.removesuffix(".") for trouble in troubles[:1]]
    if len(troubles) > 1:
        reasons.append(f"{counted(len(troubles) - 1, 'more error')} of the run")
    unwell = list(reasons)
    if interrupted:
        reasons.append("the run was interrupted")
    if not measured and not any(trouble.startswith("nothing was measured") for trouble in troubles):
        reasons.append(_nothing(record))
    if unwell:
        return Standing("red", "; ".join(reasons), broken, elsewhere, unexpected)
    if interrupted:
        rest = f"; until then {_counts(measurements)}" if measured else f"; {_nothing(record)}"
        return Standing("interrupted", f"the run did not get to its end{rest}", broken, elsewhere, unexpected)
    if not measured:
        return Standing("empty", f"{_nothing(record)}; this says nothing of any model", broken, elsewhere, unexpected)
    skipped = f"; {counted(len(record['skipped']), 'test')} skipped" if record["skipped"] else ""
    expected = sum(bool(each.get("breaks")) for each in measurements)
    but = f"; {expected} of them broken, as expected (xfail)" if expected else ""
    held = "none is broken" if not expected else "none unexpectedly"
    is_open = any(verdict(each) in _OPEN for each in measurements)
    said = f"of {_gates(len(measurements))} {held}: {_counts(measurements)}{but}{skipped}"
    return Standing("undecided" if is_open else "green", said, broken, elsewhere, unexpected)


def worst(found: Sequence[Standing]) -> Standing:
    """Of several runs the one that all of them stand as; the first of those that are equal."""
    return min(found, key=lambda each: tuple(WORDS).index(each.word))


def named(record: Mapping[str, Any]) -> str:
    """A measurement in words: format and metric."""
    return f"{record['format']} {shown_metric(record)}"


def is_broken(measurement: Mapping[str, Any], failed: Collection[Any] | None) -> bool:
    """Whether a gate makes its run red. ``failed`` are the tests that did so, for whatever reason; None of a run record
    that does not say (of an earlier version): then what breaks a build whatever it was told."""
    if failed is None:
        return verdict(measurement) in _BROKEN
    return bool(measurement.get("breaks")) and measurement["test"] in failed


def _listed(broken: Sequence[Mapping[str, Any]]) -> str:
    said = list(dict.fromkeys(f"{named(each)} {verdict(each)}" for each in broken))
    more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return ", ".join(said[:_NAMED]) + more


def _counts(measurements: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(map(verdict, measurements))
    return ", ".join(f"{counts[word]} {word}" for word in reversed(LOUDEST) if counts[word])


def _nothing(record: Mapping[str, Any]) -> str:
    skipped = len(record["skipped"])
    if skipped:
        return f"nothing was measured, {'the only test was' if skipped == 1 else f'all {skipped} tests were'} skipped"
    return "nothing was measured"


def _gates(count: int) -> str:
    return counted(count, "gate")
