"""The bound: a step cannot take less time than its bytes at the memory's rate, nor than its operations at the units'.

The roofline model: S. Williams, A. Waterman and D. Patterson, Roofline: an insightful visual performance model for
multicore architectures, Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quant.roofline.rates import Rates


@dataclass(frozen=True)
class Bound:
    """What limits one step of a whole batch, and to how much time."""

    seconds: float
    """No run can be faster."""
    regime: str
    """What limits it: ``bandwidth`` or ``compute``."""
    read: float
    """Bytes that have to be moved."""
    operations: float
    bandwidth_seconds: float | None
    """``None`` where the device's bandwidth is not known; then the operations alone bound."""
    compute_seconds: float | None
    """``None`` where the rate of the units is not known; then the bytes alone bound."""
    numeric: str
    """In what the products run."""
    weights: float = 0.0
    """Of the bytes: weights."""
    kv: float = 0.0
    """Of the bytes: keys and values."""

    @property
    def intensity(self) -> float:
        """Operations for each byte moved."""
        return self.operations / self.read if self.read else float("inf")

    @property
    def ridge(self) -> float | None:
        """The intensity at which both limits take as long: below it bandwidth limits, above it the units do."""
        if not self.bandwidth_seconds or not self.compute_seconds:
            return None
        return self.intensity * self.bandwidth_seconds / self.compute_seconds

    def share(self, seconds: float) -> float:
        """The part of the bound's speed that a run reached that took so long: the model bandwidth utilization where
        bandwidth limits, the model FLOPs utilization where the units do. ``ValueError`` unless ``seconds`` > 0."""
        if not seconds > 0:
            raise ValueError(f"a run takes more than 0 seconds, found {seconds}")
        return self.seconds / seconds

    def arithmetic(self) -> str:
        """The division behind ``seconds``, in words."""
        if self.regime == "compute":
            rate = self.operations / self.seconds
            amount = f"{scaled(self.operations, 'operations')} at {scaled(rate, 'operations/s')} in {self.numeric}"
        else:
            cache = f" + {scaled(self.kv, 'B')} of KV cache" if self.kv else ""
            amount = f"{scaled(self.weights, 'B')} of weights{cache} at {scaled(self.read / self.seconds, 'B/s')}"
        return f"{amount} = {milliseconds(self.seconds)} ({self.regime})"


def decode(*, weights: float, kv: float, operations: float, rates: Rates, numeric: str) -> Bound | None:
    """The bound on one decode step of a whole batch: each of the bytes of weights and KV cache is read once. ``None``
    where neither the bandwidth nor the rate of ``numeric`` is known."""
    return _bound(weights, kv, operations, rates, numeric)


def prefill(*, weights: float, kv: float, operations: float, rates: Rates, numeric: str) -> Bound | None:
    """The bound on a forward over prompts: the weights are read at least once, ``kv`` is what it writes. ``None`` where
    nothing is known."""
    return _bound(weights, kv, operations, rates, numeric)


def milliseconds(seconds: float) -> str:
    """Seconds to three digits, in a unit of their size."""
    if seconds >= 1.0:
        return f"{_three(seconds)} s"
    return f"{_three(1e3 * seconds)} ms" if seconds >= 1e-3 else f"{_three(1e6 * seconds)} us"


def _bound(weights: float, kv: float, operations: float, rates: Rates, numeric: str) -> Bound | None:
    rate = rates.operations.get(numeric)
    moving = (weights + kv) / rates.bandwidth if rates.bandwidth else None
    computing = operations / rate if rate else None
    known = [seconds for seconds in (moving, computing) if seconds is not None]
    if not known:
        return None
    seconds = max(known)
    return Bound(
        seconds=seconds,
        regime="bandwidth" if moving == seconds else "compute",
        read=weights + kv,
        operations=operations,
        bandwidth_seconds=moving,
        compute_seconds=computing,
        numeric=numeric,
        weights=weights,
        kv=kv,
    )


def scaled(amount: float, unit: str = "B") -> str:
    """An amount to three digits, in a power of ten of its size: ``138.0 GB``, ``7.54 trillion operations``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= factor:
            number = _three(amount / factor)
            return f"{number} {prefix}{unit}" if unit.startswith("B") else f"{number} {_words(prefix)} {unit}"
    return f"{_three(amount)} {unit}"


def _words(prefix: str) -> str:
    return {"T": "trillion", "G": "billion", "M": "million", "k": "thousand"}[prefix]


def _three(number: float) -> str:
    """Not less than three digits, and none after the point from 100 on but one: 1.23, 12.3, 168.4."""
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
