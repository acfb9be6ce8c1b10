"""A run record (docs/run-record.md) as one of two sides, checked before it is believed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quant import baseline
from pytest_quant.atomic import cause
from pytest_quant.comparing.sides import Item, Side, Unmeasured
from pytest_quant.errors import QuantError
from pytest_quant.gates.gate import MAIN, NOUNS
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.regression import usual_effect
from pytest_quant.gates.verdict import Verdict

SCHEMA = 1
_TEXTS = frozenset({"of", "phase", "task", "metric"})
"""Parameters that are names."""


def load(place: Path) -> dict[str, Any] | None:
    """The object in a file that claims to be a run record; None for a file that does not.

    Raises :class:`QuantError` where there is no such file, or it cannot be read.
    """
    try:
        data = json.loads(place.read_bytes())
    except FileNotFoundError:
        raise QuantError(f"{place}: there is no such file or folder. Name baselines or a run record.") from None
    except OSError as error:
        raise QuantError(f"{place}: cannot be read: {cause(error)}. Make it readable.") from error
    except (ValueError, RecursionError):
        return None  # a damaged baseline file says so better
    return data if isinstance(data, dict) and "environment" in data else None


def side(data: Mapping[str, Any], place: Path) -> Side:
    """What a run measured. Of two gates on one question the one that saw more counts; it is broken if either is, and as
    strict as the stricter of them.

    Raises :class:`QuantError` for anything malformed, with the place in the file.
    """
    read = _Reader(str(place))
    try:
        read.plain(data, "")
    except RecursionError:
        raise read.error("top level", "nested too deep") from None
    if (schema := data.get("schema")) != SCHEMA or isinstance(schema, bool):
        raise read.error("schema", f"found {schema!r}, expected {SCHEMA}; a newer one needs a newer pytest-quant")
    environment = read.of(data, "environment", dict, "")
    hardware = read.of(environment, "hardware", dict, "environment.")
    key = read.of(hardware, "key", str, "environment.hardware.") if hardware else ""
    recorded = {
        name: read.of(environment, told, kind, "environment.")
        for name, told, kind in (("date", "started", str), ("commit", "commit", str), ("packages", "packages", dict))
        if told in environment
    }
    items: dict[Any, Item] = {}
    unmeasured = []
    for number, record in enumerate(read.of(data, "measurements", list, "")):
        at = f"measurements[{number}]"
        if not isinstance(record, dict):
            raise read.error(at, "expected an object")
        if "value" not in record:
            unmeasured.append(read.unmeasured(record, key, at))
            continue
        item = read.item(record, key, recorded, at)
        other = items.get(item.key)
        items[item.key] = item if other is None else both(other, item)
    skipped = {}
    for number, skip in enumerate(read.of(data, "skipped", list, "")):
        at = f"skipped[{number}]"
        if not isinstance(skip, dict):
            raise read.error(at, "expected an object")
        skipped[read.of(skip, "test", str, f"{at}.")] = read.of(skip, "reason", str, f"{at}.")
    scope = (key or None, None)
    known = {key: hardware} if key else {}
    return Side(str(place), tuple(items.values()), known, tuple(unmeasured), skipped, scope)


def both(one: Item, other: Item) -> Item:
    """Two gates on one question as one."""
    counted = [(each.measurement.windows or (each.measurement.rounds or 0, 0))[0] for each in (one, other)]
    chosen = other if counted[1] > counted[0] else one
    return replace(
        chosen,
        broken=one.broken or other.broken,
        min_effect=min(one, other, key=_effect).min_effect,
    )


def _effect(item: Item) -> float:
    """The smallest change that breaks: what the gate says, or else what is usual for the metric."""
    return usual_effect(item.measurement) if item.min_effect is None else item.min_effect


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(place: str) -> str:
    return ascii(place)[1:-1] or "top level"


class _Reader:
    """Takes values out of a record; what is not as it should be is an error with its place."""

    def __init__(self, where: str) -> None:
        self._where = where

    def error(self, place: str, what: str) -> QuantError:
        return QuantError(f"{self._where}: {place}: {what}. Write the run record anew with --quant-json.")

    def plain(self, value: Any, place: str) -> None:
        """Refuse what Python reads as JSON and nobody can write: NaN, numbers beyond all floats, half characters."""
        if isinstance(value, dict):
            for name, each in value.items():
                self.plain(name, place)
                self.plain(each, f"{place}.{name}" if place else name)
        elif isinstance(value, list):
            for number, each in enumerate(value):
                self.plain(each, f"{place}[{number}]")
        elif isinstance(value, str) and not _is_text(value):
            raise self.error(_shown(place), f"found {ascii(value)[:40]}, expected text")
        elif isinstance(value, (int, float)) and not _is_finite(value):
            raise self.error(_shown(place), "found NaN, infinity or a number of hundreds of digits")

    def of(self, data: Mapping[str, Any], name: str, kind: type, before: str) -> Any:
        value = data.get(name)
        if not isinstance(value, kind):
            expected = {"dict": "an object", "list": "a list", "str": "a string"}[kind.__name__]
            found = "no such key" if name not in data else f"found {str(value)[:40]!r}"
            raise self.error(f"{before}{name}", f"{found}, expected {expected}")
        return value

    def numbers(self, data: Mapping[str, Any], name: str, at: str) -> tuple[float, ...] | None:
        if name not in data:
            return None
        return tuple(self._finite(number, f"{at}.{name}") for number in self.of(data, name, list, f"{at}."))

    def _finite(self, value: Any, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(place, f"found {str(value)[:40]!r}, expected a finite number")
        return float(value)

    def number(self, data: Mapping[str, Any], name: str, at: str, absent: float) -> float:
        return self._finite(data[name], f"{at}.{name}") if name in data else absent

    def metric(self, record: Mapping[str, Any], at: str) -> str:
        metric = str(self.of(record, "metric", str, f"{at}."))
        if metric not in MAIN:
            raise self.error(f"{at}.metric", f"found {metric!r}, expected one of {', '.join(sorted(MAIN))}")
        return metric

    def parameters(self, record: Mapping[str, Any], at: str) -> dict[str, Any]:
        found = dict(self.of(record, "parameters", dict, f"{at}.")) if "parameters" in record else {}
        for name in _TEXTS & found.keys():
            self.of(found, name, str, f"{at}.parameters.")
        return found

    def alpha(self, record: Mapping[str, Any], at: str) -> float:
        found = self.number(record, "alpha", at, 0.01)
        if not 0.0 < found < 1.0:
            raise self.error(f"{at}.alpha", f"found {found}, expected a share between 0 and 1")
        return found

    def unmeasured(self, record: Mapping[str, Any], hardware: str, at: str) -> Unmeasured:
        said = self.of(record, "verdict", str, f"{at}.")
        return Unmeasured(
            hardware,
            self.of(record, "model", str, f"{at}."),
            self.metric(record, at),
            self.of(record, "format", str, f"{at}."),
            self.parameters(record, at),
            self.of(record, "test", str, f"{at}."),
            Verdict.FAILED if said == Verdict.FAILED.value else Verdict.NOT_MEASURED,
            str(record.get("reason", "")),
        )

    def item(self, record: Mapping[str, Any], hardware: str, recorded: Mapping[str, Any], at: str) -> Item:
        metric = self.metric(record, at)
        if not hardware:
            raise self.error("environment.hardware.key", "no such key, expected a string")
        identity = self.of(record, "identity", dict, f"{at}.")
        self.of(identity, "metric", dict, f"{at}.identity.")
        noun = NOUNS.get(metric, "windows")
        windows = self._counted(record, noun, at)
        scores, weights = self.numbers(record, "scores", at), self.numbers(record, "weights", at)
        if scores is not None and (windows is None or len(scores) != windows[0] or len(weights or ()) != len(scores)):
            raise self.error(
                f"{at}.scores", f"found {len(scores)}, expected one, and one weight, for each of the {noun}"
            )
        if weights is not None and min(weights, default=1.0) <= 0.0:
            raise self.error(f"{at}.weights", "found one of 0 or less, expected each above 0")
        value = self._finite(record["value"], f"{at}.value")
        low, high = self.number(record, "low", at, -math.inf), self.number(record, "high", at, math.inf)
        unit = self.of(record, "unit", str, f"{at}.")
        main = "bound" if record.get("lower_bound") is True else MAIN[metric]
        figures = {
            name: self._finite(record[name], f"{at}.{name}")
            for name in ("format_value", "reference_value", "ratio")
            if name in record
        }
        rounds = self.of(record, "rounds", dict, f"{at}.").get("played") if "rounds" in record else None
        conditions = self.of(record, "conditions", list, f"{at}.") if "conditions" in record else []
        reference_scores = self.numbers(record, "reference_scores", at)
        measurement = Measurement(
            metric=metric,
            model=self.of(record, "model", str, f"{at}."),
            format=self.of(record, "format", str, f"{at}."),
            engine=self.of(record, "engine", str, f"{at}."),
            main=main,
            quantities={main: Quantity(value, low, high, unit)},
            identity=identity,
            reference=record.get("reference"),
            alpha=self.alpha(record, at),
            windows=windows,
            noun=noun,
            figures=figures,
            scores=scores,
            reference_scores=reference_scores,
            weights=weights,
            reference_stored=int(record.get("reference_source") == "stored"),
            rounds=rounds if isinstance(rounds, int) else None,
            conditions=tuple(
                (str(each.get("name")), str(each.get("text"))) for each in conditions if isinstance(each, dict)
            ),
        )
        entry = baseline.Entry(
            metric,
            measurement.format,
            identity,
            value,
            unit,
            low=low if math.isfinite(low) and low != high else None,
            high=high if math.isfinite(high) and low != high else None,
            scores=scores,
            reference_scores=reference_scores,
            figures=figures,
            recorded={**recorded, "test": self.of(record, "test", str, f"{at}.")},
        )
        broken = ""
        if (said := self.of(record, "verdict", str, f"{at}.")) in (Verdict.FAILED.value, Verdict.NOT_MEASURED.value):
            broken = str(record.get("reason") or said)
        effect = self.number(record, "min_effect", at, math.nan)
        return Item(
            hardware,
            measurement,
            entry,
            self.parameters(record, at),
            None if math.isnan(effect) else effect,
            broken,
        )

    def _counted(self, record: Mapping[str, Any], noun: str, at: str) -> tuple[int, int] | None:
        if noun not in record:
            return None
        found = self.of(record, noun, dict, f"{at}.")
        used, total = found.get("used"), found.get("total")
        if not isinstance(used, int) or not isinstance(total, int) or not 0 < used <= total:
            raise self.error(
                f"{at}.{noun}", f"found {used} of {total}, expected whole numbers, some of those there are"
            )
        return used, total
