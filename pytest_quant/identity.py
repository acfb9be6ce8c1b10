"""The identity of a measurement: what decides whether two of them may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pytest_quant.formats import registry
from pytest_quant.gates.gate import Gate
from pytest_quant.spec import ModelSpec

_ELSEWHERE = ("price", "reference_price", "include_path", "prompts")
"""Parameters of which ``detail`` says what they came to: prices that may also come from the run, files by their
content."""


def identity(
    spec: ModelSpec,
    format_name: str,
    gate: Gate,
    fingerprint: str,
    detail: Mapping[str, Any],
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Engine, format with its parameters, metric with its own and ``detail``, the model's ``fingerprint``, the
    reference unless bytes were counted, the ``protocol`` where windows were scored."""
    format = registry.get(format_name)
    described = registry.describe(format)
    if format.weights.num_bits < 16:
        described["compute_dtype"] = spec.compute_dtype
    places = dict(spec.checkpoints)
    if place := places.get(format.name) or places.get(format.base):
        described["checkpoint"] = place.replace("\\", "/").rpartition("/")[2]  # of several in one suite
    parameters = {name: value for name, value in gate.parameters if name not in _ELSEWHERE}
    if str(parameters.get("task", "")).endswith((".yaml", ".yml")):
        parameters["task"] = PurePath(parameters["task"]).stem
    found: dict[str, Any] = {
        "engine": spec.engine,
        "format": described,
        "metric": {"name": gate.metric, **parameters, **detail},
        "model": {"fingerprint": fingerprint},
    }
    if gate.metric != "memory_budget":
        found["reference"] = {"name": spec.reference}
    if protocol is not None:
        found["protocol"] = dict(protocol)
    return found
