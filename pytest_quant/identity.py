"""The identity of a measurement: what decides whether two of them may be compared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant.engines import vllm
from pytest_quant.engines.vllm import arguments
from pytest_quant.engines.vllm.environment import environment, numbers
from pytest_quant.formats import registry
from pytest_quant.gates.gate import Gate
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.hardware import Device

_ELSEWHERE = ("price", "reference_price", "include_path", "prompts")
"""Parameters of which ``detail`` says what they came to: prices that may also come from the run, files by their
content."""


def served(spec: ModelSpec, format_name: str, device: Device) -> dict[str, Any]:
    """What vLLM was told of a format, as far as it decides answers or speeds; nothing where it does not run it."""
    if spec.engine_of(format_name) != vllm.NAME:
        return {}
    told = arguments.identity(
        registry.get(format_name),
        device,
        spec.arguments(),
        is_reference=format_name == spec.reference,
        environment=numbers(environment(os.environ, device.kind)),
    )
    return {name: value for name, value in told.items() if name != "name"}


def reference_runs_on(spec: ModelSpec, device: Device) -> str:
    """The reference's engine with what it was told: what is stored of a reference is of both."""
    told = served(spec, spec.reference, device)
    engine = spec.engine_of(spec.reference)
    return f"{engine} {json.dumps(told, sort_keys=True)}" if told else engine


def identity(
    spec: ModelSpec,
    format_name: str,
    gate: Gate,
    fingerprint: str,
    detail: Mapping[str, Any],
    protocol: Mapping[str, Any] | None = None,
    engine_args: Mapping[str, Any] = MappingProxyType({}),
    reference_args: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Engine, format with its parameters, metric with its own and ``detail``, the model's ``fingerprint``, the
    reference unless bytes were counted, the ``protocol`` where windows were scored; what the engines of the format and
    of the reference were told, as :func:`served` has it, the latter where the engines differ."""
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
        if spec.reference_engine is not None:
            found["reference"]["engine"] = spec.reference_engine
        if reference_args:
            found["reference"]["engine_args"] = dict(reference_args)
    if engine_args:
        found["engine_args"] = dict(engine_args)
    if spec.placement is not None and (gate.is_timed or gate.metric == "memory_budget"):
        found["device_map"] = spec.placement.plain
    if protocol is not None:
        found["protocol"] = dict(protocol)
    return found
