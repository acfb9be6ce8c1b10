"""Measurements as plain data: in the run record, and in a baseline."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any

from pytest_quant import baseline
from pytest_quant.gates.gate import LIMITS, Gate, Judgement
from pytest_quant.gates.measurement import Measurement, Quantity

_OF_THE_MOMENT = ("process_bytes", "device_used_bytes")
"""Figures that no two runs share; a baseline is a file that people compare."""


def entry(measurement: Measurement) -> baseline.Entry:
    """What a baseline keeps of a measurement."""
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
        figures={name: figure for name, figure in measurement.figures.items() if name not in _OF_THE_MOMENT},
    )


def record(test: str, gate: Gate, measurement: Measurement, limit: Judgement) -> dict[str, Any]:
    """The documented shape of a measurement in the run record: a field that there is not is absent."""
    quantity = measurement.quantity
    data: dict[str, Any] = {
        "test": test,
        "metric": measurement.metric,
        "model": measurement.model,
        "format": measurement.format,
        "engine": measurement.engine,
        **_shape(quantity),
        "limit": dict(gate.limits),
        "verdict": str(limit.verdict),
        "identity": measurement.identity,
        "proof": dict(measurement.proof),
    }
    if gate.parameters:
        data["parameters"] = {name: _named(name, value) for name, value in gate.parameters}
    if measurement.reference is not None:
        data["reference"] = measurement.reference
    if measurement.confidence is not None:
        data["confidence"] = measurement.confidence
    if measurement.windows is not None:
        data[measurement.noun] = {"used": measurement.windows[0], "total": measurement.windows[1]}
    if measurement.scores and measurement.weights and all(map(math.isfinite, measurement.scores)):
        data["scores"], data["weights"] = list(measurement.scores), list(measurement.weights)
        if measurement.reference_scores and all(map(math.isfinite, measurement.reference_scores)):
            data["reference_scores"] = list(measurement.reference_scores)
        if measurement.alpha is not None:
            data["alpha"] = measurement.alpha
    if gate.min_effect is not None:
        data["min_effect"] = gate.min_effect
    if measurement.rounds is not None:
        data["rounds"] = {"played": measurement.rounds, "budget_spent": measurement.spent}
    if measurement.bounds:
        data["bounds"] = {which: dict(bound) for which, bound in measurement.bounds.items()}
    if measurement.conditions:
        data["conditions"] = [{"name": name, "text": text} for name, text in measurement.conditions]
    if measurement.reference_stored:
        data["reference_source"] = "stored"
    if measurement.main == "bound":
        data["lower_bound"] = True
    others = {
        name: {**_shape(q), **({"lower_bound": True} if name in measurement.lower_bounds else {})}
        for name, q in measurement.quantities.items()
        if name != measurement.main
    }
    if gate.metric != "memory_budget" and others:
        data["statistics"] = others
        limited = {LIMITS[gate.metric][name].quantity for name, _ in gate.limits}
        if len(limited) == 1 and measurement.main not in limited:
            data["limited"] = limited.pop()
    if limit.reason:
        data["reason"] = limit.reason
    if note := "; ".join(filter(None, (limit.note, measurement.remark))):
        data["note"] = note
    if measurement.engines:
        data["engines"] = measurement.engines
    if measurement.detail:
        data["detail"] = dict(measurement.detail)
    data.update({name: number for name, number in measurement.figures.items() if math.isfinite(number)})
    data["limit_shown"] = ", ".join(LIMITS[gate.metric][name].shown(name, value) for name, value in gate.limits)
    return data


def _named(name: str, value: Any) -> Any:
    """A parameter as it is told: of a file or folder its name, which is the same on every machine."""
    path = isinstance(value, str) and (name in ("include_path", "prompts") or value.endswith((".yaml", ".yml")))
    return PurePath(value).name if path else value


def _shape(quantity: Quantity) -> dict[str, Any]:
    """A quantity as plain data; an end that is not bounded is absent."""
    numbers = {"value": quantity.value, "low": quantity.low, "high": quantity.high}
    return {**{name: number for name, number in numbers.items() if math.isfinite(number)}, "unit": quantity.unit}
