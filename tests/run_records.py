"""Run records for tests of what is written from them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from pytest_quant.history.series import History, Point, Series

_RECORDED = Path(__file__).parent / "report" / "recorded_run.json"
HOSTILE = '</script><img src=x onerror="window.hurt=1">\'&amp;\u202emirror\U0001f999' + "x" * 200
"""A name that nobody should have: markup, quotes, an entity, right-to-left, an emoji, and no end."""


def recorded() -> dict[str, Any]:
    """A run of SmolLM2-135M-Instruct in int8 and nf4, as it was written on a CPU; every sixth block of its layers."""
    return json.loads(_RECORDED.read_text(encoding="utf-8"))


def failing() -> dict[str, Any]:
    """The same with a gate that breaks, something besides, and a test that was skipped."""
    record = recorded()
    broken = next(m for m in record["measurements"] if (m["metric"], m["format"]) == ("perplexity_delta", "nf4"))
    broken |= {
        "verdict": "failed",
        "breaks": True,
        "limit": {"max": 0.5},
        "limit_shown": "max 0.5 ppl",
        "reason": "5.199 ppl is above the limit (at most 0.5 ppl)",
        "explanation": {
            "metric": "perplexity_delta",
            "loss": {
                "verdict": "spread",
                "windows": 12,
                "tokens": 3060,
                "worse": 0.63,
                "worst_1": 0.086,
                "worst_10": 0.47,
                "mean": 0.27,
            },
            "next": ["pytest-quant scan org/model --format nf4 --reference fp32 --max 0.5"],
            "windows": [],
        },
    }
    record["failed"] = [broken["test"]]
    record["troubles"] = ["--quant-require: fp8 was not measured (no GPU)"]
    record["skipped"] = [{"test": "test_it.py::test_it[fp8]", "format": "fp8", "reason": "asked: fp8; found: a CPU"}]
    return record


def empty(*skipped: dict[str, str]) -> dict[str, Any]:
    """A run in which nothing was measured."""
    return {**recorded(), "measurements": [], "skipped": list(skipped)}


def hostile() -> dict[str, Any]:
    """The failing one with :data:`HOSTILE` wherever a file may put a text."""
    record = failing()
    for measurement in record["measurements"]:
        for name in ("model", "reason", "limit_shown", "note"):
            if name in measurement or name == "note":
                measurement[name] = HOSTILE
        measurement["test"] = f"test_{HOSTILE}"
        if measurement["format"] == "nf4":
            measurement["format"] = HOSTILE
        for layer in measurement.get("detail", {}).get("layers", ()):
            layer["name"] = f"{layer['name']}{HOSTILE}"
        for bound in measurement.get("bounds", {}).values():
            bound["numeric"] = HOSTILE
        if "explanation" in measurement:
            measurement["explanation"]["next"] = [HOSTILE]
    record["failed"] = [f"test_{HOSTILE}"]
    record["environment"]["hardware"] |= {"name": HOSTILE, "notes": [HOSTILE]}
    record["environment"]["commit"] = HOSTILE
    record["troubles"] = [HOSTILE]
    record["skipped"] = [{"test": HOSTILE, "format": HOSTILE, "reason": HOSTILE}]
    return record


def without(record: dict[str, Any], *path: str | int) -> dict[str, Any]:
    """A copy that lacks what is at a place."""
    found = copy.deepcopy(record)
    inner: Any = found
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return found


def history(model: str = "SmolLM2-135M-Instruct") -> History:
    """Six runs, the fourth of which got worse."""
    points = tuple(
        Point(
            commit=f"{place}abcdef0123",
            started=f"2026-11-{10 + place}T12:00:00Z",
            value=0.2 + (0.5 if place >= 3 else 0.0),
            low=0.15 + (0.5 if place >= 3 else 0.0),
            high=None if place == 0 else 0.25 + (0.5 if place >= 3 else 0.0),
            verdict="passed",
            moved="worse" if place == 3 else "",
            change="+0.5 ppl" if place == 3 else "",
        )
        for place in range(6)
    )
    once = Series(model, "int8", "memory weights", "cpu", "bytes", 2.5e8, True, points[:1])
    return History((Series(model, "nf4", "perplexity", "cpu", "ppl", 1.0, True, points), once), ("run.json: damaged",))
