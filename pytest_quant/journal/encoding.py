"""A measurement as JSON and back, exactly; what is damaged is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pytest_quant.gates.gate import LIMITS
from pytest_quant.gates.measurement import Measurement, Quantity

SCHEMA = 1
_SIGN = "~"
"""Begins the only key of an object that stands for what JSON has not."""


class DamagedError(ValueError):
    """A file is not what this version writes; the message says why."""


@dataclass(frozen=True)
class Kept:
    """A measurement, and what was found behind the gate that it broke."""

    measurement: Measurement
    explanation: Mapping[str, Any] | None = None
    explained_by: str | None = None
    """What the explanation was made against; None where there is none."""


def encode(key: str, kept: Kept) -> bytes:
    """The content of a file. :class:`TypeError` for a measurement that holds anything but plain data."""
    measurement = {field.name: getattr(kept.measurement, field.name) for field in fields(Measurement)}
    measurement["quantities"] = {name: _numbers(quantity) for name, quantity in kept.measurement.quantities.items()}
    measurement["lower_bounds"] = sorted(kept.measurement.lower_bounds)
    body: dict[str, Any] = {"measurement": _plain(measurement)}
    if kept.explained_by is not None:
        body["explanation"] = {"by": kept.explained_by, "found": _plain(kept.explanation)}
    whole = {"schema": SCHEMA, "key": key, "sha256": _digest(body), "body": body}
    return (json.dumps(whole, allow_nan=False, separators=(",", ":")) + "\n").encode()


def decode(content: bytes, key: str) -> Kept:
    """What :func:`encode` was given. Raises :class:`DamagedError` for anything that it would not have written."""
    try:
        whole = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is no JSON: {str(error)[:100]}") from None
    if not isinstance(whole, dict) or whole.keys() != {"schema", "key", "sha256", "body"}:
        raise DamagedError("it has other parts than a kept measurement")
    if whole["schema"] != SCHEMA:
        raise DamagedError("it was written by another version")
    if whole["key"] != key:
        raise DamagedError("it is the answer to another question: it was renamed")
    try:
        sound = whole["sha256"] == _digest(whole["body"])
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise DamagedError("its content was changed")
    try:
        return _kept(whole["body"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"its measurement cannot be understood: {type(error).__name__}: {error}") from None


def _digest(body: Any) -> str:
    text = json.dumps(body, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _numbers(quantity: Quantity) -> list[Any]:
    return [quantity.value, quantity.low, quantity.high, quantity.unit, quantity.detectable]


def _plain(value: Any) -> Any:
    """JSON for plain data; numbers of numpy become Python's."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {f"{_SIGN}float": repr(float(value))}
    if isinstance(value, tuple):
        return {f"{_SIGN}tuple": [_plain(each) for each in value]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        if all(isinstance(name, str) and not name.startswith(_SIGN) for name in value):
            return {name: _plain(each) for name, each in value.items()}
        return {f"{_SIGN}pairs": [[_plain(name), _plain(each)] for name, each in value.items()]}
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return _plain(item())
    raise TypeError(f"{type(value).__name__} is no plain data")


def _value(data: Any) -> Any:
    if isinstance(data, list):
        return [_value(each) for each in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1 and (name := next(iter(data))).startswith(_SIGN):
        return _SPECIAL[name](data[name])
    return {name: _value(each) for name, each in data.items()}


_SPECIAL: Mapping[str, Callable[[Any], Any]] = {
    f"{_SIGN}float": float,
    f"{_SIGN}tuple": lambda data: tuple(_value(each) for each in data),
    f"{_SIGN}pairs": lambda data: {_value(name): _value(each) for name, each in data},
}


def _kept(body: Any) -> Kept:
    if not isinstance(body, dict) or not {"measurement"} <= body.keys() <= {"measurement", "explanation"}:
        raise ValueError("other parts")
    explanation = body.get("explanation")
    if explanation is None:
        return Kept(_measurement(_value(body["measurement"])))
    found = _of(dict, _value(explanation["found"]))
    return Kept(_measurement(_value(body["measurement"])), found, _of(str, explanation["by"]))


def _measurement(data: dict[str, Any]) -> Measurement:
    if data.keys() != {field.name for field in fields(Measurement)}:
        raise ValueError("other fields")
    for name, value in data.items():
        if not _FIELDS[name](value):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    data["quantities"] = {name: _quantity(numbers) for name, numbers in data["quantities"].items()}
    data["lower_bounds"] = frozenset(data["lower_bounds"])
    if data["main"] not in data["quantities"] or data["metric"] not in LIMITS:
        raise ValueError(f"{data['metric']} has no {data['main']}")
    return Measurement(**data)


def _quantity(data: Any) -> Quantity:
    value, low, high, unit, detectable = data
    return Quantity(_number(value), _number(low), _number(high), _of(str, unit), _number(detectable))


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:40]!r} is no {kind.__name__}")
    return value


def _number(value: Any) -> float:
    if not _is_number(value):
        raise TypeError(f"{str(value)[:40]!r} is no number")
    return value  # type: ignore[no-any-return]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _numbers_only(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_number, value))


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "metric": _is_text,
    "model": _is_text,
    "format": _is_text,
    "engine": _is_text,
    "main": _is_text,
    "quantities": _is_mapping,
    "identity": _is_mapping,
    "reference": _or_none(_is_text),
    "confidence": _or_none(_is_number),
    "alpha": _or_none(_is_number),
    "windows": _or_none(lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_is_count, value))),
    "noun": _is_text,
    "figures": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "scores": _or_none(_numbers_only),
    "reference_scores": _or_none(_numbers_only),
    "weights": _or_none(_numbers_only),
    "lower_bounds": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "reference_stored": _is_count,
    "remark": _is_text,
    "engines": _is_text,
    "caveat": _is_text,
    "rounds": _or_none(_is_count),
    "spent": lambda value: isinstance(value, bool),
    "bounds": _is_mapping,
    "conditions": lambda value: isinstance(value, tuple) and all(_is_pair(each) for each in value),
    "proof": _is_mapping,
    "detail": _is_mapping,
}
"""What each field of a measurement may be."""


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_text, value))
