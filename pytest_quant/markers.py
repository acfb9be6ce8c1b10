"""The markers of a test as gates; a mistake in one names the argument and the fix."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import product
from typing import Any

import pytest

from pytest_quant.errors import UsageError
from pytest_quant.gates.gate import LIMITS, Gate
from pytest_quant.metrics.workload import CACHES, PHASES
from pytest_quant.schemas import GATES, Quant
from pytest_quant.spec import packed

CHOICES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "throughput_ratio": {"phase": PHASES, "cache": (None, *CACHES)},
    "energy_ratio": {"phase": PHASES, "cache": (None, *CACHES)},
    "cost_ratio": {"phase": PHASES, "cache": (None, *CACHES)},
    "memory_budget": {"of": ("weights", "activations", "peak", "kv_cache")},
    "layer_sensitivity": {"of": ("layer", "block"), "strategy": (None, "tensor", "channel", "group")},
}
"""What some parameters may be, by marker."""
_ABOVE_ZERO = (
    *("min", "max_ratio", "max_gb", "max_gib", "max_joules", "max_usd"),
    *("min_recovery", "min_accuracy", "min_prefix", "min_same"),
)
_IN_NATS = ("perplexity_delta", "kl_divergence", "layer_sensitivity")
_RATIOS = ("kl_divergence", "layer_sensitivity", "energy_ratio", "cost_ratio")
"""Metrics of which every limit must be above 0."""
_PRICES = ("price", "reference_price")
_COUNTS = ("batch_size", "prompt_tokens", "new_tokens", "context")
_GRID = (*_COUNTS, "task", "num_fewshot")
"""Parameters of which a list makes a gate of each."""
_WHOLE: Mapping[str, int] = {
    **dict.fromkeys((*_COUNTS, "limit", "max_new_tokens", "windows", "group_size"), 1),
    "num_fewshot": 0,
}
"""Parameters that are whole numbers, and the least that they may be."""
_WORDS = ("task", "metric", "filter", "system_instruction", "include_path", "numeric")
_SWITCHES = ("apply_chat_template", "fewshot_as_multiturn", "chat_template")
_SHARES = {
    "token_agreement": ("min",),
    "generation_match": ("min", "min_prefix", "min_same"),
    "task_accuracy": ("min_accuracy",),
}
"""Limits that are shares, and cannot be above 1."""


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
    for name in ("model", "reference", "engine", "reference_engine", "revision"):
        _require(mark, name, arguments.get(name), str)
    for name in ("trust_remote_code", "require_native", "quantize"):
        _require(mark, name, arguments.get(name), bool)
    if (formats := arguments.get("formats")) is not None:
        if not isinstance(formats, (list, tuple)):
            raise UsageError(f'{_shown(mark, "formats")} must be a list of format names, such as ["int8", "nf4"]')
        arguments["formats"] = _format_names(mark, tuple(formats))
    if arguments.get("reference") is not None:
        _format_names(mark, (arguments["reference"],))
    if isinstance(arguments.get("device_map"), Mapping):
        arguments["device_map"] = tuple(arguments["device_map"].items())
    if isinstance(arguments.get("max_memory"), Mapping):
        arguments["max_memory"] = tuple(arguments["max_memory"].items())
    if (places := arguments.get("checkpoints")) is not None:
        if not isinstance(places, Mapping) or not all(isinstance(place, str) and place for place in places.values()):
            raise UsageError(f'{_shown(mark, "checkpoints")} must name a place for each format, as {{"gptq": "DIR"}}')
        if places:
            _format_names(mark, tuple(places))
        arguments["checkpoints"] = tuple(sorted(places.items()))
    if (told := arguments.get("engine_args")) is not None:
        if not isinstance(told, Mapping) or not all(isinstance(name, str) for name in told):
            raise UsageError(f'{_shown(mark, "engine_args")} must name values, as {{"tensor_parallel_size": 2}}')
        try:
            arguments["engine_args"] = packed(told)
        except TypeError as error:
            raise UsageError(f"{_shown(mark, 'engine_args')}: {error}; give plain values") from None
    return arguments


def gates(marks: Iterable[pytest.Mark]) -> tuple[Gate, ...]:
    """The gates of a test. Markers on one question are one gate with the limits of all; of a limit that is set twice
    the nearest counts."""
    found: dict[tuple[str, tuple[tuple[str, Any], ...]], Gate] = {}
    for mark in marks:
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
        if gate.metric == "task_accuracy" and [name for name, _ in gate.limits] == ["min_accuracy"]:
            raise UsageError("task_accuracy(min_accuracy=...) asks only for a sound reference; add max_drop=...")
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
    grid = {name: mark.kwargs[name] for name in _GRID if isinstance(mark.kwargs.get(name), (list, tuple))}
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
    defaults = {f.name: f.default for f in fields(schema) if f.name not in (*kinds, "min_effect")}
    parameters = {name: arguments.get(name, default) for name, default in defaults.items()}
    for name, value in parameters.items():
        choices = CHOICES.get(mark.name, {}).get(name)
        if choices is not None and value not in choices:
            known = (choice for choice in choices if choice is not None)
            raise UsageError(f"{_shown(mark, name)} must be one of {', '.join(map(repr, known))}")
        if name in _PRICES and value is not None:
            parameters[name] = _price(mark, name, value)
        if name in _WHOLE and not (value is None and defaults[name] is None):
            _check_whole(mark, name, value)
        if name in _WORDS and (value == "" or (value is not None and not isinstance(value, str))):
            raise UsageError(f"{_shown(mark, name)} must be a text")
        if name in _SWITCHES:
            _require(mark, name, value, bool)
    if mark.name == "memory_budget" and parameters["of"] == "weights":  # neither plays a part in them
        parameters.update(batch_size=1, context=512)
    if "phase" in parameters:
        _check_cache(mark, parameters)
    if mark.name == "task_accuracy" and parameters["task"] is None:
        raise UsageError('task_accuracy needs a task of lm-eval: task="arc_easy", or the path of a YAML file')
    if mark.name == "generation_match":
        parameters["prompts"] = _prompts(mark, parameters["prompts"])
    if mark.name == "layer_sensitivity":
        _check_rounding(mark, parameters)
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


def _check_whole(mark: pytest.Mark, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < _WHOLE[name]:
        raise UsageError(f"{_shown(mark, name)} must be a whole number of {_WHOLE[name]} or more")


def _prompts(mark: pytest.Mark, value: Any) -> Any:
    """A path, or texts."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    texts = list(value) if isinstance(value, (list, tuple)) else [value]
    if value is not None and not (texts and all(isinstance(text, str) and text for text in texts)):
        raise UsageError(f"{_shown(mark, 'prompts')} must be a list of texts, or the path of a JSONL or text file")
    return tuple(texts) if isinstance(value, (list, tuple)) else value


def _check_rounding(mark: pytest.Mark, parameters: Mapping[str, Any]) -> None:
    """A rounding is whole or not there: what the numbers are, and what shares a scale."""
    told = [name for name in ("numeric", "strategy", "group_size") if parameters[name] is not None]
    if told and parameters["numeric"] is None:
        raise UsageError(f'{mark.name}({told[0]}=...) needs numeric="int8" or the like beside it')
    if parameters["numeric"] is not None:
        from pytest_quant.formats.rounding import Rounding

        try:
            Rounding.asked(parameters["numeric"], parameters["strategy"], parameters["group_size"])
        except UsageError as error:
            raise UsageError(f"{mark.name}: {error}") from None


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
    if name == "min_effect" and mark.name not in _IN_NATS and value >= 1:
        raise UsageError(f"{_shown(mark, name)} is a share and must be below 1; 0.01 is one percent")
    if name in _SHARES.get(mark.name, ()) and value > 1:
        units = "items" if mark.name == "task_accuracy" else "prompts" if name == "min_same" else "tokens"
        raise UsageError(f"{_shown(mark, name)} is a share of {units} and can be at most 1")
    if name == "max_drop" and value >= 1:
        raise UsageError(f"{_shown(mark, name)} is a share of items and must be below 1: it would always hold")
    if value == 0 and (name in _ABOVE_ZERO or (mark.name in _RATIOS and name != "min_effect")):
        raise UsageError(
            f"{_shown(mark, name)} must be above 0: it would {'always' if name.startswith('min') else 'never'} hold"
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
