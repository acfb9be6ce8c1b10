"""The markers: each one's schema is a frozen dataclass, and a mistake in one names the test and the fix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import pytest

from pytest_quant.declarations import LATER
from pytest_quant.errors import UsageError
from pytest_quant.gates.gate import LIMITS, Gate
from pytest_quant.metrics.workload import CACHES, PHASES


@dataclass(frozen=True)
class Quant:
    """``@pytest.mark.quant``: the model of a test and the formats that it is tested in."""

    model: str | None = None
    formats: tuple[str, ...] | None = None
    reference: str | None = None
    engine: str | None = None
    revision: str | None = None
    trust_remote_code: bool | None = None
    require_native: bool | None = None
    checkpoints: tuple[tuple[str, str], ...] | None = None
    """Format and place of what was quantized beforehand."""
    quantize: bool | None = None
    """Whether a checkpoint that is not there is made."""


@dataclass(frozen=True)
class PerplexityDelta:
    """``perplexity(format) - perplexity(reference) <= max``, in perplexity; or their ratio ``<= max_ratio``."""

    max: float | None = None
    max_ratio: float | None = None
    min_effect: float | None = None
    """The change since the baseline that matters, in nats a token; so in each marker, in its metric's unit."""


@dataclass(frozen=True)
class KLDivergence:
    """Mean ``KL(reference || format) <= max``, nats a token, over the whole vocabulary; ``p90`` to ``p999`` limit
    percentiles of all tokens, ``max_bound`` the lower bound that a stored reference gives."""

    max: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    max_bound: float | None = None
    min_effect: float | None = None


@dataclass(frozen=True)
class TokenAgreement:
    """Share of positions at which format and reference have the same most probable token ``>= min``."""

    min: float | None = None
    min_effect: float | None = None


@dataclass(frozen=True)
class Timed:
    """What is timed; a list of batch sizes, prompt or new tokens makes a gate of each combination."""

    min_effect: float | None = None
    phase: str = "decode"
    batch_size: int = 1
    prompt_tokens: int = 64
    new_tokens: int = 32
    cache: str | None = None
    """``dynamic``, ``static``; by default static where ``compile`` is."""
    compile: bool = False


@dataclass(frozen=True)
class ThroughputRatio(Timed):
    """``tokens/s(format) / tokens/s(reference) >= min`` of a phase."""

    min: float | None = None


@dataclass(frozen=True)
class EnergyRatio(Timed):
    """Joules a token, of the format over the reference's ``<= max``, or of the format itself ``<= max_joules``."""

    max: float | None = None
    max_joules: float | None = None


@dataclass(frozen=True)
class CostRatio(Timed):
    """Dollars a token, of the format over the reference's ``<= max``, or for a million tokens of the format
    ``<= max_usd``; ``price`` is an hour of what the format runs on, ``reference_price`` of what the reference does."""

    max: float | None = None
    max_usd: float | None = None
    price: float | None = None
    reference_price: float | None = None


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of ``weights``, of ``activations`` (what scoring a batch takes on top), at the ``peak`` (both) or of the
    ``kv_cache``; ``max_gb`` counts 10**9, ``max_gib`` 2**30, ``max_ratio`` is against the reference."""

    max_gb: float | None = None
    max_gib: float | None = None
    max_ratio: float | None = None
    min_effect: float | None = None
    of: str = "weights"
    batch_size: int = 1
    context: int = 512


GATES: Mapping[str, type] = {
    "perplexity_delta": PerplexityDelta,
    "kl_divergence": KLDivergence,
    "token_agreement": TokenAgreement,
    "throughput_ratio": ThroughputRatio,
    "energy_ratio": EnergyRatio,
    "cost_ratio": CostRatio,
    "memory_budget": MemoryBudget,
}
_CHOICES = {"phase": PHASES, "cache": (None, *CACHES), "of": ("weights", "activations", "peak", "kv_cache")}
_ABOVE_ZERO = ("min", "max_ratio", "max_gb", "max_gib", "max_joules", "max_usd")
_RATIOS = ("kl_divergence", "energy_ratio", "cost_ratio")
"""Metrics of which every limit must be above 0."""
_PRICES = ("price", "reference_price")
_COUNTS = ("batch_size", "prompt_tokens", "new_tokens", "context")


def quant(marks: Iterable[pytest.Mark]) -> Quant | None:
    """The ``quant`` markers of a test in one, the nearest first: what it leaves out, one farther out may say.

    None where there is no such marker. :class:`UsageError` says what is wrong with one.
    """
    found = [_quant_arguments(mark) for mark in marks if mark.name == "quant"]
    if not found:
        return None
    merged: dict[str, Any] = {}
    for arguments in found:
        merged = {**{name: value for name, value in arguments.items() if value is not None}, **merged}
    return Quant(**merged)


def _quant_arguments(mark: pytest.Mark) -> dict[str, Any]:
    arguments = _arguments(mark, Quant)
    for name in ("model", "reference", "engine", "revision"):
        _require(mark, name, arguments.get(name), str)
    for name in ("trust_remote_code", "require_native", "quantize"):
        _require(mark, name, arguments.get(name), bool)
    if (formats := arguments.get("formats")) is not None:
        if not isinstance(formats, (list, tuple)):
            raise UsageError(f'{_shown(mark, "formats")} must be a list of format names, such as ["int8", "nf4"]')
        arguments["formats"] = _format_names(mark, tuple(formats))
    if arguments.get("reference") is not None:
        _format_names(mark, (arguments["reference"],))
    if (places := arguments.get("checkpoints")) is not None:
        if not isinstance(places, Mapping) or not all(isinstance(place, str) and place for place in places.values()):
            raise UsageError(f'{_shown(mark, "checkpoints")} must name a place for each format, as {{"gptq": "DIR"}}')
        if places:
            _format_names(mark, tuple(places))
        arguments["checkpoints"] = tuple(sorted(places.items()))
    return arguments


def gates(marks: Iterable[pytest.Mark]) -> tuple[Gate, ...]:
    """The gates of a test. Markers on one question are one gate with the limits of all; of a limit that is set twice
    the nearest counts."""
    found: dict[tuple[str, tuple[tuple[str, Any], ...]], Gate] = {}
    for mark in marks:
        if mark.name in LATER:
            raise UsageError(f"{mark.name} is not known to this version of pytest-quant yet; remove the marker")
        for new in _gates(mark) if mark.name in GATES else ():
            question = (new.metric, new.parameters)
            limits, effect = dict(new.limits), new.min_effect
            if question in found:
                limits.update(found[question].limits)
                effect = effect if found[question].min_effect is None else found[question].min_effect
            found[question] = Gate(new.metric, tuple(sorted(limits.items())), new.parameters, effect)
    for gate in found.values():
        if not gate.limits:
            raise UsageError(f"{gate.metric} needs a limit beside min_effect: {_limit_names(gate.metric)}")
    return tuple(found.values())


def _limit_names(metric: str) -> str:
    return " or ".join(f"{name}=..." for name in LIMITS[metric])


def check_stacked(marks: Iterable[tuple[object, pytest.Mark]]) -> None:
    """:class:`UsageError` where one function, class or module sets the same limit twice: one would do nothing."""
    seen = set()
    for place, mark in marks:
        if mark.name not in GATES:
            continue
        for new in _gates(mark):
            names = [name for name, _ in new.limits] + (["min_effect"] if new.min_effect is not None else [])
            for name in names:
                key = (id(place), new.metric, new.parameters, name)
                if key in seen:
                    raise UsageError(f"{new.metric} sets {name} twice on the same test; keep one")
                seen.add(key)


def gate(metric: str, arguments: Mapping[str, Any], *, limits_required: bool = True) -> Gate:
    """A gate from keyword arguments as a marker takes them; :class:`UsageError` for a wrong one."""
    return _gate(pytest.Mark(metric, (), arguments, _ispytest=True), limits_required=limits_required)


def _gates(mark: pytest.Mark) -> list[Gate]:
    """The gate of a marker or, where its counts are lists, one for each combination of them."""
    grid = {name: mark.kwargs[name] for name in _COUNTS if isinstance(mark.kwargs.get(name), (list, tuple))}
    if any(not values for values in grid.values()):
        raise UsageError(f"{mark.name}: {next(name for name, values in grid.items() if not values)}=[] tests nothing")
    cells = (dict(zip(grid, cell, strict=True)) for cell in product(*grid.values()))
    found = [_gate(pytest.Mark(mark.name, mark.args, {**mark.kwargs, **cell}, _ispytest=True)) for cell in cells]
    return list(dict.fromkeys(found))  # new_tokens plays no part in a prefill


def _gate(mark: pytest.Mark, *, limits_required: bool = True) -> Gate:
    schema = GATES[mark.name]
    arguments = _arguments(mark, schema)
    kinds = LIMITS[mark.name]
    limits = {name: _limit(mark, name, arguments[name]) for name in kinds if arguments.get(name) is not None}
    effect = None if arguments.get("min_effect") is None else _limit(mark, "min_effect", arguments["min_effect"])
    if not limits and effect is None and limits_required:
        raise UsageError(f"{mark.name} needs a limit: {_limit_names(mark.name)}")
    parameters = {
        f.name: arguments.get(f.name, f.default) for f in fields(schema) if f.name not in (*kinds, "min_effect")
    }
    for name, value in parameters.items():
        if name in _CHOICES and value not in _CHOICES[name]:
            choices = (choice for choice in _CHOICES[name] if choice is not None)
            raise UsageError(f"{_shown(mark, name)} must be one of {', '.join(map(repr, choices))}")
        if name in _PRICES and value is not None:
            parameters[name] = _price(mark, name, value)
        if name in _COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{_shown(mark, name)} must be a whole number of 1 or more")
    if parameters.get("of") == "weights":  # neither plays a part in them
        parameters.update(batch_size=1, context=512)
    if "phase" in parameters:
        _check_cache(mark, parameters)
    told = {name: value for name, value in parameters.items() if value is not None}
    return Gate(mark.name, tuple(sorted(limits.items())), tuple(sorted(told.items())), effect)


def _check_cache(mark: pytest.Mark, parameters: dict[str, Any]) -> None:
    """Settle what follows from the phase and from ``compile``."""
    _require(mark, "compile", parameters["compile"], bool)
    parameters["compile"] = bool(parameters["compile"])
    if parameters["phase"] != "decode":
        parameters.update(new_tokens=1)
        if parameters["compile"]:
            raise UsageError(f'{mark.name}(compile=True) is for phase="decode": prompts differ in length')
    if parameters["compile"] and parameters["cache"] == "dynamic":
        raise UsageError(f'{mark.name}(compile=True) needs cache="static": what grows is compiled again at every step')
    parameters["cache"] = parameters["cache"] or ("static" if parameters["compile"] else "dynamic")


def _price(mark: pytest.Mark, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value) or value <= 0:
        raise UsageError(f"{_shown(mark, name)} must be dollars an hour, a number above 0")
    return float(value)


def _limit(mark: pytest.Mark, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = f"; write {name}={value}" if isinstance(value, str) and _is_number(value) else ""
        raise UsageError(f"{_shown(mark, name)} must be a number, not {type(value).__name__}{hint}")
    if not _is_finite(value):
        raise UsageError(f"{_shown(mark, name)} must be a finite number: no value is ever beyond {value}")
    if value < 0:
        raise UsageError(f"{_shown(mark, name)} must not be negative")
    if name == "min_effect" and mark.name not in ("perplexity_delta", "kl_divergence") and value >= 1:
        raise UsageError(f"{_shown(mark, name)} is a share and must be below 1; 0.01 is one percent")
    if name == "min" and mark.name == "token_agreement" and value > 1:
        raise UsageError(f"{_shown(mark, name)} is a share of tokens and can be at most 1")
    if value == 0 and (name in _ABOVE_ZERO or (mark.name in _RATIOS and name != "min_effect")):
        raise UsageError(
            f"{_shown(mark, name)} must be above 0: it would {'always' if name == 'min' else 'never'} hold"
        )
    return float(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond floats
        return False


def _arguments(mark: pytest.Mark, schema: type) -> dict[str, Any]:
    limits = [*LIMITS.get(mark.name, ())]
    names = [*limits, *(f.name for f in fields(schema) if f.name not in limits)]
    if mark.args:
        raise UsageError(
            f"{mark.name} takes no positional arguments, got {', '.join(map(repr, mark.args))}; "
            f"write {mark.name}({names[0]}={mark.args[0]!r})"
        )
    for name in mark.kwargs:
        if name not in names:
            raise UsageError(f"{mark.name} has no argument {name!r}; its arguments are {', '.join(names)}")
    return dict(mark.kwargs)


def _require(mark: pytest.Mark, name: str, value: Any, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{_shown(mark, name)} must be a {kind.__name__}, not {type(value).__name__}")


def _format_names(mark: pytest.Mark, names: tuple[Any, ...]) -> tuple[str, ...]:
    from pytest_quant.formats import registry

    if not names:
        raise UsageError(f"{mark.name}(formats=[]) tests nothing; name at least one format")
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{mark.name}: {name!r} is not the name of a format")
        registry.get(name)
    return tuple(dict.fromkeys(names))


def _shown(mark: pytest.Mark, name: str) -> str:
    return f"{mark.name}({name}={mark.kwargs[name]!r}):"
