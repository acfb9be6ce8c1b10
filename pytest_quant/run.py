"""One pytest run: the plugin's session, policy and ledger, made when the first quantization test needs them."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quant.declarations import concerns
from pytest_quant.errors import NotFinite, NotMeasured, QuantError, Unsupported, UsageError

if TYPE_CHECKING:
    from pytest_quant.gates.gate import Gate
    from pytest_quant.gates.measurement import Measurement
    from pytest_quant.journal.keeper import Keeper
    from pytest_quant.journal.recall import Recall
    from pytest_quant.ledger import Ledger
    from pytest_quant.options import Options
    from pytest_quant.session import Session
    from pytest_quant.targets import Target
    from pytest_quant.verdicts import Judge, Outcome, Policy

TARGET = pytest.StashKey["Target | None"]()
OUTCOMES = pytest.StashKey["list[Outcome]"]()
CARRIED = "quant"
"""The attribute of a test's report that takes its outcomes to the process that keeps the ledger."""
JOURNAL = "quant_journal"
"""Of what a worker is told, where the run keeps its measurements."""
_XPASS = "[XPASS(strict)]"
"""How pytest begins what it says of a test that passed against a strict ``xfail``."""
ASKED = pytest.StashKey["list[tuple[str, Gate]]"]()


class GateFailure(AssertionError):
    """One or more gates of a test are broken; the message names each with its figures."""


def skipped(format: str, reason: Unsupported) -> BaseException:
    """The skip of a format that cannot run here; pytest shows it at the test, not at a line of ours."""
    return pytest.skip.Exception(f"{format}: {reason}", _use_item_location=True)


class Run:
    """What the hooks share. Everything is made at first use, so that a run without quant tests pays for nothing."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._started = time.time()
        self.known_tests: set[str] = set()
        self.spreads = False
        """Whether a test that was collected spreads its model over devices."""
        self.wanted: list[str] = []
        """The quantization tests that are to run."""
        self.ended: set[str] = set()
        """Tests of which it is known how they ended."""
        self.uncollected: dict[str, None] = {}
        """Files and classes that pytest could not collect."""
        self.arranged: list[str] = []
        """The tests in the order in which they were collected, where several workers run them."""
        self.messages: list[str] = []
        """Good news for the summary: what was written."""
        self.troubles: list[str] = []
        """What turns the run red besides failed tests."""
        self._complete = True
        self._record: dict[str, Any] | None = None

    @cached_property
    def ledger(self) -> Ledger:
        from pytest_quant.environment import clock
        from pytest_quant.ledger import Ledger

        return Ledger(started=clock(self._started))

    @cached_property
    def options(self) -> Options:
        from pytest_quant.options import read

        return read(self.config)

    @cached_property
    def policy(self) -> Policy:
        from pytest_quant.verdicts import Policy

        told = self.options
        return Policy(told.baseline, told.baseline_path, told.missing, told.update, told.inconclusive)

    @cached_property
    def session(self) -> Session:
        from pytest_quant.report.progress import for_config
        from pytest_quant.run_settings import settings_of
        from pytest_quant.session import Session

        told = self.options
        together, lane = self._workers
        workers = getattr(self.config, "workerinput", {}).get("workercount", 0)
        settings = settings_of(told, workers=workers, lane=lane, together=together)
        return Session(settings, for_config(self.config))

    @cached_property
    def keeper(self) -> Keeper:
        """Keeps finished measurements on the disk, and knows those of interrupted runs."""
        from pytest_quant.journal.keeper import Keeper

        told = getattr(self.config, "workerinput", {}).get(JOURNAL)
        if told is None:
            told = {"run": self.name, "resumed": None, "command": self._command()}
        return Keeper(self.options, told["command"], told["run"], told["resumed"])

    def _command(self) -> list[str]:
        """What decides which tests are run: the folder, and all arguments wherever they were given."""
        given = self.config.invocation_params
        added = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
        words = [str(given.dir), *self.config.getini("addopts"), *added, *map(str, given.args)]
        return [word for word in words if word != "--quant-resume"]

    @cached_property
    def name(self) -> str:
        from pytest_quant.journal.folders import new_name

        return new_name()

    def told_to_workers(self) -> dict[str, Any]:
        """What each worker needs to know to share this run's journal; plain data."""
        resumed = self.keeper.resumption.resumed if self.used and self.options.resume else ()
        return {"run": self.name, "resumed": [str(folder) for folder in resumed], "command": self._command()}

    @cached_property
    def recall(self) -> Recall:
        from pytest_quant.journal.recall import Recall

        return Recall(self.session, self.keeper.journal)

    @property
    def _workers(self) -> tuple[Path | None, int | None]:
        """In a worker of xdist, the folder that all of them share, and this one's lane; no lane where models are
        spread over the devices, of which this one then needs all."""
        given = getattr(self.config, "workerinput", {}).get("quant_workers")
        return (None, None) if given is None else (Path(given["folder"]), None if self.spreads else given["lane"])

    def tell(self, items: Sequence[pytest.Item]) -> None:
        """In a worker, say what was collected to the process that shares the tests out."""
        folder, _ = self._workers
        if folder is not None and self.used and not self.config.getoption("collectonly"):
            from pytest_quant.distribution.telling import tell

            tell(self, items, folder, self.config.workerinput["workerid"])  # type: ignore[attr-defined]

    def target(self, item: pytest.Item) -> Target | None:
        """What a test asks for; None if it has nothing to do with quantization. Raises :class:`UsageError`."""
        if TARGET not in item.stash:
            fixtures = getattr(item, "fixturenames", [])
            found = None
            if concerns(item, fixtures):
                from pytest_quant import targets

                found = targets.resolve(item, fixtures, targets.formats_of(item, fixtures), self.options)
            item.stash[TARGET] = found
        return item.stash[TARGET]

    @property
    def used(self) -> bool:
        """Whether anything of the plugin was asked for in this run."""
        return "options" in self.__dict__

    def hear(self, report: pytest.TestReport) -> None:
        """Enter a test's report into the ledger."""
        carried = getattr(report, CARRIED, None)
        if carried is not None:
            _ = self.options  # under xdist, the first that this process hears of a quantization test
        if not self.used:
            return
        if report.when in ("teardown", "???"):  # the latter of a test that its worker died in
            self.ended.add(report.nodeid)
        if carried is not None and "journal" in carried:  # a worker that died has sent none
            self.keeper.hear(carried["journal"])
        if report.when == "teardown" and report.failed:
            self.ledger.note_failure(report.nodeid)
        if hasattr(report, "context"):  # of a subtest: its test's own report follows, which says passed still
            if carried is not None and report.failed:
                self.ledger.note_subtest(report.nodeid)
            return
        if str(report.outcome) == "rerun":  # which is what pytest-rerunfailures makes it
            self.ledger.note_retry(report.nodeid)
            return
        if carried is None:
            return
        unexpected = report.failed and str(report.longrepr).startswith(_XPASS)
        self.ledger.note_end(report.nodeid, failed=report.failed, unexpected=unexpected)
        expected = hasattr(report, "wasxfail")
        if report.skipped and not expected:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            format = carried["formats"][0] if carried["formats"] else None
            if carried["outcomes"]:  # one of its gates cannot be asked here; the others were, and none is broken
                self.ledger.note(report.nodeid, carried["outcomes"], carried["hardware"], passed=True)
            self.ledger.note_skip(report.nodeid, format, reason.removeprefix("Skipped: "))
        else:
            passed = report.passed and not expected
            self.ledger.note(report.nodeid, carried["outcomes"], carried["hardware"], passed=passed)

    def hear_collected(self, report: pytest.CollectReport) -> None:
        """Remember what could not be collected; of workers each says so."""
        if report.failed:
            self.uncollected[report.nodeid or "."] = None

    def check(self, item: pytest.Item) -> None:
        """Skip a test whose formats, or whose reference, cannot run here. Loads nothing."""
        target = self.target(item)
        if target is None:
            return
        item.stash[ASKED] = []  # nothing of an earlier try, when the test is run again
        item.stash[OUTCOMES] = []
        needed = [*target.formats, *([target.spec.reference] if target.needs_reference else [])]
        for name in needed:
            try:
                self.session.check(target.spec, name)
            except Unsupported as reason:
                if name != target.spec.reference or not self._is_stored(target):
                    raise skipped(name, reason) from None

    def _is_stored(self, target: Target) -> bool:
        """Whether a test asks of the reference only what the store can answer, so that it need not run here."""
        return target.only_quality and self.session.quality.knows_reference(target.spec)

    def expect(self, targets: Iterable[Target | None]) -> None:
        """Hear beforehand what the tests of this run will ask."""
        for target in filter(None, targets):
            for gate in target.gates:
                for name in target.formats if gate.is_quality else ():
                    self.session.expect(target.spec, name, gate)

    def judge(self, item: pytest.Item) -> None:
        """Measure and judge every gate of a test, then fail once with all that are broken."""
        __tracebackhide__ = True
        target = self.target(item)
        if target is None:
            return
        questions = [(name, gate) for name in target.formats for gate in target.gates]
        by_hand: list[tuple[str, Gate]] = item.stash[ASKED]
        questions += by_hand
        outcomes: list[Outcome] = []
        item.stash[OUTCOMES] = outcomes
        cannot: list[BaseException] = []
        changed = self.session.drop_changed() if questions else []
        explained: set[str] = set()
        for name, gate in questions:
            if changed:
                error = NotMeasured(
                    f"the test's body changed the {' and the '.join(sorted(changed))} model that its gates would "
                    f"measure (modules, mode or weights); change a copy"
                )
                outcomes.append(self._not_measured(item.nodeid, target, name, gate, error))
                continue
            try:
                outcome, judge = self._judge_one(item.nodeid, target, name, gate)
                if outcome.broken_quality and name not in explained:  # once a format: other gates see the same windows
                    explained.add(name)
                    outcome = self._explained(target, name, gate, outcome, judge)
                outcomes.append(outcome)
            except Unsupported as reason:
                cannot.append(skipped(name, reason))
        broken = [outcome for outcome in outcomes if outcome.breaks]
        if broken:
            from pytest_quant.report.failure import explain

            raise GateFailure(explain([outcome.record for outcome in broken]))
        if cannot:  # a gate that broke counts, even where another could not be asked
            raise cannot[0] from None

    def measure(self, test: str, target: Target, name: str, gate: Gate) -> Measurement:
        """Measure what a gate asks, as far as its verdict needs."""
        return self._measure(target, name, gate, self._judge(test, gate))

    def _judge(self, test: str, gate: Gate) -> Judge:
        from pytest_quant.verdicts import Judge

        return Judge(test, gate, self.session.device, self.policy)

    def _measure(self, target: Target, name: str, gate: Gate, judge: Judge) -> Measurement:
        return self.recall.measure(target.spec, name, gate, judge)

    def _judge_one(self, test: str, target: Target, name: str, gate: Gate) -> tuple[Outcome, Judge]:
        judge = self._judge(test, gate)
        try:
            measurement = self._measure(target, name, gate, judge)
        except Unsupported:
            raise
        except UsageError as error:
            if not (gate.is_sampled or gate.is_scan):  # else it is of the model or the run, and of every gate
                raise
            return self._not_measured(test, target, name, gate, error), judge
        except QuantError as error:
            return self._not_measured(test, target, name, gate, error), judge
        return judge.decide(measurement, lambda count: self.session.reference_now(target.spec, count)), judge

    def _explained(self, target: Target, name: str, gate: Gate, outcome: Outcome, judge: Judge) -> Outcome:
        """The outcome with what is behind it: windows, layers, what to do next."""
        before = None if outcome.record["verdict"] == "failed" else judge.before
        found = self.recall.explain(target.spec, name, gate, judge, before=before)
        return outcome if found is None else replace(outcome, record={**outcome.record, "explanation": found})

    def _not_measured(self, test: str, target: Target, name: str, gate: Gate, error: QuantError) -> Outcome:
        from pytest_quant.gates.verdict import Verdict
        from pytest_quant.verdicts import not_measured

        verdict = Verdict.FAILED if isinstance(error, NotFinite) else Verdict.NOT_MEASURED
        short, engine = target.spec.source.short, target.spec.engine
        return not_measured(test, gate, short, name, verdict, str(error), engine)

    def refuse(self, item: pytest.Item, error: QuantError) -> None:
        """The model could not be had, so none of the test's gates has a number: say so for each."""
        item.stash[OUTCOMES] = self._refused(item, error)

    def _refused(self, item: pytest.Item, error: QuantError) -> list[Outcome]:
        target = self.target(item)
        if target is None:
            return []
        return [
            self._not_measured(item.nodeid, target, name, gate, error)
            for name in target.formats
            for gate in target.gates
        ]

    def lost(self, item: pytest.Item) -> list[dict[str, Any]]:
        """What the ledger says of a test whose worker died, as plain data; its reason is only known then."""
        found: list[dict[str, Any]] = _plainly([_carried(each) for each in self._refused(item, NotMeasured(""))])
        return found

    def hardware(self) -> dict[str, Any]:
        """The device as plain data."""
        from pytest_quant.environment import describe_hardware

        found: dict[str, Any] = _plainly(describe_hardware(self.session.device))
        return found

    def release(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Give back the models that the test changed, and those that the next quantization test does not need."""
        if "session" not in self.__dict__ or "models" not in self.session.__dict__:
            return
        self.session.recover()
        if nextitem is None:
            self.session.models.keep(())
            return
        if self.target(item) is not None:
            self.session.drop_changed()
        target = self.target(nextitem)
        if target is not None and not target.imperative:
            needed = {(target.spec, name) for name in (*target.formats, target.spec.reference)}
            self.session.models.keep(needed)

    def payload(self, item: pytest.Item) -> dict[str, Any]:
        """What a test's report carries to the process that keeps the ledger: plain data only."""
        target = item.stash.get(TARGET, None)
        carried = {
            "outcomes": [_carried(outcome) for outcome in item.stash.get(OUTCOMES, [])],
            "hardware": self.hardware(),
            "formats": list(target.formats) if target else [],
            "journal": self.keeper.journal.news(),
        }
        plain: dict[str, Any] = _plainly(carried)
        return plain

    def finish(self, *, complete: bool, stopped: bool = False) -> None:
        """Write what may be written, then say what keeps the run from being green. What was measured is kept where the
        run was ``stopped`` early, is not ``complete``, or could not write it. Where pytest does not say itself that it
        ended early, tests that it never ran are named."""
        from pytest_quant.closing import close

        left = [test for test in self.wanted if test not in self.ended]
        unnoticed = left if complete and not stopped else []
        complete = self._complete = complete and not left
        self.ledger.arrange(self.arranged)
        whole = set() if any("::" in argument for argument in self.config.args) else self.known_tests
        self.messages, self.troubles, written = close(
            self.ledger,
            self.options,
            self.known_tests,
            whole,
            complete=complete,
            record=self._told,
            never_ran=unnoticed,
            uncollected=list(self.uncollected),
        )
        self.messages += self.keeper.finish(ended=complete and written and not stopped)

    def record(self) -> dict[str, Any]:
        """The run record, of a run that is finished."""
        return self._told(self.troubles)

    def _told(self, troubles: Sequence[str]) -> dict[str, Any]:
        """The run record; made once, but for its troubles: a report that cannot be written is one more."""
        if self._record is None:
            from pytest_quant.publishing import places
            from pytest_quant.report.json import run_record

            self._record = run_record(self.ledger, complete=self._complete, own=places(self.options))
        return {**self._record, "troubles": list(troubles)} if troubles else dict(self._record)

    def close(self) -> None:
        """Let go of what other processes wait for, and of what is still held where the run ended early: an engine's
        process, say."""
        if "keeper" in self.__dict__:
            self.keeper.close()
        if "session" in self.__dict__:
            self.session.close()


def _carried(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in ("record", "entry", "question", "breaks")}


def _plainly(value: Any) -> Any:
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Iterable):
        return dict(value) if hasattr(value, "keys") else list(value)
    raise TypeError(f"{type(value).__name__} is no plain data")
