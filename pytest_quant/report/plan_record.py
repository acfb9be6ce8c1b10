"""A plan as plain data, for programs: bytes, seconds and operations; what is not known is absent."""

from __future__ import annotations

from typing import Any

from pytest_quant.environment import describe_hardware
from pytest_quant.metrics.cost import dollars
from pytest_quant.planning.planner import Plan
from pytest_quant.planning.predict import Prediction
from pytest_quant.report.planning import gates
from pytest_quant.roofline.bound import Bound


def record(plan: Plan, price: float | None = None) -> dict[str, Any]:
    """The whole plan; ``price`` is dollars an hour for one device."""
    question, machine, advice = plan.question, plan.machine, plan.advice
    need, rates = question.need, machine.rates
    return {
        "model": question.source.name,
        "parameters": question.shape.parameters,
        "hardware": describe_hardware(machine.device),
        "here": machine.here,
        "count": machine.count,
        "rates": {
            "bandwidth": rates.bandwidth,
            "bandwidth_source": rates.bandwidth_source,
            "operations": dict(rates.operations),
            "operations_source": rates.operations_source,
        },
        "load": question.load,
        "need": need,
        "reference": question.compute.name,
        "formats": [_row(row, price, machine.count) for row in plan.rows],
        "out": [{"format": name, "reason": reason} for name, reason in advice.broken],
        "cannot_be_told": [{"format": name, "reason": reason} for name, reason in advice.open],
        "cannot_run": [
            {"format": name, "asked": why.asked, "found": why.found, "needed": why.needed} for name, why in plan.refused
        ],
        "recommended": None if advice.chosen is None else advice.chosen.name,
        "reasons": list(advice.reasons),
        "gates": gates(plan),
    }


def _row(row: Prediction, price: float | None, count: int) -> dict[str, Any]:
    memory, speed = row.memory, row.tokens_per_second
    return {
        "format": row.name,
        "status": row.support.status,
        "numeric": row.numeric,
        "stored_bytes": row.stored_bytes,
        "weight_bytes": row.weight_bytes,
        "memory": {
            "weights": memory.weights,
            "kv": memory.kv,
            "activations": memory.activations or None,
            "runtime": memory.runtime,
            "total": memory.total,
        },
        "fits": memory.fits,
        "decode": None if row.decode is None else _bound(row.decode),
        "prefill": None if row.prefill is None else _bound(row.prefill),
        "tokens_per_second": speed,
        "dollars_per_million_tokens": None if price is None or speed is None else dollars(speed, price * count),
        "turns_at": row.turns_at,
        "most_sequences": row.most_sequences,
    }


def _bound(limit: Bound) -> dict[str, Any]:
    """``regime`` only where it is certain: where one of the rates is not known, the other may not be what limits."""
    return {
        "seconds": limit.seconds,
        "regime": limit.regime if limit.ridge is not None else None,
        "bytes": limit.read,
        "operations": limit.operations,
    }
