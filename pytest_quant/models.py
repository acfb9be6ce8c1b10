"""The models that a run holds: each loaded once, proven, and given back when no longer needed."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pytest_quant.checkpoints.shelf import Checkpoint
from pytest_quant.engines import loading, memory, transformers
from pytest_quant.engines.weights import count_weights
from pytest_quant.errors import QuantError, Unsupported
from pytest_quant.formats import kv_cache, registry
from pytest_quant.formats.backend import missing_packages
from pytest_quant.formats.format import Format
from pytest_quant.formats.support import support as supported
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Matrix, Support, explain_skip
from pytest_quant.model import ModelHandle
from pytest_quant.progress import Progress
from pytest_quant.spec import ModelSpec


def check(spec: ModelSpec, format: Format, device: Device, matrix: Matrix) -> Support:
    """Whether the device and the libraries can run the format; raises :class:`Unsupported` with the three parts, the
    last with the formats that run here instead."""
    try:
        return _check(spec, format, device, matrix)
    except Unsupported as reason:
        others = [name for name in format.instead if _runs(spec, registry.get(name), device, matrix)]
        if not others:
            raise
        needed = f"{reason.needed}; or instead {' or '.join(others)}, which can run here"
        raise Unsupported(reason.asked, reason.found, needed) from None


def _runs(spec: ModelSpec, format: Format, device: Device, matrix: Matrix) -> bool:
    try:
        _check(spec, format, device, matrix)
    except Unsupported:
        return False
    return True


def _check(spec: ModelSpec, format: Format, device: Device, matrix: Matrix) -> Support:
    if spec.engine != transformers.NAME:
        raise Unsupported(
            asked=f"{format.name} on the engine {spec.engine}",
            found="this version of pytest-quant does not know that engine yet",
            needed='engine="transformers"',
        )
    backend = registry.backend(format)
    support = supported(format, device, matrix, require_native=spec.require_native)
    if support.status == "unsupported":  # first: no library that is installed would change it
        raise explain_skip(format, device, support)
    if absent := missing_packages(format, backend):
        raise absent
    if trouble := backend.trouble(format, device) or kv_cache.trouble(format, device):
        raise trouble
    return support


class Models:
    """Loads on demand, holds until told otherwise."""

    def __init__(
        self,
        device: Device,
        matrix: Matrix,
        progress: Progress,
        checkpoint: Callable[[ModelSpec, Format], Checkpoint | None],
    ) -> None:
        self._device = device
        self._matrix = matrix
        self._progress = progress
        self._checkpoint = checkpoint
        self._held: dict[tuple[ModelSpec, str], ModelHandle] = {}
        self._refused: dict[tuple[ModelSpec, str], QuantError] = {}

    def get(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in the format. Raises what :func:`check` and the engine's ``load`` raise, the same again
        when it is asked for again."""
        key = (spec, format_name)
        if key in self._refused:
            raise self._refused[key].with_traceback(None)
        if key not in self._held:
            try:
                self._held[key] = self._load(spec, registry.get(format_name))
            except QuantError as error:
                memory.give_back(self._device)
                self._refused[key] = error
                raise
        return self._held[key]

    def drop_changed(self) -> list[tuple[ModelSpec, str]]:
        """Give back every model that a test's body changed, so that the next test gets one as it was loaded. Returns
        which they were."""
        changed = self.changed()
        self.keep(self._held.keys() - set(changed))
        return changed

    def changed(self) -> list[tuple[ModelSpec, str]]:
        """The held models that somebody changed since they were loaded."""
        return [key for key, handle in self._held.items() if handle.loaded.changed]

    def keep(self, needed: Collection[tuple[ModelSpec, str]]) -> None:
        """Give back every model that is not among the needed ones."""
        gone = [key for key in self._held if key not in needed]
        for key in gone:
            self._held.pop(key).release()
        if gone:
            memory.give_back(self._device)

    def _load(self, spec: ModelSpec, format: Format) -> ModelHandle:
        support = check(spec, format, self._device, self._matrix)
        loading.require_torch_for(self._device, f"{spec.source.short} in {format.name}")
        self._check_fits(spec, format)
        checkpoint = self._checkpoint(spec, format)
        place = None if checkpoint is None else checkpoint.place
        self._progress.show(f"loading {spec.source.short} in {format.name}")
        try:
            loaded = loading.load(
                spec.source, format, registry.backend(format), spec.compute_dtype, self._device, place
            )
        finally:
            self._progress.clear()
        return ModelHandle(loaded, format, support, spec.source.short, checkpoint)

    def _check_fits(self, spec: ModelSpec, format: Format) -> None:
        """A skip with the arithmetic where the weights alone exceed what is free."""
        count = count_weights(spec.source.folder) if spec.source.folder else None
        free = memory.free_bytes(self._device)
        if count is None or free is None:
            return
        bits = registry.get(spec.reference).weights.num_bits
        needed = count.bytes_in(format, bits)
        if needed > free:
            raise Unsupported(
                asked=f"{spec.source.short} in {format.name}",
                found=f"{free / 1e9:.1f} GB free on {self._device.name}",
                needed=(
                    f"{needed / 1e9:.1f} GB for the weights ({count.eligible:,} at "
                    f"{format.bits_per_weight:.2f} bits, {count.rest:,} at {bits} bits)"
                ),
            )
