"""What a test asks for: its model, its formats and its gates, from its markers, its fixtures and the options."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quant import markers, schemas
from pytest_quant.cache import expanded
from pytest_quant.configuration.places import local_folder, local_place
from pytest_quant.declarations import FORMAT, FORMAT_FIXTURES
from pytest_quant.engines import transformers, vllm
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.vllm.arguments import check
from pytest_quant.errors import UsageError
from pytest_quant.formats import registry
from pytest_quant.gates.gate import Gate
from pytest_quant.options import Options
from pytest_quant.placement import Placement, parse
from pytest_quant.spec import ModelSpec

ENGINES = (transformers.NAME, vllm.NAME)
_BY_HAND = {"quant_measure", "quant_scan"}
"""Fixtures that are told in the test's body which format is meant."""


@dataclass(frozen=True)
class Target:
    """A quantization test, resolved."""

    spec: ModelSpec
    formats: tuple[str, ...]
    gates: tuple[Gate, ...]
    needs_reference: bool
    imperative: bool
    """It measures in its body, formats that nobody knows beforehand."""
    asks_for_reference: bool = False
    """It has the reference's model as a fixture."""

    @property
    def only_quality(self) -> bool:
        """Whether the reference is needed for gates alone that a stored one can answer."""
        return not self.asks_for_reference and all(g.is_quality or not g.needs_reference for g in self.gates)


def formats_by_fixture(fixtures: Collection[str]) -> tuple[str, ...]:
    """The formats that a test names by fixtures such as ``nf4_model``."""
    return tuple(FORMAT_FIXTURES[name] for name in fixtures if name in FORMAT_FIXTURES)


def formats_of(item: pytest.Item, fixtures: Collection[str]) -> tuple[str, ...]:
    """The formats of a collected test: the one that it is parametrized with, or those of its fixtures."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and FORMAT in callspec.params:
        return (callspec.params[FORMAT],)
    return formats_by_fixture(fixtures)


def formats_to_parametrize(function: pytest.Item, fixtures: Collection[str], options: Options) -> tuple[str, ...]:
    """The formats that the test is run in, one after the other; none where it names them itself: by fixtures such
    as ``nf4_model``, or in the calls of ``quant_measure``."""
    marks = list(function.iter_markers())
    marker = markers.quant(marks)
    gated = bool(markers.gates(marks))
    by_fixture = formats_by_fixture(fixtures)
    in_turn = bool({FORMAT, "quant_model"} & set(fixtures)) or (gated and not by_fixture)
    marked = marker.formats if marker is not None else None
    if gated and by_fixture and not in_turn and set(marked or by_fixture) != set(by_fixture):
        raise UsageError(
            f"quant(formats=...) names {', '.join(marked or ())}, but the test asks for {', '.join(by_fixture)} by "
            f"fixture, which its gates would be for; use quant_model, or leave formats out"
        )
    if not in_turn and (by_fixture or _BY_HAND & set(fixtures)):
        return ()
    if marked is not None:
        return marked
    if not in_turn:
        return ()
    if options.formats is None:
        raise UsageError(
            'no format: give quant(formats=["int8"]), --quant-formats=int8, or formats in [tool.pytest-quant] of '
            "pyproject.toml"
        )
    return options.formats


def resolve(node: pytest.Item, fixtures: Collection[str], formats: tuple[str, ...], options: Options) -> Target:
    """What a test asks for, in these formats; :class:`UsageError` for a mistake in a marker, or no model anywhere."""
    marks = list(node.iter_markers())
    marker = markers.quant(marks) or schemas.Quant()
    gates = tuple(located(gate, options.rootpath) for gate in markers.gates(marks))
    markers.check_stacked((place, mark) for place, mark in node.iter_markers_with_node())
    spec = spec_of(marker, options)
    if registry.get(spec.reference).quantized:
        raise UsageError(f"reference={spec.reference!r} is a quantized format; use fp32, bf16 or fp16")
    gated = tuple(name for name in formats if name != spec.reference or len(formats) == 1)
    if gates and not gated:
        raise UsageError("the test has gates but no format; only test functions can be run in formats")
    needs_reference = any(gate.needs_reference for gate in gates)
    if needs_reference and spec.reference in gated:
        raise UsageError(
            f"{spec.reference} is the reference, so its difference from the reference is always 0; test another "
            f"format, or set quant(reference=...)"
        )
    return Target(
        spec=spec,
        formats=gated if gates else formats,
        gates=gates,
        needs_reference=needs_reference or "reference_model" in fixtures,
        imperative=bool(_BY_HAND & set(fixtures)),
        asks_for_reference="reference_model" in fixtures or spec.reference in formats,
    )


def located(gate: Gate, rootpath: Path) -> Gate:
    """The gate with its relative folders and files as seen from the rootdir."""
    parameters = []
    for name, value in gate.parameters:
        path = isinstance(value, str) and (name in ("include_path", "prompts") or value.endswith((".yaml", ".yml")))
        parameters.append((name, str(rootpath / expanded(value)) if path else value))
    return replace(gate, parameters=tuple(parameters))


def spec_of(marker: schemas.Quant, options: Options) -> ModelSpec:
    """What a marker, and the options where it leaves something out, say of the model."""
    model = local_folder(options.rootpath, marker.model) or options.model
    if model is None:
        raise UsageError(
            "no model: give quant(model=...), --quant-model=MODEL, or model in [tool.pytest-quant] of pyproject.toml"
        )
    remote = options.trust_remote_code if marker.trust_remote_code is None else marker.trust_remote_code
    engine = marker.engine or options.engine
    of_reference = marker.reference_engine or options.reference_engine or engine
    for each in (engine, of_reference):
        if each not in ENGINES:
            raise UsageError(f"unknown engine {each!r}; the engines are {' and '.join(ENGINES)}")
    served = vllm.NAME in (engine, of_reference)
    if marker.engine_args and not served:
        names = ", ".join(name for name, _ in marker.engine_args)
        raise UsageError(
            f'engine_args ({names}) are those of vLLM, and no model of this test runs on it: engine="vllm"'
        )
    arguments = options.engine_args if marker.engine_args is None else marker.engine_args
    spec = ModelSpec(
        source=ModelSource(model, marker.revision or options.revision, remote),
        reference=marker.reference or options.reference,
        engine=engine,
        engine_args=arguments if served else (),
        reference_engine=None if of_reference == engine else of_reference,
        checkpoints=tuple((name, local_place(options.rootpath, place)) for name, place in marker.checkpoints or ()),
        quantize=marker.quantize,
        require_native=marker.require_native,
        placement=_placement(marker, options, {engine, of_reference}),
    )
    check(spec.arguments())
    return spec


def _placement(marker: schemas.Quant, options: Options, engines: Collection[str]) -> Placement | None:
    asked: Any = options.device_map if marker.device_map is None else marker.device_map
    if asked is None:
        if marker.max_memory is not None:
            raise UsageError('quant(max_memory=...) goes with a device_map, such as device_map="auto"')
        return None
    if transformers.NAME not in engines:
        if marker.device_map is None:  # of the run, of which other tests use transformers
            return None
        raise UsageError("quant(device_map=...) is of the engine transformers; vLLM places a model by itself")
    if isinstance(asked, tuple):
        asked = dict(asked)
    return parse(asked, None if marker.max_memory is None else dict(marker.max_memory))
