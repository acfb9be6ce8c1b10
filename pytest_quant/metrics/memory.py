"""Memory of a model: its weights, what scoring takes on top, its KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from pytest_quant.engines.memory import peak_above_start
from pytest_quant.errors import NotMeasured, UsageError
from pytest_quant.gates.measurement import Quantity
from pytest_quant.hardware import Device
from pytest_quant.metrics.workload import prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.formats.proof import Proof

WARM_UP = 16
"""Tokens of each sequence that are scored first: kernels and repacked weights are not part of one batch's memory."""


class Held(Protocol):
    """What memory accounting asks of an engine's model."""

    device: Device
    proof: Proof
    places: tuple[str, ...]

    @property
    def max_positions(self) -> int | None: ...

    def token_nll(self, windows: NDArray[np.int64]) -> NDArray[np.float64]: ...

    def kv_cache_bytes(self, prompt: NDArray[np.int64]) -> int: ...


@dataclass(frozen=True)
class Used:
    """Bytes, and the figures behind them."""

    bytes: int
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def used(model: Held, of: str, tokens: NDArray[np.int64] | None, batch_size: int, context: int) -> Used:
    """Bytes of ``weights`` (true storages, unpacked where the engine unpacks them), of the ``kv_cache`` after a
    context, of ``activations``: what scoring a batch of that context takes on top of the weights, or at the ``peak``:
    both together. Weights need no tokens."""
    weights = model.proof.held_bytes
    if of == "weights" or tokens is None:
        away = model.proof.offloaded_bytes
        figures = {} if away is None else {"on_device_bytes": float(weights - away), "offloaded_bytes": float(away)}
        return Used(weights, figures)
    if model.max_positions is not None and context > model.max_positions:
        raise UsageError(f"context={context} does not fit the model's {model.max_positions} positions")
    batch = prompt(tokens, batch_size, context)
    if of == "kv_cache":
        kept = model.kv_cache_bytes(batch)
        return Used(kept, {"kv_bytes_per_token": kept / (batch_size * context)})
    model.token_nll(batch[:, :WARM_UP])
    activations = peak_above_start(model.device, lambda: model.token_nll(batch), model.places)
    figures = {"weight_bytes": float(weights), "activation_bytes": float(activations)}
    return Used(activations if of == "activations" else weights + activations, figures)


def memory_budget(format: Used, reference: Used | None) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Quantities ``bytes`` and, with a reference, ``ratio``; exact. :class:`NotMeasured` where that takes none."""
    quantities = {"bytes": Quantity.exact(float(format.bytes), "bytes")}
    figures = {**format.figures, "format_value": float(format.bytes)}
    if reference is not None:
        if reference.bytes == 0:
            raise NotMeasured("the reference takes no bytes of this: there is no ratio to it; limit max_gb instead")
        quantities["ratio"] = Quantity.exact(format.bytes / reference.bytes, "x")
        figures["reference_value"] = float(reference.bytes)
        figures["ratio"] = quantities["ratio"].value
    return quantities, figures
