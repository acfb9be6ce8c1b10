"""What a run found in the end: the outcomes of tests, and what of them is written to baselines.

One process keeps it: workers send their outcomes as plain data with their test reports.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quant import baseline
from pytest_quant.counting import counted
from pytest_quant.environment import for_people

Payload = dict[str, Any]
"""``{"record": ..., "entry": ... or None, "question": ..., "breaks": ...}`` of one judged gate."""


@dataclass
class Ledger:
    """Outcomes by test, in the order in which tests ended; a rerun replaces what its test said before."""

    outcomes: dict[str, list[Payload]] = field(default_factory=dict)
    skipped: dict[str, Payload] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)
    spoilt: set[str] = field(default_factory=set)
    """Tests of which a subtest failed in the last try: pytest counts them as failed, whatever their own report says."""
    failed: dict[str, None] = field(default_factory=dict)
    """Tests that make the run red, for a gate or for anything else; an expected failure is none."""
    unexpected: set[str] = field(default_factory=set)
    """Those among them that failed because they passed, against a strict ``xfail``."""
    hardware: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    """Seconds since the epoch."""

    @property
    def records(self) -> list[Payload]:
        """What the run record tells of each gate; ``breaks`` of those that make their test fail."""
        return [record for test in self.outcomes for record in self.records_of(test)]

    def records_of(self, test: str) -> list[Payload]:
        """The same of one test; none where it has not got so far."""
        return [
            {**payload["record"], "breaks": True} if payload["breaks"] else payload["record"]
            for payload in self.outcomes.get(test, ())
        ]

    @property
    def measured_formats(self) -> set[str]:
        """Formats of which at least one number was really measured."""
        return {record["format"] for record in self.records if "value" in record}

    def note(self, test: str, payloads: list[Payload], hardware: Mapping[str, Any], *, passed: bool) -> None:
        """The outcomes of a test's call phase; of a test that did not pass nothing is ever recorded."""
        self.outcomes[test] = payloads
        self.hardware = dict(hardware)
        self.skipped.pop(test, None)
        self.passed.add(test) if passed and test not in self.spoilt else self._note_not_passed(test)

    def _note_not_passed(self, test: str) -> None:
        self.passed.discard(test)
        for payload in self.outcomes.get(test, ()):
            _withhold(payload, "the test did not pass")

    def note_skip(self, test: str, format: str | None, reason: str) -> None:
        entry = {"test": test, "reason": reason}
        if format is not None:
            entry["format"] = format
        self.skipped[test] = entry

    def note_subtest(self, test: str) -> None:
        """One of the test's subtests failed."""
        self.spoilt.add(test)
        self.failed[test] = None

    def note_retry(self, test: str) -> None:
        """The test is run again, and its subtests with it."""
        self.spoilt.discard(test)

    def note_failure(self, test: str) -> None:
        """The test failed after its gates, in its teardown say."""
        self._note_not_passed(test)
        if test in self.outcomes or test in self.skipped:
            self.failed[test] = None

    def note_end(self, test: str, *, failed: bool, unexpected: bool = False) -> None:
        """Whether the test's last try failed, and whether that was ``unexpected``: it passed against a strict xfail."""
        self.failed.pop(test, None)
        (self.unexpected.add if unexpected else self.unexpected.discard)(test)
        if failed or test in self.spoilt:
            self.failed[test] = None

    def arrange(self, tests: Sequence[str]) -> None:
        """Put what was found into the order of the tests, whichever worker was first; others stay behind them."""
        places = {test: place for place, test in enumerate(tests)}

        def place(test: str) -> int:
            return places.get(test, len(places))

        self.outcomes = {test: self.outcomes[test] for test in sorted(self.outcomes, key=place)}
        self.skipped = {test: self.skipped[test] for test in sorted(self.skipped, key=place)}
        self.failed = dict.fromkeys(sorted(self.failed, key=place))

    def settle(self) -> None:
        """Keep out what must not be recorded, besides values of tests that did not pass: values that broke a limit in
        one test though they kept those of another."""
        broken = {
            _hash(payload)
            for payloads in self.outcomes.values()
            for payload in payloads
            if "identity" in payload["record"] and payload["record"]["verdict"] == "failed"
        }
        for test, payloads in self.outcomes.items():
            for payload in payloads:
                if test in self.passed and payload["entry"] is not None and _hash(payload) in broken:
                    _withhold(payload, "another test's limit broke")

    def write(self, root: Path) -> list[str]:
        """Merge what may be recorded into the baselines, one file a model. Returns a line for each file written.

        Raises :class:`~pytest_quant.baseline.BaselineError`; what was written before it stays.
        """
        by_model: dict[str, list[baseline.Entry]] = {}
        recorded = for_people(self.hardware)
        for test in self.outcomes:
            for payload in self.outcomes[test] if test in self.passed else ():
                if payload["entry"] is not None:
                    effect = {name: payload["record"][name] for name in ("min_effect",) if name in payload["record"]}
                    entry = _entry(payload["entry"], {**recorded, **effect, "test": test})
                    by_model.setdefault(payload["record"]["model"], []).append(entry)
        lines = []
        for model, entries in sorted(by_model.items()):
            path = baseline.path_for(root, self.hardware["key"], model)
            merged = baseline.merge(baseline.read(path), _identity_of(self.hardware), model, entries)
            if baseline.write(path, merged):
                lines.append(f"{counted(len(entries), 'measurement')} recorded in {relative(path)}")
        return lines

    def prune(self, root: Path, known_tests: Collection[str], whole_files: Collection[str]) -> list[str]:
        """Drop, from the files of the models and the hardware of this run, entries that a test recorded which passed
        now under another identity, and entries of tests that are gone from files that were collected as a whole.
        What was skipped, deselected, failed or not collected stays. Returns a line for each file written."""
        lines = []
        passed = [p for test in self.passed for p in self.outcomes.get(test, ()) if "identity" in p["record"]]
        for model in sorted({payload["record"]["model"] for payload in passed}):
            path = baseline.path_for(root, self.hardware["key"], model)
            file = baseline.read(path)
            if file is None:
                continue
            fresh = {_hash(payload) for payload in passed}

            def keep(entry: baseline.Entry, fresh: Collection[str] = fresh) -> bool:
                test = str(entry.recorded.get("test", ""))
                if not test or baseline.identity_hash(entry.identity) in fresh:
                    return True
                gone = test not in known_tests and test.split("::")[0] in whole_files
                return not gone and test not in self.passed

            pruned = baseline.prune(file, keep)
            gone = len(file.entries) - len(pruned.entries)
            if gone:
                baseline.write(path, pruned)
                lines.append(f"{counted(gone, 'measurement')} pruned from {relative(path)}")
        return lines


def _withhold(payload: Payload, why: str) -> None:
    """Let a value not become a baseline."""
    if payload["entry"] is None:
        return
    payload["entry"] = None
    said = payload["record"].get("baseline")
    if said is not None and said["verdict"] == "new":
        said.update(verdict="missing", reason=f"not recorded: {why}")


def _hash(payload: Payload) -> str:
    """One measurement's identity, its metric and format among it."""
    return baseline.identity_hash(payload["record"]["identity"])


def _entry(data: Mapping[str, Any], recorded: Mapping[str, Any]) -> baseline.Entry:
    lists = {name: tuple(data[name]) for name in ("scores", "reference_scores") if data[name] is not None}
    return baseline.Entry(**{**data, **lists, "recorded": recorded})


def _identity_of(hardware: Mapping[str, Any]) -> dict[str, Any]:
    return {name: hardware[name] for name in ("key", "name", "count", "architecture")}


def relative(path: Path) -> str:
    """A path as messages name it: from the working directory where it lies below that."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
