"""What is asked of a format, and whether a prediction can meet it, with the arithmetic in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quant.planning.predict import Prediction
from pytest_quant.roofline.bound import Bound, milliseconds, scaled

GOALS = ("quality", "latency", "throughput", "memory")


@dataclass(frozen=True)
class Need:
    """What must hold, and what is wanted most."""

    goal: str = "quality"
    max_seconds: float | None = None
    """Of a decode step: the time between two tokens of a sequence."""
    max_bytes: float | None = None
    """Of all memory that is used, on each device."""
    min_tokens_per_second: float | None = None
    """Generated, of the whole batch."""

    @property
    def stated(self) -> bool:
        """Whether anything must hold besides fitting."""
        return any(limit is not None for limit in (self.max_seconds, self.max_bytes, self.min_tokens_per_second))


def misses(row: Prediction, need: Need) -> str | None:
    """Why a format is out, with the arithmetic; ``None`` where nothing says so."""
    memory = row.memory
    if memory.fits is False and memory.there is not None:
        return f"{shown_memory(row)}, above the {scaled(memory.there)} of the device"
    if need.max_bytes is not None and memory.total > need.max_bytes:
        return f"{shown_memory(row)}, above {scaled(need.max_bytes)}"
    if row.decode is None:
        return None
    if need.max_seconds is not None and row.decode.seconds > need.max_seconds:
        return f"{worked_out(row.decode)} a step at best, above {milliseconds(need.max_seconds)}"
    speed = row.tokens_per_second
    if need.min_tokens_per_second is not None and speed is not None and speed < need.min_tokens_per_second:
        return f"{speed:,.1f} tokens/s at best ({worked_out(row.decode)}), below {need.min_tokens_per_second:,g}"
    return None


def untold(row: Prediction, need: Need) -> str | None:
    """What is not known that the need asks for; ``None`` where everything is."""
    if row.decode is None and (need.max_seconds is not None or need.min_tokens_per_second is not None):
        return "neither the device's bandwidth nor the rate of its units is known"
    if row.memory.fits is None and need.max_bytes is None:
        return "the device's memory is not known"
    return None


def share_needed(row: Prediction, need: Need) -> float | None:
    """The part of the bound's speed that a format must reach to meet the need; ``None`` where no speed is asked for, or
    none known."""
    speed = row.tokens_per_second
    if row.decode is None or speed is None:
        return None
    shares = []
    if need.max_seconds is not None:
        shares.append(row.decode.seconds / need.max_seconds)
    if need.min_tokens_per_second is not None:
        shares.append(need.min_tokens_per_second / speed)
    return max(shares, default=None)


def shown_memory(row: Prediction) -> str:
    """The sum behind a format's memory on one device."""
    memory = row.memory
    parts = [f"{scaled(memory.weights)} of weights"]
    if memory.kv:
        parts.append(f"{scaled(memory.kv)} of KV cache")
    if memory.activations:
        parts.append(f"{scaled(memory.activations)} of activations")
    parts.append(f"{scaled(memory.runtime)} for the runtime")
    return f"{' + '.join(parts)} = {scaled(memory.total)}"


def worked_out(limit: Bound) -> str:
    """The arithmetic of a bound, which claims no regime where one of the rates is not known."""
    said, missing = limit.arithmetic(), unknown(limit)
    return said if missing is None else f"{said.removesuffix(')')} alone: {missing} is not known)"


def unknown(limit: Bound) -> str | None:
    """The rate without which it cannot be told what limits; ``None`` where it can."""
    if limit.compute_seconds is None:
        return f"the units' rate in {limit.numeric}"
    return "the bandwidth" if limit.bandwidth_seconds is None else None
