"""Measurements of 32 windows or of some rounds, and baselines of them on disk."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quant import baseline
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.hardware import Device
from pytest_quant.verdicts import Judge, Policy

DEVICE = Device("cpu", "unknown", "Some CPU", "x86_64")
OTHER = Device("cpu", "unknown", "Other CPU", "x86_64")
TOTAL = 32
NLL = tuple(3.0 + 0.05 * (i * 7 % 13 - 6) for i in range(TOTAL))
SHARES = tuple(0.9 + 0.001 * (i * 5 % 11) for i in range(TOTAL))
REFERENCE = tuple(2.9 + 0.04 * (i * 5 % 11 - 5) for i in range(TOTAL))
METRICS = {
    # main quantity, unit, what each window scores, a limit that holds
    "perplexity_delta": ("delta", "ppl", NLL, ("max", 1.0)),
    "kl_divergence": ("mean", "nats", NLL, ("max", 1.0)),
    "token_agreement": ("share", "share", SHARES, ("min", 0.4)),
}


def shifted(scores: tuple[float, ...], by: float, spread: float = 0.0) -> tuple[float, ...]:
    """Scores that moved by ``by`` on average over all, and each by as much more as ``spread`` says."""
    source = random.Random(0)
    noise = [source.gauss(0.0, spread) for _ in scores]
    mean = math.fsum(noise) / len(noise)
    return tuple(score + by + one - mean for score, one in zip(scores, noise, strict=True))


def measured(
    metric: str = "perplexity_delta",
    used: int = TOTAL,
    *,
    by: float = 0.0,
    spread: float = 0.0,
    value: float = 0.5,
    half: float | None = None,
    **more: Any,
) -> Measurement:
    """What was found in the first windows, whose scores lie ``by`` above those of :data:`METRICS`."""
    main, unit, scores, _ = METRICS[metric]
    half = (0.0 if used == TOTAL else 0.1) if half is None else half
    one = Measurement(
        metric,
        "org/model",
        "nf4",
        "transformers",
        main,
        {main: Quantity(value, value - half, value + half, unit)},
        {"metric": {"name": metric}, "protocol": {"name": "gptq-64"}},
        reference="fp32",
        confidence=None if used == TOTAL else 0.99,
        alpha=0.005,
        windows=(used, TOTAL),
        scores=shifted(scores, by, spread)[:used],
        reference_scores=REFERENCE[:used],
        weights=(63.0,) * used,
    )
    return replace(one, **more)


def speed(value: float = 1.5) -> Measurement:
    return Measurement(
        "throughput_ratio",
        "org/model",
        "nf4",
        "transformers",
        "ratio",
        {"ratio": Quantity(value, value - 0.05, value + 0.05, "x")},
        {"metric": {"name": "throughput_ratio", "phase": "decode"}},
        reference="fp32",
        confidence=0.99,
    )


def timed(metric: str = "throughput_ratio", value: float = 1.5, half: float = 0.05, **more: Any) -> Measurement:
    """What some rounds said, of which more may be played."""
    second = {"energy_ratio": ("joules", "J/tok"), "cost_ratio": ("usd", "$/Mtok")}.get(metric)
    quantities = {"ratio": Quantity(value, value - half, value + half, "x")}
    if second is not None:
        quantities[second[0]] = Quantity(2.0, 1.9, 2.1, second[1])
    one = Measurement(
        metric,
        "org/model",
        "nf4",
        "transformers",
        "ratio",
        quantities,
        {"metric": {"name": metric, "phase": "decode"}},
        reference="fp32",
        confidence=0.99,
        alpha=0.005,
        rounds=14,
        spent=False,
    )
    return replace(one, **more)


def entry(of: Measurement, **more: Any) -> baseline.Entry:
    """What a baseline keeps of a measurement."""
    quantity = of.quantity
    kept = baseline.Entry(
        of.metric,
        of.format,
        of.identity,
        quantity.value,
        quantity.unit,
        low=None if quantity.is_exact else quantity.low,
        high=None if quantity.is_exact else quantity.high,
        scores=of.scores,
        reference_scores=of.reference_scores,
    )
    return replace(kept, **more)


def record(root: Path, *entries: baseline.Entry, device: Device = DEVICE) -> Path:
    """Write a baseline file; returns its path."""
    path = baseline.path_for(root, device.key, "org/model")
    hardware = {"key": device.key, "name": device.name, "architecture": device.architecture}
    baseline.write(path, baseline.File(hardware, "org/model", entries))
    return path


def gate(metric: str = "perplexity_delta", *limits: tuple[str, float], min_effect: float | None = None) -> Gate:
    """A gate with a limit that holds, or with the limits given."""
    return Gate(metric, limits or (METRICS[metric][3],), min_effect=min_effect)


def judge(root: Path, asked: Gate | None = None, *, compares: bool = True, **policy: Any) -> Judge:
    return Judge("test_it.py::test_it[nf4]", asked or gate(), DEVICE, Policy(compares=compares, root=root, **policy))
