"""Baselines and run records of an invented model on invented hardware, on disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quant import baseline
from pytest_quant.cli import main

MODEL = "org/model"
A, B, C = (
    {"key": key, "name": name, "count": 1, "architecture": architecture}
    for key, name, architecture in (
        ("gpu-a", "GPU A", "sm_80"),
        ("gpu-b", "GPU B", "sm_80"),
        ("gpu-c", "GPU C", "sm_90"),
    )
)
TOTAL = 16
NLL = tuple(3.0 + 0.05 * (i * 7 % 13 - 6) for i in range(TOTAL))
REFERENCE = tuple(2.9 + 0.04 * (i * 5 % 11 - 5) for i in range(TOTAL))
WEIGHTS = (63.0,) * 15 + (7.0,)
"""The last window is short."""


def mean(scores: tuple[float, ...], weights: tuple[float, ...] = WEIGHTS) -> float:
    return math.fsum(s * w for s, w in zip(scores, weights, strict=True)) / math.fsum(weights)


def identity(metric: str, fingerprint: str = "f" * 16, **parameters: Any) -> dict[str, Any]:
    return {
        "engine": "transformers",
        "format": {"name": "nf4"},
        "metric": {"name": metric, **parameters},
        "model": {"fingerprint": fingerprint},
        "protocol": {"name": "gptq-64"},
        "reference": {"name": "fp32"},
    }


def quality(by: float | tuple[float, ...] = 0.0, day: int = 1, **more: Any) -> baseline.Entry:
    """A perplexity delta whose windows score ``by`` nats more than the usual; recorded on some day."""
    moves = by if isinstance(by, tuple) else (by,) * TOTAL
    scores = tuple(score + move for score, move in zip(NLL, moves, strict=True))
    format_value, reference_value = math.exp(mean(scores)), math.exp(mean(REFERENCE))
    entry = baseline.Entry(
        "perplexity_delta",
        "nf4",
        identity("perplexity_delta"),
        format_value - reference_value,
        "ppl",
        scores=scores,
        reference_scores=REFERENCE,
        figures={"format_value": format_value, "reference_value": reference_value},
        recorded=recorded(day),
    )
    return replace(entry, **more)


def recorded(day: int) -> dict[str, Any]:
    return {
        "date": f"2026-01-{day:02d}T00:00:00Z",
        "commit": f"{day:040x}",
        "test": "test_it.py::test_it[nf4]",
        "packages": {"torch": "2.12.0"},
    }


def speed(value: float = 1.5, half: float = 0.05, day: int = 1) -> baseline.Entry:
    asked = identity("throughput_ratio", phase="decode")
    return baseline.Entry(
        "throughput_ratio", "nf4", asked, value, "x", low=value - half, high=value + half, recorded=recorded(day)
    )


def weights(value: float = 1e9, of: str = "weights", day: int = 1) -> baseline.Entry:
    return baseline.Entry(
        "memory_budget", "nf4", identity("memory_budget", of=of), value, "bytes", recorded=recorded(day)
    )


def put(root: Path, *entries: baseline.Entry, on: dict[str, Any] = A, model: str = MODEL) -> Path:
    """Write a baseline file; returns the folder."""
    baseline.write(baseline.path_for(root, on["key"], model), baseline.File(on, model, entries))
    return root


def measured(used: int = TOTAL, by: float = 0.0, verdict: str = "passed", **more: Any) -> dict[str, Any]:
    """An element of a run record: the perplexity delta of :func:`quality`, from the first windows."""
    entry = quality(by)
    found = {
        "test": "test_it.py::test_it[nf4]",
        "metric": "perplexity_delta",
        "model": MODEL,
        "format": "nf4",
        "engine": "transformers",
        "value": entry.value,
        "low": entry.value,
        "high": entry.value,
        "unit": "ppl",
        "limit": {"max": 1.0},
        "verdict": verdict,
        "identity": dict(entry.identity),
        "proof": {},
        "reference": "fp32",
        "windows": {"used": used, "total": TOTAL},
        "scores": list(entry.scores or ())[:used],
        "reference_scores": list(REFERENCE)[:used],
        "weights": list(WEIGHTS)[:used],
        "alpha": 0.005,
        **entry.figures,
    }
    return {**found, **more}


def run(path: Path, *measurements: dict[str, Any], on: dict[str, Any] | None = A, **more: Any) -> Path:
    """Write a run record; returns its path."""
    environment = {"hardware": on or {}, "packages": {"torch": "2.13.0"}, "started": "2026-02-01T00:00:00Z"}
    data = {"schema": 1, "environment": environment, "measurements": measurements, "skipped": [], **more}
    path.write_text(json.dumps(data))
    return path


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative name."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
