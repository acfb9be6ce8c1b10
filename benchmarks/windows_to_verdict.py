"""How many windows a verdict takes, and how often it is wrong, by the distance of the limit from the truth.

    python benchmarks/window_scores.py .models/SmolLM2-135M-Instruct .models/window-scores.npz   # once
    python benchmarks/windows_to_verdict.py .models/window-scores.npz [--orders 2000]

The windows of the real model are put into random orders. In each the gate is judged as the plugin judges it: from the
8th window on after every window, with the interval of ``pytest_quant.stats.sequence`` at the default confidence, until
the limit lies outside or all windows are seen. The truth is the whole set. Beside it what a fixed subset gets wrong
that has the average number of windows (rounded), and what 8 windows without an interval get wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_quant.stats import sequence

ALPHA = 0.01
FACTORS = (0.25, 0.5, 0.8, 0.9, 0.95, 0.99, 1.01, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
Interval = Callable[[NDArray[np.intp]], tuple[float, float]]


def verdict(order: NDArray[np.intp], interval: Interval, limit: float) -> tuple[int, bool]:
    """Windows used, and whether the value is found to be above the limit."""
    for used in range(min(sequence.MIN_WINDOWS, len(order)), len(order) + 1):
        low, high = interval(order[:used])
        if low > limit:
            return used, True
        if high <= limit:
            return used, False
    raise AssertionError("the whole set decides")


def mean_of(values: NDArray[np.float64]) -> Interval:
    """Interval of the mean, as for ln(PPL ratio) and KL divergence."""
    weights = [1.0] * len(values)

    def interval(drawn: NDArray[np.intp]) -> tuple[float, float]:
        found = sequence.mean(values[drawn], weights[: len(drawn)], len(values), ALPHA)
        return found.low, found.high

    return interval


def share_of(hits: NDArray[np.int64], tokens: int) -> Interval:
    """Interval of a share of tokens, as for token agreement."""
    sizes = [tokens] * len(hits)

    def interval(drawn: NDArray[np.intp]) -> tuple[float, float]:
        found = sequence.share(hits[drawn], sizes[: len(drawn)], len(hits), ALPHA)
        return found.low, found.high

    return interval


def delta_of(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Interval:
    """Interval of the perplexity delta where the reference is not known beyond the windows drawn."""
    weights = [1.0] * len(ours)

    def interval(drawn: NDArray[np.intp]) -> tuple[float, float]:
        a, b = ours[drawn], theirs[drawn]
        value, base = np.exp(a.mean()), np.exp(b.mean())
        errors = value * sequence.influences(a, weights[: len(drawn)]) - base * sequence.influences(
            b, weights[: len(drawn)]
        )
        half = sequence.half_width(errors, len(ours), ALPHA)
        return float(value - base - half), float(value - base + half)

    return interval


def study(name: str, interval: Interval, count: int, orders: list[NDArray[np.intp]]) -> float:
    """Print a row for each limit; returns the largest share of wrong verdicts."""
    truth = sum(interval(np.arange(count))) / 2.0
    worst = 0.0
    print(f"\n{name}: {truth:.5f} over {count} windows")
    print("limit/truth   windows: mean  median    95 %   wrong   fixed subset wrong   8 windows wrong")
    for factor in FACTORS:
        limit = truth * factor
        found = [verdict(order, interval, limit) for order in orders]
        used = np.array([windows for windows, _ in found])
        wrong = float(np.mean([above != (truth > limit) for _, above in found]))
        fixed = [_point(interval, order[: round(used.mean())]) > limit for order in orders]
        eight = [_point(interval, order[:8]) > limit for order in orders]
        shares = [float(np.mean(np.array(said) != (truth > limit))) for said in (fixed, eight)]
        print(
            f"{factor:8.2f}x {used.mean():19.1f} {np.median(used):7.0f} {np.quantile(used, 0.95):7.0f} {wrong:7.2%} "
            f"{shares[0]:20.2%} {shares[1]:17.2%}"
        )
        worst = max(worst, wrong)
    return worst


def _point(interval: Interval, drawn: NDArray[np.intp]) -> float:
    low, high = interval(drawn)
    return (low + high) / 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scores", type=Path)
    parser.add_argument("--orders", type=int, default=2000)
    told = parser.parse_args()
    with np.load(told.scores) as stored:
        scores = {name: stored[name].astype(np.float64) for name in stored.files}
    reference = scores["fp32.nll"].mean(1)
    count, tokens = scores["fp32.nll"].shape
    generator = np.random.default_rng(0)
    orders = [generator.permutation(count) for _ in range(told.orders)]
    worst = 0.0
    for name in ("int8", "nf4"):
        ours = scores[f"{name}.nll"].mean(1)
        misses = tokens - scores[f"{name}.agree"].sum(1).astype(np.int64)
        studies = {
            "ln(PPL ratio), nats": mean_of(ours - reference),
            "perplexity delta, reference not stored": delta_of(ours, reference),
            "KL divergence, nats": mean_of(scores[f"{name}.kl"].mean(1)),
            "share of tokens that disagree": share_of(misses, tokens),
        }
        for what, interval in studies.items():
            worst = max(worst, study(f"{name}, {what}", interval, count, orders))
    print(f"\nmost wrong verdicts in {told.orders} orders of any limit: {worst:.2%} (promised: at most {ALPHA:.0%})")


if __name__ == "__main__":
    main()
