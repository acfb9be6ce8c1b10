"""Memory of a model: its weights, its peak while scoring, its KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from pytest_quant.engines.memory import peak_above_start
from pytest_quant.errors import UsageError
from pytest_quant.gates.measurement import Quantity
from pytest_quant.hardware import Device
from pytest_quant.metrics.throughput import Workload, prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.formats.proof import Proof


class Held(Protocol):
    """What memory accounting asks of an engine's model."""

    device: Device
    proof: Proof

    @property
    def max_positions(self) -> int | None: ...

    def token_nll(self, windows: NDArray[np.int64]) -> NDArray[np.float64]: ...

    def kv_cache_bytes(self, prompt: NDArray[np.int64]) -> int: ...


def used_bytes(model: Held, of: str, tokens: NDArray[np.int64] | None, batch_size: int, context: int) -> int:
    """Bytes of ``weights`` (true storages, unpacked where the engine unpacks them), of the ``kv_cache`` after a
    context, or at the ``peak``: the weights and what scoring a batch of that context takes on top. Weights need no
    tokens."""
    if of == "weights" or tokens is None:
        return model.proof.held_bytes
    if model.max_positions is not None and context > model.max_positions:
        raise UsageError(f"context={context} does not fit the model's {model.max_positions} positions")
    batch = prompt(tokens, Workload(batch_size=batch_size, prompt_tokens=context))
    if of == "kv_cache":
        return model.kv_cache_bytes(batch)
    model.token_nll(batch[:, :16])  # kernels and repacked weights are not part of one batch's peak
    return model.proof.held_bytes + peak_above_start(model.device, lambda: model.token_nll(batch))


def memory_budget(format_bytes: int, reference_bytes: int | None) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Quantities ``bytes`` and, with a reference, ``ratio``; exact."""
    quantities = {"bytes": Quantity.exact(float(format_bytes), "bytes")}
    figures = {"format_value": float(format_bytes)}
    if reference_bytes is not None:
        quantities["ratio"] = Quantity.exact(format_bytes / reference_bytes, "x")
        figures["reference_value"] = float(reference_bytes)
        figures["ratio"] = quantities["ratio"].value
    return quantities, figures
