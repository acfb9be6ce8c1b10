"""What a format is like on this machine, measured as a run measures it, and the limits that follow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytest_quant import markers
from pytest_quant.errors import NotMeasured, ProofFailed, Unsupported
from pytest_quant.formats import registry
from pytest_quant.gates.gate import LIMITS, Gate
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.init.limits import ARGUMENTS, Limit, Refused, derive, is_settled
from pytest_quant.session import Session
from pytest_quant.spec import ModelSpec

_ANY = {"max_ratio": 1e300, "max": 1e300, "min": 0.0}
"""Limits that everything keeps: what is asked is how good the format is, not whether it is good enough."""

_QUESTIONS = 2
"""That share the error of a gate's confidence in the runs that follow: its limit, and its baseline."""


@dataclass(frozen=True)
class Finding:
    """One metric of a format: its limit, or why it has none."""

    metric: str
    result: Limit | Refused | str
    """A text: why it could not be measured soundly here."""
    quantity: Quantity | None = None
    """What the limit is on; None where nothing was measured."""
    windows: tuple[int, int] | None = None
    """Used, and there in all."""
    rounds: int | None = None


def measure(
    session: Session, spec: ModelSpec, format_name: str, metrics: Sequence[str], budget: float
) -> tuple[Finding, ...]:
    """Every metric of one format. Windows are scored until more would hardly make the limit tighter, or for ``budget``
    seconds, but at least as many as an interval needs.

    Raises :class:`~pytest_quant.errors.QuantError` where quality or memory cannot be measured: a format without them
    is not tested.
    """
    bits = registry.get(format_name).weights.num_bits
    deadline = time.monotonic() + budget
    gates = {metric: markers.gate(metric, {}, limits_required=False) for metric in metrics}
    for gate in gates.values():
        if gate.is_quality:
            session.expect(spec, format_name, _limited(gate))
    return tuple(_one(session, spec, format_name, gate, bits, deadline) for gate in gates.values())


def _limited(gate: Gate) -> Gate:
    """The gate with a limit, without which all windows are scored."""
    argument = ARGUMENTS[gate.metric]
    return replace(gate, limits=((argument, _ANY[argument]),))


def _one(session: Session, spec: ModelSpec, name: str, gate: Gate, bits: int, deadline: float) -> Finding:
    metric = gate.metric
    limited = LIMITS[metric][ARGUMENTS[metric]].quantity

    def enough(found: Measurement) -> bool:
        return is_settled(metric, found.quantities[limited]) or time.monotonic() > deadline

    try:
        if gate.is_quality or metric == "memory_budget":
            asked = enough if gate.is_quality else _at_once
            found = session.measure(spec, name, _limited(gate), enough=asked, questions=_QUESTIONS)
        else:
            found = session.measure(spec, name, gate, questions=_QUESTIONS)
    except (NotMeasured, Unsupported) as reason:
        if isinstance(reason, ProofFailed) or not gate.is_timed:
            raise
        return Finding(metric, f"cannot be timed here: {reason}")
    quantity = found.quantities[limited]
    if found.conditions:
        seen = "; ".join(text for _, text in found.conditions)
        return Finding(metric, f"measured while {seen}", quantity, rounds=found.rounds)
    if limited in found.lower_bounds:
        return Finding(metric, found.caveat, quantity, found.windows)
    return Finding(metric, derive(metric, quantity, bits), quantity, found.windows, found.rounds)


def _at_once(_: Measurement) -> bool:
    return True
