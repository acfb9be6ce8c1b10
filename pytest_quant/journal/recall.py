"""Measures for a run: what was kept is taken, what was not is measured and kept at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import QuantError
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Measurement
from pytest_quant.journal.encoding import Kept
from pytest_quant.journal.keys import Keys
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.journal.journal import Journal
    from pytest_quant.session import Session
    from pytest_quant.verdicts import Judge


class Recall:
    """Asks the journal, then the session."""

    def __init__(self, session: Session, journal: Journal) -> None:
        self._session = session
        self._journal = journal
        self._keys = Keys(session)
        self._taken: dict[tuple[ModelSpec, str, Gate], tuple[str, Kept]] = {}
        """What was answered last for a gate, by key."""

    def measure(self, spec: ModelSpec, format_name: str, gate: Gate, judge: Judge) -> Measurement:
        """The gate's metric of the format, as :meth:`Session.measure` gives it."""
        asked = (spec, format_name, gate)
        self._taken.pop(asked, None)
        key = None if self._session.is_changed(spec) else self._keys.key(*asked, judge.questions)
        kept = self._journal.find(key, judge.enough)
        if kept is None:
            kept = Kept(self._measured(spec, format_name, gate, judge))
            if self._session.is_changed(spec):  # by the body of the test, in which it is measured
                return kept.measurement
            key = self._keys.key(*asked, judge.questions)  # a checkpoint may have been made by the way
            self._journal.keep(key, kept)
        if key is not None:
            self._taken[asked] = key, kept
        return kept.measurement

    def explain(
        self, spec: ModelSpec, format_name: str, gate: Gate, judge: Judge, *, before: Sequence[float] | None
    ) -> Mapping[str, Any] | None:
        """What is behind a broken gate that was measured here last, as :meth:`Session.explain` tells it."""
        by = _digest(before)
        key, kept = self._taken.get((spec, format_name, gate), (None, None))
        if kept is not None and kept.explained_by == by:
            return kept.explanation
        try:
            if key is not None and not self._journal.measured(key):
                self._measured(spec, format_name, gate, judge)  # it is explained from what was scored
        except QuantError:
            return None
        found = self._session.explain(spec, format_name, gate, before=before)
        if key is not None and kept is not None and found is not None:
            self._journal.write(key, Kept(kept.measurement, found, by))
        return found

    def _measured(self, spec: ModelSpec, format_name: str, gate: Gate, judge: Judge) -> Measurement:
        return self._session.measure(spec, format_name, gate, enough=judge.enough, questions=judge.questions)


def _digest(before: Sequence[float] | None) -> str:
    """What an explanation is made against: the limit alone, or a baseline's windows."""
    return "limit" if before is None else hashlib.sha256(repr(list(before)).encode()).hexdigest()[:16]
