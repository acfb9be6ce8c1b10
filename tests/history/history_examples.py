"""Folders of run records of an invented model, and the series that they make."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comparing_examples as examples

from pytest_quant.comparing.sides import Item, from_entry
from pytest_quant.gates.measurement import Quantity
from pytest_quant.history import History, Series, keep, read

SHA = [f"{number:07x}" + "c" * 33 for number in range(1000)]
"""Commits that no git knows; their order is that of the runs."""


def record(number: int, *measurements: dict[str, Any], on: dict[str, Any] = examples.A, **more: Any) -> dict[str, Any]:
    """The record of the run of a day."""
    environment = {
        "hardware": on,
        "packages": {"torch": "2.13.0"},
        "started": f"2026-{1 + number // 28:02d}-{1 + number % 28:02d}T08:00:00Z",
        "commit": SHA[number],
    }
    return {"schema": 1, "environment": environment, "measurements": list(measurements), "skipped": [], **more}


def history(folder: Path, *runs: Sequence[dict[str, Any]]) -> History:
    """What a folder says that holds a run for each list of measurements."""
    for number, measurements in enumerate(runs):
        keep(folder, record(number, *measurements))
    return read(folder)


def only(found: History) -> Series:
    (series,) = found.series
    return series


def moves(series: Series) -> dict[int, str]:
    """What moved, by the number of the run."""
    return {number: point.moved for number, point in enumerate(series.points) if point.moved}


def speed(value: float, half: float = 0.01, **more: Any) -> dict[str, Any]:
    """A measurement of a ratio whose interval is ``half`` of it to either side."""
    entry = examples.speed(value)
    return {
        "test": "test_it.py::test_fast[nf4]",
        "metric": "throughput_ratio",
        "model": examples.MODEL,
        "format": "nf4",
        "engine": "transformers",
        "value": value,
        "low": value * (1.0 - half),
        "high": value * (1.0 + half),
        "unit": "x",
        "limit": {"min": 1.0},
        "parameters": {"phase": "decode"},
        "verdict": "passed",
        "identity": dict(entry.identity),
        "rounds": {"played": 30, "budget_spent": True},
        **more,
    }


def weights(value: float, **more: Any) -> dict[str, Any]:
    """A measurement of bytes."""
    entry = examples.weights(value)
    return {
        **{name: text for name, text in speed(1.0).items() if name not in ("rounds", "low", "high")},
        "metric": "memory_budget",
        "value": value,
        "low": value,
        "high": value,
        "unit": "bytes",
        "limit": {"max_gb": 2.0},
        "parameters": {"of": "weights"},
        "identity": dict(entry.identity),
        **more,
    }


def ratios(logs: Sequence[float], half: float = 0.01) -> list[Item]:
    """Measurements of a speed ratio whose logarithms are these."""
    base = from_entry("gpu-a", examples.MODEL, examples.speed(1.5))
    values = [1.5 * math.exp(number) for number in logs]
    return [
        replace(base, measurement=replace(base.measurement, quantities={"ratio": Quantity(v, v - half, v + half, "x")}))
        for v in values
    ]


def loaded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
