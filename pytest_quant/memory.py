"""Memory of a format: counted once for each question, after it was predicted to suffice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pytest_quant import room
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Quantity
from pytest_quant.hardware import Device, process_memory
from pytest_quant.metrics import memory
from pytest_quant.model import ModelHandle
from pytest_quant.models import Models
from pytest_quant.room import Need
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Found = tuple[Mapping[str, Quantity], Mapping[str, float]]
"""Quantities and figures."""


class Memory:
    """Counts bytes on demand; unchanged questions are answered from what was counted."""

    def __init__(
        self, device: Device, models: Models, stream: Callable[[ModelHandle, ModelSpec], NDArray[np.int64]]
    ) -> None:
        self._device = device
        self._models = models
        self._stream = stream
        self._found: dict[tuple[ModelSpec, str, Gate], Found] = {}

    def measure(self, spec: ModelSpec, format_name: str, gate: Gate) -> Found:
        """What a ``memory_budget`` asks of the format. :class:`~pytest_quant.room.NoRoom` where it is predicted not to
        fit."""
        question = Gate(gate.metric, (("with_reference", float(gate.needs_reference)),), gate.parameters)
        key = (spec, format_name, question)
        if key not in self._found:
            self._found[key] = self._count(spec, format_name, gate)
        return self._found[key]

    def forget(self, spec: ModelSpec) -> None:
        """Forget every count of a model: somebody changed it."""
        self._found = {key: found for key, found in self._found.items() if key[0] != spec}

    def needed(self, spec: ModelSpec, format_name: str, gate: Gate) -> Need | None:
        """What a gate takes at least beside the weights; ``None`` where nobody can tell, or the model is not held."""
        work, handle = room.work(gate), self._models.find(spec, format_name)
        if work is None or handle is None:
            return None
        return room.needed(handle, work, trust_remote_code=spec.source.trust_remote_code)

    def _count(self, spec: ModelSpec, format_name: str, gate: Gate) -> Found:
        asked = dict(gate.parameters)
        model = self._models.either(spec, format_name)
        if asked["of"] in ("peak", "activations"):
            model.require_on_devices(f"memory_budget(of={asked['of']!r})")
        needed = self.needed(spec, format_name, gate)
        if needed is not None:
            what = f"{gate.metric} of {spec.source.short} in {format_name}"
            room.require(what, needed, self._device, self._models.held_bytes(), spec.placement)
        stream = None if asked["of"] == "weights" else self._stream(model, spec)
        if asked["of"] in ("peak", "activations"):
            model.in_process(f'memory_budget(of="{asked["of"]}")')
        used = memory.used(model.loaded, tokens=stream, **asked)
        of_reference = None
        if gate.needs_reference:
            reference = self._models.either(spec, spec.reference)  # in the place of the format, where both do not fit
            if asked["of"] in ("peak", "activations"):
                reference.require_on_devices(f"memory_budget(of={asked['of']!r})")
            of_reference = memory.used(reference.loaded, tokens=stream, **asked)
        quantities, figures = memory.memory_budget(used, of_reference)
        figures = {**figures, **process_memory.figures(self._device)}
        if asked["of"] == "kv_cache" and model.format.kv_cache is None and needed and needed.kv_cache is not None:
            figures["kv_predicted_bytes"] = float(needed.kv_cache)
        return quantities, figures
