"""Whether memory suffices: predicted before it is tried, and said in figures where it did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quant.engines import memory
from pytest_quant.errors import Unsupported
from pytest_quant.gates.gate import Gate
from pytest_quant.hardware import Device
from pytest_quant.roofline import amounts
from pytest_quant.roofline.shape import ModelShape

if TYPE_CHECKING:
    from pytest_quant.model import ModelHandle
    from pytest_quant.placement import Placement

_TOLERANCE = 0.98
"""Predictions are right to a percent: what fits by less than two is tried."""


class NoRoom(Unsupported):
    """Memory does not suffice, as things are: it may, when something was given back."""


@dataclass(frozen=True)
class Need:
    """Bytes that something takes at least, beside what is held; ``None`` where it cannot be told."""

    weights: int | None = None
    kv_cache: int | None = None
    activations: int | None = None
    detail: str = ""
    """Of what: the weights' bits, or batch and context."""

    @property
    def total(self) -> int:
        return (self.weights or 0) + (self.kv_cache or 0) + (self.activations or 0)

    def __str__(self) -> str:
        parts = []
        if self.weights is not None:
            parts.append(f"{gigabytes(self.weights)} for the weights")
        if self.kv_cache is not None:
            parts.append(f"{gigabytes(self.kv_cache)} of KV cache")
        if self.activations is not None:
            parts.append(f"at least {gigabytes(self.activations)} of activations")
        told = " + ".join(parts)
        if len(parts) > 1:
            told += f" = {gigabytes(self.total)}"
        return f"{told} ({self.detail})" if self.detail else told


@dataclass(frozen=True)
class Work:
    """The largest forward: a batch, the tokens of each sequence, and whether their keys and values are kept."""

    batch_size: int
    tokens: int
    keeps: bool
    kept: int | None = None
    """Tokens of each sequence in the cache at the end, where forwards of single tokens follow; None: ``tokens``."""


def work(gate: Gate) -> Work | None:
    """The largest single forward of a gate of memory or speed; ``None`` where it has none or does not say it."""
    asked = dict(gate.parameters)
    if gate.metric == "memory_budget" and asked["of"] != "weights":
        return Work(asked["batch_size"], asked["context"], asked["of"] == "kv_cache")
    if gate.is_timed:
        more = asked["new_tokens"] if asked["phase"] == "decode" else 0
        return Work(asked["batch_size"], asked["prompt_tokens"], True, asked["prompt_tokens"] + more)
    return None


def needed(handle: ModelHandle, work: Work, *, trust_remote_code: bool = False) -> Need | None:
    """What a forward of a loaded model takes at least beside the weights; ``None`` where its architecture does not
    tell, or its positions do not suffice, which is another error."""
    longest = handle.loaded.max_positions
    if longest is not None and (work.kept or work.tokens) > longest:
        return None
    shape = handle.shape(trust_remote_code=trust_remote_code)
    if shape is None or handle.loaded.engine != "transformers":  # which took its room when it was started
        return None
    cache = handle.format.kv_cache
    return least(work, shape, hidden_bits(handle.model), None if cache is None else cache.stored.num_bits)


def least(work: Work, shape: ModelShape, bits: int, kv_bits: int | None) -> Need:
    """What a forward takes at least beside the weights: numbers of hidden states and of an unquantized KV cache have
    ``bits``, of a KV cache in a format ``kv_bits``.

    Of activations only what every architecture holds at once: the residual and what a layer makes of it. With a KV
    cache format sequences are fed in steps, and only the cache is counted.
    """
    kept = kv_bits or bits
    cache = None
    if work.keeps or kv_bits is not None:
        cache = amounts.kv_bytes(shape, work.batch_size, work.kept or work.tokens, kept)
    states = None
    if shape.hidden is not None and kv_bits is None:
        states = 2 * work.batch_size * max(work.tokens - 1, 1) * shape.hidden * bits // 8
    return Need(None, cache, states, f"batch {work.batch_size:,}, context {work.kept or work.tokens:,}")


def require(
    asked: str, need: Need, device: Device, held: Mapping[str, int], placement: Placement | None = None
) -> None:
    """:class:`NoRoom` with the arithmetic where more is needed than is free. ``held`` are models of this run, by what
    they are called, and their bytes; a ``placement`` says on which devices."""
    free = _free(device, placement)
    if free is None or need.total * _TOLERANCE <= free:
        return
    raise NoRoom(asked, f"{gigabytes(free)} free on {device.name}{beside(held)}", str(need))


def _free(device: Device, placement: Placement | None) -> int | None:
    if placement is None:
        return memory.free_bytes(device)
    from pytest_quant.engines.placing import free_bytes

    return free_bytes(placement, device)


def explain(device: Device, held: Mapping[str, int], need: Need | None = None) -> str:
    """What is free, what is there in all, what this run holds and what was needed: clauses with figures."""
    free, there = memory.free_bytes(device), device.memory_bytes
    told = "unknown" if free is None else gigabytes(free)
    text = f"{told} free{'' if there is None else f' of {gigabytes(there)}'} on {device.name}{beside(held)}"
    return f"{text}; predicted: {need}" if need is not None and need.total else text


def beside(held: Mapping[str, int]) -> str:
    """The models that this run holds, as the end of a clause."""
    if not held:
        return ""
    return f", beside {' and '.join(f'{name} ({gigabytes(size)})' for name, size in held.items())} of this run"


def gigabytes(count: float) -> str:
    """Powers of ten; three digits below a hundred GB, so that nothing is shown as 0."""
    size = count / 1e9
    return f"{size:,.0f} GB" if size >= 100 else f"{size:.3g} GB" if size >= 0.01 else f"{size * 1e3:.3g} MB"


def hidden_bits(model: Any) -> int:
    """Bits of one number of the hidden states of a model of torch, and of its keys and values: those of its input
    table, or of the model's own type where the table is quantized."""
    table = model.get_input_embeddings().weight
    dtype = table.dtype if table.dtype.is_floating_point else model.dtype
    return int(dtype.itemsize) * 8
