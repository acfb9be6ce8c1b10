"""One of two sides that are compared: a folder of baselines, a baseline file, a run record, or a run that was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_quant import baseline
from pytest_quant.errors import QuantError
from pytest_quant.gates.gate import MAIN, NOUNS, QUALITY, SAMPLED
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.verdict import Verdict


@dataclass(frozen=True)
class Item:
    """One measurement of a side, as a gate knows it and as a baseline does."""

    hardware: str
    measurement: Measurement
    entry: baseline.Entry
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Of the metric, for people."""
    min_effect: float | None = None
    broken: str = ""
    """Why its own gate failed in its run; empty where it did not."""

    @property
    def key(self) -> tuple[str, str, tuple[str, str, str]]:
        """Hardware, model, and what the entry is known by."""
        return self.hardware, self.measurement.model, self.entry.key

    @property
    def test(self) -> str:
        return str(self.entry.recorded.get("test", ""))


@dataclass(frozen=True)
class Unmeasured:
    """A gate of a run that has no number."""

    hardware: str
    model: str
    metric: str
    format: str
    parameters: Mapping[str, Any]
    test: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Side:
    """What a place holds. ``scope`` is the hardware key and the model that it speaks for; None for all of either: what
    another hardware measured is not missing from the record of one run."""

    where: str
    items: tuple[Item, ...] = ()
    hardware: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By key."""
    unmeasured: tuple[Unmeasured, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Why, by test."""
    scope: tuple[str | None, str | None] = (None, None)
    damaged: tuple[str, ...] = ()
    """A sentence for each file that cannot be read."""

    def covers(self, hardware: str, model: str) -> bool:
        return all(told in (None, asked) for told, asked in zip(self.scope, (hardware, model), strict=True))


def read(place: Path) -> Side:
    """The side at ``place``. Raises :class:`QuantError` where it is nothing of the kind; a damaged file of a folder is
    told in ``damaged``, and the others count."""
    from pytest_quant.comparing import kept, run_record

    if (asked := kept.asked(place)) is not None:
        return kept.side(*asked)
    if not place.is_dir() and (data := run_record.load(place)) is not None:
        return run_record.side(data, place)
    found = baseline.contents(place)
    if not found.files and kept.is_history(place):
        raise QuantError(f"{place}: holds runs, not baselines. Name one of them: {place}@COMMIT, or {place}@latest.")
    if not found.files and not found.damaged:
        raise QuantError(f"{place}: holds no baselines, so there is nothing to compare. Name a folder that does.")
    items: dict[tuple[str, str, tuple[str, str, str]], Item] = {}
    damaged = [str(error) for error in found.damaged]
    for path, file in found.files:
        for entry in file.entries:
            item = from_entry(str(file.hardware["key"]), file.model, entry)
            if item.key in items:
                damaged.append(f"{path}: holds what another file of {place} holds too: delete one of them.")
                break
            items[item.key] = item
    (only,) = [file for _, file in found.files] if not place.is_dir() else [None]
    return Side(
        str(place),
        tuple(items.values()),
        {str(file.hardware["key"]): file.hardware for _, file in found.files},
        scope=(None, None) if only is None else (str(only.hardware["key"]), only.model),
        damaged=tuple(damaged),
    )


def from_entry(hardware: str, model: str, entry: baseline.Entry) -> Item:
    """An accepted measurement. Which windows count how much is not kept in baselines, so its weights are None."""
    main = MAIN.get(entry.metric, entry.metric)
    quantity = Quantity(
        entry.value,
        entry.value if entry.low is None else entry.low,
        entry.value if entry.high is None else entry.high,
        entry.unit,
    )
    total = len(entry.scores or ())
    metric = _mapping(entry.identity.get("metric"))
    reference = _mapping(entry.identity.get("reference")).get("name")
    measurement = Measurement(
        metric=entry.metric,
        model=model,
        format=entry.format,
        engine=str(entry.identity.get("engine", "")),
        main=main,
        quantities={main: quantity},
        identity={**entry.identity, "metric": metric},
        reference=reference,
        windows=(total, total) if entry.metric in (*QUALITY, *SAMPLED) else None,
        noun=NOUNS.get(entry.metric, "windows"),
        figures=entry.figures,
        scores=entry.scores,
        reference_scores=entry.reference_scores,
    )
    parameters = {name: value for name, value in metric.items() if name != "name"}
    effect = entry.recorded.get("min_effect")
    return Item(hardware, measurement, entry, parameters, effect if isinstance(effect, (int, float)) else None)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
