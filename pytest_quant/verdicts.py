"""The verdict on one gate: its limits and its baseline, under the run's policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_quant import baseline
from pytest_quant.gates.gate import LIMITS, Gate, Judgement, judge
from pytest_quant.gates.measurement import Measurement
from pytest_quant.gates.regression import Change, change
from pytest_quant.gates.verdict import Verdict
from pytest_quant.hardware import Device

_QUALITY = ("perplexity_delta",)
"""Metrics that fall back to another device's baseline."""
_STORED = ("weights", "kv_cache")
"""Bytes that depend on the model and not on the device's name: they fall back within one architecture. Peaks and
speeds never fall back."""


@dataclass(frozen=True)
class Policy:
    """What a verdict does to the build."""

    compares: bool = False
    """Whether baselines play a part at all."""
    root: Path = Path("quant-baselines")
    missing: str = "record"
    update: str | None = None
    inconclusive: str = "pass"

    @property
    def records_new(self) -> bool:
        return self.update in ("new", "all") or self.missing == "record"


@dataclass(frozen=True)
class BaselineVerdict:
    """What the baseline says."""

    verdict: Verdict
    value: float | None = None
    shown: str = ""
    reason: str = ""
    drifted: bool = False
    unreadable: bool = False
    """The file is there and cannot be understood: always an error, never taken for "no baseline"."""

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = {"verdict": str(self.verdict)}
        if self.value is not None:
            found["value"] = self.value
        if self.shown:
            found["change"] = self.shown
        if self.reason:
            found["reason"] = self.reason
        return found


@dataclass(frozen=True)
class Outcome:
    """One judged gate, ready to be reported, sent to another process and recorded.

    ``record`` is the element of the run record; ``entry`` is what a baseline would keep, or None if this value
    must not be written.
    """

    record: Mapping[str, Any]
    breaks: bool
    entry: Mapping[str, Any] | None = None
    question: Mapping[str, Any] = field(default_factory=dict)
    """Metric with its parameters, and format: what pruning must not take for stale."""


def decide(test: str, gate: Gate, measurement: Measurement, device: Device, policy: Policy) -> Outcome:
    """Judge a measurement against its limits and, where the policy says so, its baseline."""
    limit = judge(measurement, gate.limits)
    found, write = None, False
    if policy.compares:
        found, write = _against_baseline(measurement, device, policy, recordable=limit.verdict is Verdict.PASSED)
    breaks_limit = limit.verdict is Verdict.FAILED or (
        limit.verdict is Verdict.INCONCLUSIVE and policy.inconclusive == "fail"
    )
    record = _record(test, gate, measurement, limit)
    if policy.compares:
        record["baseline"] = None if found is None else found.record()
    return Outcome(
        record=record,
        breaks=breaks_limit or (found is not None and _breaks(found, policy)),
        entry=asdict(_entry(measurement)) if write else None,
        question={"metric": measurement.identity["metric"], "format": measurement.format},
    )


def not_measured(test: str, gate: Gate, model: str, format: str, verdict: Verdict, reason: str, engine: str) -> Outcome:
    """The outcome of a gate that has no number: it breaks the build, always."""
    record: dict[str, Any] = {
        "test": test,
        "metric": gate.metric,
        "model": model,
        "format": format,
        "engine": engine,
        "limit": dict(gate.limits),
        "parameters": dict(gate.parameters),
        "verdict": str(verdict),
        "reason": reason,
    }
    metric = {"name": gate.metric, **dict(gate.parameters)}
    return Outcome(record, breaks=True, question={"metric": metric, "format": format})


def _breaks(found: BaselineVerdict, policy: Policy) -> bool:
    if found.verdict is Verdict.REGRESSED:
        return policy.update != "all"
    if found.verdict in (Verdict.MISSING, Verdict.INCOMPARABLE):
        return found.unreadable or not policy.records_new
    return False


def _against_baseline(
    now: Measurement, device: Device, policy: Policy, *, recordable: bool
) -> tuple[BaselineVerdict, bool]:
    """The baseline's verdict, and whether the value is to be written."""
    try:
        file = baseline.read(baseline.path_for(policy.root, device.key, now.model))
        match = baseline.lookup(file, now.metric, now.format, now.identity)
        elsewhere = _elsewhere(now, device, policy) if match.kind != "exact" else None
    except baseline.BaselineError as error:
        return BaselineVerdict(Verdict.INCOMPARABLE, reason=str(error), unreadable=True), False
    may_record = policy.records_new and recordable
    if match.kind == "exact" and match.entry is not None:
        found = _compared(now, match.entry)
        unchanged = (match.entry.value, match.entry.scores) == (now.value, now.scores)
        accepts = policy.update == "all" or (found.verdict is Verdict.INCOMPARABLE and policy.records_new)
        return found, accepts and recordable and not unchanged
    if elsewhere is not None:
        key, entry = elsewhere
        found = _compared(now, entry)
        said = f"compared with the baseline of {key}"
        found = replace(found, reason=f"{said}: {found.reason}" if found.reason else said)
        return found, may_record and (found.verdict is not Verdict.REGRESSED or policy.update == "all")
    if match.kind == "incomparable" and match.entry is not None:
        reason = "the baseline's identity differs: " + "; ".join(match.differences)
        return BaselineVerdict(Verdict.INCOMPARABLE, match.entry.value, reason=reason), may_record
    if may_record:
        return BaselineVerdict(Verdict.NEW), True
    if policy.records_new:
        return BaselineVerdict(Verdict.MISSING, reason="not recorded: only a value that keeps its limits is"), False
    advice = f"no baseline in {policy.root}; record one with --quant-baseline-update=new and commit it"
    return BaselineVerdict(Verdict.MISSING, reason=advice), False


def _compared(now: Measurement, entry: baseline.Entry) -> BaselineVerdict:
    moved: Change = change(now, entry)
    return BaselineVerdict(moved.verdict, entry.value, moved.shown, moved.reason, moved.reference_moved)


def _elsewhere(now: Measurement, device: Device, policy: Policy) -> tuple[str, baseline.Entry] | None:
    stored = now.identity["metric"].get("of") in _STORED
    if now.metric not in _QUALITY and not stored:
        return None
    for key, path in baseline.find_other_hardware(policy.root, device.key, now.model):
        file = baseline.read(path)
        if stored and (file is None or file.hardware.get("architecture") != device.architecture):
            continue
        match = baseline.lookup(file, now.metric, now.format, now.identity)
        if match.kind == "exact" and match.entry is not None:
            return key, match.entry
    return None


def _entry(measurement: Measurement) -> baseline.Entry:
    quantity = measurement.quantity
    return baseline.Entry(
        metric=measurement.metric,
        format=measurement.format,
        identity=measurement.identity,
        value=quantity.value,
        unit=quantity.unit,
        low=None if quantity.is_exact else quantity.low,
        high=None if quantity.is_exact else quantity.high,
        scores=measurement.scores,
        reference_scores=measurement.reference_scores,
        figures=dict(measurement.figures),
    )


def _record(test: str, gate: Gate, measurement: Measurement, limit: Judgement) -> dict[str, Any]:
    """The documented shape of a measurement in the run record: a field that there is not is absent."""
    quantity = measurement.quantity
    record: dict[str, Any] = {
        "test": test,
        "metric": measurement.metric,
        "model": measurement.model,
        "format": measurement.format,
        "engine": measurement.engine,
        "value": quantity.value,
        "low": quantity.low,
        "high": quantity.high,
        "unit": quantity.unit,
        "limit": dict(gate.limits),
        "verdict": str(limit.verdict),
        "identity": measurement.identity,
        "proof": dict(measurement.proof),
    }
    if gate.parameters:
        record["parameters"] = dict(gate.parameters)
    if measurement.reference is not None:
        record["reference"] = measurement.reference
    if measurement.confidence is not None:
        record["confidence"] = measurement.confidence
    if measurement.windows is not None:
        record["windows"] = {"used": measurement.windows[0], "total": measurement.windows[1]}
    if limit.reason:
        record["reason"] = limit.reason
    record.update({name: number for name, number in measurement.figures.items() if math.isfinite(number)})
    shown = {name: LIMITS[gate.metric][name].shown(name, value) for name, value in gate.limits}
    record["limit_shown"] = ", ".join(shown.values())
    return record
