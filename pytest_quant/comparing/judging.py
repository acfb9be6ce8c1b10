"""What became of each measurement of one side on the other, by the rules that a run uses. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_quant import baseline
from pytest_quant.comparing.sides import Item, Side, Unmeasured
from pytest_quant.environment import changed_packages
from pytest_quant.fallback import elsewhere
from pytest_quant.gates.gate import QUALITY, SAMPLED, TIMED
from pytest_quant.gates.measurement import Measurement
from pytest_quant.gates.regression import MIN_EFFECT, Change, change, reference_change, withheld
from pytest_quant.gates.verdict import Verdict

BROKEN = (Verdict.FAILED, Verdict.NOT_MEASURED, Verdict.REGRESSED)
"""Verdicts on which a comparison fails."""


@dataclass(frozen=True)
class Row:
    """One measurement and what is said of it; ``old`` or ``new`` is None where that side does not have it."""

    hardware: str
    model: str
    metric: str
    format: str
    verdict: Verdict
    parameters: Mapping[str, Any] = field(default_factory=dict)
    old: Item | None = None
    new: Item | None = None
    change: str = ""
    reason: str = ""

    @property
    def breaks(self) -> bool:
        return self.verdict in BROKEN

    @property
    def open(self) -> bool:
        """Whether it could not be judged: no number here or there, numbers of two questions, or too small a sample.
        A ratio whose intervals overlap is green in a run, and here."""
        return self.verdict in (Verdict.MISSING, Verdict.INCOMPARABLE) or (
            self.verdict is Verdict.INCONCLUSIVE and self.metric not in TIMED
        )


def compare(old: Side, new: Side) -> list[Row]:
    """A row for each measurement of ``new``, and for each of ``old`` that ``new`` should have and has not."""
    before = {item.key: item for item in old.items}
    exact = {item.key for item in new.items if item.key in before}
    rest = {key: item for key, item in before.items() if key not in exact}
    rows = []
    for item in new.items:
        if item.key in exact:
            rows.append(_row(item, before[item.key]))
        elif (other := _elsewhere(item, old, new)) is not None:
            rows.append(_row(item, other, f"compared with the baseline of {other.hardware}"))
        else:
            rows.append(_without_equal(item, rest))
    for gate in new.unmeasured:
        rows.append(_unmeasured(gate, rest))
    rows += [_missing(item, new) for item in rest.values() if new.covers(item.hardware, item.measurement.model)]
    return sorted(rows, key=lambda row: (row.hardware, row.model, row.format, row.metric, repr(row.parameters)))


def beyond(old: Side, new: Side) -> int:
    """How many measurements of ``old`` lie beyond what ``new`` speaks for."""
    return sum(not new.covers(item.hardware, item.measurement.model) for item in old.items)


def exit_code(
    rows: Sequence[Row], *, fail: bool, unreadable: bool, allow_missing: bool = False, nothing: bool = False
) -> int:
    """1 if anything broke, else 2 if something could not be judged (``nothing`` was there, say), else 0; without
    ``fail`` only what is unreadable counts."""
    if fail and any(row.breaks for row in rows):
        return 1
    left_open = any(row.open and not (allow_missing and row.verdict is Verdict.MISSING) for row in rows)
    return 2 if unreadable or (fail and (left_open or nothing)) else 0


def _row(now: Item, then: Item, remark: str = "") -> Row:
    moved = judge(now, then)
    reasons = [text for text in (remark, moved.reason) if text]
    row = _of(now, moved.verdict, old=then, change=moved.shown, reason=": ".join(reasons))
    if moved.verdict is Verdict.REGRESSED and (why := stack(now, then)):
        row = replace(row, reason=f"{row.reason}; {why}")
    return _broken(row)


def judge(now: Item, then: Item) -> Change:
    """The change between two measurements of one identity; a part of the scores never tells a regression."""
    return withheld(*paired(now, then))


def paired(now: Item, then: Item, alpha: float | None = None) -> tuple[Measurement, Change]:
    """What of ``now`` both sides hold, and the change of it: of a part of the scores what its interval tells, at the
    error rate ``alpha`` or that of ``now``.

    Two baselines do not say how much each window counts, but both hold all windows, so that the difference of the whole
    means is the mean difference.
    """
    measured, accepted = now.measurement, then.entry
    if alpha is not None:
        measured = replace(measured, alpha=alpha)
    if measured.metric not in (*QUALITY, *SAMPLED) or not measured.scores or not accepted.scores:
        return measured, change(measured, accepted, now.min_effect)
    if measured.windows != then.measurement.windows and (
        measured.windows is None
        or then.measurement.windows is None
        or measured.windows[1] != then.measurement.windows[1]
    ):
        return measured, change(replace(measured, scores=None), accepted, now.min_effect)
    weights = measured.weights or then.measurement.weights
    if weights is None:
        return measured, _of_wholes(now, then)
    known = min(len(measured.scores), len(accepted.scores), len(weights))
    total = measured.windows[1] if measured.windows else known
    measured = replace(measured, scores=measured.scores[:known], weights=weights[:known], windows=(known, total))
    accepted = replace(accepted, scores=accepted.scores[:known])
    return measured, change(measured, accepted, now.min_effect, sampled=True)


def _of_wholes(now: Item, then: Item) -> Change:
    """The change of the mean over all windows, which is one number of either side."""
    after, before = _whole(now.entry), _whole(then.entry)
    if after is None or before is None:
        noun = now.measurement.noun
        reason = f"what the {noun} come to is not what they were recorded with; record the baseline anew"
        return Change(Verdict.INCOMPARABLE, "no mean", reason)
    measured = replace(now.measurement, scores=(after,), weights=(1.0,), windows=(1, 1))
    return change(measured, replace(then.entry, scores=(before,)), now.min_effect)


def _whole(entry: baseline.Entry) -> float | None:
    """The mean of all scores, each counted by its weight, as the entry's figures tell it; None where they do not, or
    tell what no mean of these scores can be."""
    told = entry.figures.get("format_value") if entry.metric in ("perplexity_delta", "task_accuracy") else entry.value
    if told is None or not entry.scores or (entry.metric == "perplexity_delta" and told <= 0.0):
        return None
    mean = math.log(told) if entry.metric == "perplexity_delta" else told
    slack = 1e-6 * max(1.0, abs(mean))
    return mean if min(entry.scores) - slack <= mean <= max(entry.scores) + slack else None


def _elsewhere(item: Item, old: Side, new: Side) -> Item | None:
    """What the other side holds of another hardware, where that may be compared."""
    measured = item.measurement
    model, metric = measured.model, measured.metric

    def files() -> Iterator[tuple[str, baseline.File | None]]:
        for key in sorted(old.hardware.keys() - {item.hardware}):
            found = [each for each in old.items if (each.hardware, each.measurement.model) == (key, model)]
            yield key, baseline.File(old.hardware[key], model, tuple(each.entry for each in found))

    architecture = new.hardware.get(item.hardware, {}).get("architecture")
    found = elsewhere(metric, measured.format, measured.identity, architecture, files())
    if found is None:
        return None
    return next(each for each in old.items if each.key == (found[0], model, found[1].key))


def _without_equal(item: Item, rest: dict[Any, Item]) -> Row:
    """``incomparable`` with what the other side has on this question, which is then accounted for; else ``new``."""
    measured = item.measurement
    place = (item.hardware, measured.model)
    others = [each for each in rest.values() if (each.hardware, each.measurement.model) == place]
    file = baseline.File({}, measured.model, tuple(each.entry for each in others))
    match = baseline.lookup(file, measured.metric, measured.format, measured.identity)
    if match.entry is None:
        return _broken(_of(item, Verdict.NEW))
    other = rest.pop((*place, match.entry.key))
    reason = "the identity differs: " + "; ".join(match.differences)
    return _broken(_of(item, Verdict.INCOMPARABLE, old=other, reason=reason))


def _unmeasured(gate: Unmeasured, rest: dict[Any, Item]) -> Row:
    """A gate without a number, beside what the other side has on its question."""
    asked = (gate.hardware, gate.model, gate.metric, gate.format)
    other = next(
        (each for each in rest.values() if _question(each) == asked and same_parameters(gate.parameters, each)), None
    )
    if other is not None:
        del rest[other.key]
    return Row(*asked, gate.verdict, gate.parameters, other, reason=gate.reason)


def _question(item: Item) -> tuple[str, str, str, str]:
    measured = item.measurement
    return item.hardware, measured.model, measured.metric, measured.format


def same_parameters(parameters: Mapping[str, Any], item: Item) -> bool:
    """Whether an item's question may be the one that these parameters are of."""
    return all(item.parameters.get(name, value) == value for name, value in parameters.items())


def _missing(item: Item, new: Side) -> Row:
    reason = f"skipped: {new.skipped[item.test]}" if item.test in new.skipped else ""
    row = _of(item, Verdict.MISSING, old=item, reason=reason)
    return replace(row, new=None)


def _of(item: Item, verdict: Verdict, **more: Any) -> Row:
    hardware, model, metric, format = _question(item)
    return Row(hardware, model, metric, format, verdict, item.parameters, new=item, **more)


def _broken(row: Row) -> Row:
    """What broke its own limit has failed, whatever became of it since."""
    if row.new is None or not row.new.broken:
        return row
    reasons = [row.new.broken, *([row.reason] if row.verdict is Verdict.REGRESSED else [])]
    return replace(row, verdict=Verdict.FAILED, reason="; ".join(reasons))


def stack(now: Item, then: Item) -> str:
    """What else is known to have changed between the two: the reference's scores, libraries."""
    parts = []
    ours, theirs = now.entry.reference_scores, then.entry.reference_scores
    if now.measurement.metric in QUALITY and ours and theirs:
        weights = now.measurement.weights or then.measurement.weights or (1.0,) * min(len(ours), len(theirs))
        moved = reference_change(ours, theirs, weights)
        if abs(moved) > MIN_EFFECT["perplexity_delta"]:
            parts.append(f"the reference moved too, by {moved:+.5f} nats: the stack drifted, not only the quantization")
    packages = now.entry.recorded.get("packages")
    if isinstance(packages, Mapping) and (lines := changed_packages(then.entry.recorded.get("packages"), packages)):
        parts.append(f"since then: {', '.join(lines)}")
    return "; ".join(parts)
