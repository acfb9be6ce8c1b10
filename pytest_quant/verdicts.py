"""The verdict on one gate: its limits and its baseline, under the run's policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_quant import baseline, records
from pytest_quant.blame import blame
from pytest_quant.fallback import elsewhere
from pytest_quant.gates.gate import QUALITY, Gate, judge
from pytest_quant.gates.measurement import Measurement
from pytest_quant.gates.narrow import is_narrow
from pytest_quant.gates.regression import change, smallest_change, withheld
from pytest_quant.gates.verdict import Verdict
from pytest_quant.hardware import Device


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

    @property
    def broken_quality(self) -> bool:
        """Whether scored windows broke its limit, or are worse than the baseline's."""
        if self.record["metric"] not in QUALITY or not self.breaks:
            return False
        found = self.record.get("baseline") or {}
        return self.record["verdict"] == "failed" or found.get("verdict") == "regressed"


@dataclass(frozen=True)
class _Found:
    """What the baselines hold for a measurement."""

    match: baseline.Match
    elsewhere: tuple[str, baseline.Entry] | None = None
    """Another hardware's key and entry, where that may be compared."""
    error: str = ""
    """Why the file cannot be understood."""

    @property
    def entry(self) -> baseline.Entry | None:
        """What the measurement is compared with."""
        if self.match.kind == "exact":
            return self.match.entry
        return None if self.elsewhere is None else self.elsewhere[1]


class Judge:
    """Judges one gate of one test: says when enough was measured, and what the verdict is."""

    def __init__(self, test: str, gate: Gate, device: Device, policy: Policy) -> None:
        self._test = test
        self._gate = gate
        self._device = device
        self._policy = policy
        self._found: _Found | None = None

    @property
    def questions(self) -> int:
        """How many questions share the gate's error: one for each limit, and one for the baseline."""
        return max(len(self._gate.limits) + self._policy.compares, 1)

    @property
    def before(self) -> Sequence[float] | None:
        """What the baseline holds of each window; None where there is none that may be compared."""
        entry = None if self._found is None else self._found.entry
        return None if entry is None else entry.scores

    def enough(self, now: Measurement) -> bool:
        """Whether the baseline's part of the verdict needs no more windows or rounds. What will be recorded needs all
        windows, or a narrow interval."""
        policy = self._policy
        limit = judge(now, self._gate.limits).verdict
        if now.complete or not policy.compares or limit is Verdict.FAILED:
            return True
        found = self._lookup(now)
        if found.error:
            return True
        never_passes = limit is Verdict.INCONCLUSIVE and bool(now.caveat)
        records = policy.update == "all" or (policy.records_new and found.match.kind != "exact")
        if records and not never_passes:
            return self._gate.is_timed and is_narrow(now)
        if found.entry is None:
            return True
        moved = change(now, found.entry, self._gate.min_effect).verdict
        if moved is Verdict.INCOMPARABLE:
            return not policy.records_new or (self._gate.is_timed and is_narrow(now))
        if self._gate.is_timed:
            return moved is not Verdict.INCONCLUSIVE
        return moved in (Verdict.PASSED, Verdict.IMPROVED)  # a regression is never told from a sample

    def decide(self, now: Measurement, reference_now: Callable[[int], Sequence[float]] | None = None) -> Outcome:
        """The verdict. ``reference_now`` gives the NLL of that many windows as the reference gives it now: it is asked
        only where a regression was found and the reference came from a store."""
        limit, policy = judge(now, self._gate.limits), self._policy
        found, write = None, False
        if policy.compares:
            sound = (now.complete or self._gate.is_timed) and not now.conditions
            found, write = self._against_baseline(now, limit.verdict is Verdict.PASSED and sound, reference_now)
        breaks_limit = limit.verdict is Verdict.FAILED or (
            limit.verdict is Verdict.INCONCLUSIVE and policy.inconclusive == "fail"
        )
        record = records.record(self._test, self._gate, now, limit)
        if policy.compares:
            record["baseline"] = None if found is None else found.record()
        return Outcome(
            record=record,
            breaks=breaks_limit or (found is not None and _breaks(found, policy)),
            entry=asdict(records.entry(now)) if write else None,
            question={"metric": now.identity["metric"], "format": now.format},
        )

    def _against_baseline(
        self, now: Measurement, recordable: bool, reference_now: Callable[[int], Sequence[float]] | None
    ) -> tuple[BaselineVerdict, bool]:
        """The baseline's verdict, and whether the value is to be written."""
        policy, found = self._policy, self._lookup(now)
        if found.error:
            return BaselineVerdict(Verdict.INCOMPARABLE, reason=found.error, unreadable=True), False
        may_record = policy.records_new and recordable
        match = found.match
        if found.entry is not None:
            said = self._compared(now, found.entry, reference_now)
            if found.elsewhere is not None and match.kind != "exact":
                where = f"compared with the baseline of {found.elsewhere[0]}"
                said = replace(said, reason=f"{where}: {said.reason}" if said.reason else where)
                return said, may_record and (said.verdict is not Verdict.REGRESSED or policy.update == "all")
            kept = (found.entry.value, found.entry.scores, found.entry.reference_scores)
            unchanged = kept == (now.value, now.scores, now.reference_scores)
            accepts = policy.update == "all" or (said.verdict is Verdict.INCOMPARABLE and policy.records_new)
            return said, accepts and recordable and not unchanged
        if match.kind == "incomparable" and match.entry is not None:
            reason = "the baseline's identity differs: " + "; ".join(match.differences)
            return BaselineVerdict(Verdict.INCOMPARABLE, match.entry.value, reason=reason), may_record
        if may_record:
            return BaselineVerdict(Verdict.NEW, reason=self._too_wide(now)), True
        if now.conditions and policy.records_new:
            reason = f"not recorded: measured while {'; '.join(text for _, text in now.conditions)}"
            return BaselineVerdict(Verdict.MISSING, reason=reason), False
        if now.caveat and self._gate.is_quality:
            reason = f"no baseline of a lower bound, and none is recorded: {now.caveat}"
            return BaselineVerdict(Verdict.MISSING, reason=reason), False
        if policy.records_new:
            return BaselineVerdict(Verdict.MISSING, reason="not recorded: only a value that keeps its limits is"), False
        advice = f"no baseline in {policy.root}; record one with --quant-baseline-update=new and commit it"
        return BaselineVerdict(Verdict.MISSING, reason=advice), False

    def _too_wide(self, now: Measurement) -> str:
        """What a baseline of a wide interval does not see."""
        if not self._gate.is_timed or is_narrow(now):
            return ""
        kept = smallest_change(now, self._gate.min_effect)
        return f"recorded with a wide interval, {now}: later runs are called worse from {kept:.0%} on"

    def _lookup(self, now: Measurement) -> _Found:
        """Read the baselines once: a measurement's identity stays what it is while windows are added."""
        if self._found is None:
            device, policy = self._device, self._policy
            try:
                file = baseline.read(baseline.path_for(policy.root, device.key, now.model))
                match = baseline.lookup(file, now.metric, now.format, now.identity)
                elsewhere = _elsewhere(now, device, policy) if match.kind != "exact" else None
                self._found = _Found(match, elsewhere)
            except baseline.BaselineError as error:
                self._found = _Found(baseline.Match("missing"), error=str(error))
        return self._found

    def _compared(
        self, now: Measurement, entry: baseline.Entry, reference_now: Callable[[int], Sequence[float]] | None
    ) -> BaselineVerdict:
        moved = withheld(now, change(now, entry, self._gate.min_effect))
        reason = moved.reason
        if moved.verdict is Verdict.REGRESSED and self._gate.is_quality:
            reason += f"; {blame(now, entry, reference_now)}"
        return BaselineVerdict(moved.verdict, entry.value, moved.shown, reason)


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


def _elsewhere(now: Measurement, device: Device, policy: Policy) -> tuple[str, baseline.Entry] | None:
    def others() -> Iterator[tuple[str, baseline.File | None]]:
        for key, path in baseline.find_other_hardware(policy.root, device.key, now.model):
            yield key, baseline.read(path)

    return elsewhere(now.metric, now.format, now.identity, device.architecture, others())
