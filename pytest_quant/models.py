"""The models that a run holds: each loaded once, proven, and given back when no longer needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quant import room
from pytest_quant.checkpoints.shelf import Checkpoint
from pytest_quant.engines import loading, memory, vllm
from pytest_quant.engines.shape import read
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.vllm import arguments
from pytest_quant.engines.vllm import support as serving
from pytest_quant.engines.weights import count_weights
from pytest_quant.errors import QuantError, Unsupported, UsageError
from pytest_quant.formats import kv_cache, registry
from pytest_quant.formats.backend import missing_packages
from pytest_quant.formats.format import Format
from pytest_quant.formats.support import support as supported
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Matrix, Support, explain_skip
from pytest_quant.model import ModelHandle
from pytest_quant.progress import Progress
from pytest_quant.roofline import amounts
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.engines.transformers import TransformersModel
    from pytest_quant.engines.vllm.model import VllmModel


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
    if spec.engine_of(format.name) == vllm.NAME:
        return _check_served(spec, format, device)
    backend = registry.backend(format)
    support = supported(format, device, matrix, require_native=spec.require_native)
    if support.status == "unsupported":  # first: no library that is installed would change it
        raise explain_skip(format, device, support)
    if absent := missing_packages(format, backend):
        raise absent
    if trouble := backend.trouble(format, device) or kv_cache.trouble(format, device):
        raise trouble
    return support


def _check_served(spec: ModelSpec, format: Format, device: Device) -> Support:
    """The same of a format that vLLM is to run."""
    told = spec.arguments()
    arguments.check(told)
    found = serving.support(format, device)
    if found.status == "unsupported" or (spec.require_native and found.status != "native"):
        raise explain_skip(format, device, found)
    if absent := serving.missing(device):
        raise absent
    arguments.check_parallel(told, device)
    arguments.kv_cache_dtype(format, told, is_reference=format.name == spec.reference)
    return found


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
        self._beside: dict[tuple[ModelSpec, str], Collection[tuple[ModelSpec, str]]] = {}
        """Beside which models there was no room for another."""

    def get(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in the format. Raises what :func:`check` and the engine's ``load`` raise, the same again
        when it is asked for again; but a model that found no room is tried again when another was given back."""
        key = (spec, format_name)
        if key in self._refused and self._held.keys() >= set(self._beside.get(key, ())):
            raise self._refused[key].with_traceback(None)
        if self._still_here(key) is None:
            try:
                self._held[key] = self._load(spec, registry.get(format_name))
            except QuantError as error:
                memory.give_back(self._device)
                self._refused[key] = _bare(error)
                self._beside[key] = tuple(self._held) if isinstance(error, room.NoRoom) else ()
                raise
            self._refused.pop(key, None)
        return self._held[key]

    def either(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in the format; where it finds no room beside the others, they are given back for it."""
        try:
            return self.get(spec, format_name)
        except room.NoRoom:
            if not self._beside.get((spec, format_name)):  # nothing that is here is in its way
                raise
            return self.alone(spec, format_name)

    def alone(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in the format, once all others are given back; they are kept where it does not fit alone."""
        key = (spec, format_name)
        if key in self._refused and not self._beside.get(key):
            raise self._refused[key].with_traceback(None)
        self.keep({key})
        return self.get(spec, format_name)

    def find(self, spec: ModelSpec, format_name: str) -> ModelHandle | None:
        """The model in the format if it is held; nothing is loaded."""
        return self._still_here((spec, format_name))

    def _still_here(self, key: tuple[ModelSpec, str]) -> ModelHandle | None:
        """The model if it is held; one whose engine has died is let go of, for the next test to start another."""
        handle = self._held.get(key)
        if handle is None or handle.loaded.alive:
            return handle
        self._held.pop(key).release()
        return None

    def held_bytes(self) -> Mapping[str, int]:
        """True bytes of the weights of each model that is held, by what people call it."""
        return {f"{spec.source.short} in {name}": handle.weight_bytes for (spec, name), handle in self._held.items()}

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
            loaded = self._opened(spec, format, place)
        except Exception as error:
            cause = memory.origin_out_of_memory(error)
            if cause is None:
                raise
            said = memory.first_line(cause)
            memory.drop_frames(error)  # the half that was loaded
            del cause
            raise self._no_room(spec, format, said) from None
        finally:
            self._progress.clear()
        if spec.placement is not None and spec.placement.spills and self._held and loaded.offload is not None:
            said = str(loaded.offload)
            del loaded
            raise self._no_room(spec, format, said)
        return ModelHandle(loaded, format, support, spec.source.short, checkpoint)

    def _opened(self, spec: ModelSpec, format: Format, place: str | None) -> TransformersModel | VllmModel:
        if spec.engine_of(format.name) == vllm.NAME:
            from pytest_quant.engines.vllm import opening

            return opening.load(
                spec.source,
                format,
                spec.compute_dtype,
                self._device,
                checkpoint=place,
                engine_args=spec.arguments(),
                is_reference=format.name == spec.reference,
            )
        backend = registry.backend(format)
        return loading.load(spec.source, format, backend, spec.compute_dtype, self._device, place, spec.placement)

    def _check_fits(self, spec: ModelSpec, format: Format) -> None:
        """A skip with the arithmetic where the weights alone exceed what is free."""
        if spec.placement is not None and spec.placement.spills and not self._held:
            return  # what finds no room is offloaded; but not only because another model is here
        if spec.engine_of(format.name) == vllm.NAME:
            return  # over how many devices it goes, and what it leaves free there, is the engine's to say
        need = self._needed(spec, format)
        if need is not None:
            what = f"{spec.source.short} in {format.name}"
            room.require(what, need, self._device, self.held_bytes(), spec.placement)

    def _no_room(self, spec: ModelSpec, format: Format, said: str) -> room.NoRoom:
        """Why a model could not be loaded, once what was there of it is given back."""
        memory.give_back(self._device)
        need = self._needed(spec, format)
        there = room.explain(self._device, self.held_bytes())
        predicted = "more than that" if need is None else f"{need}, and what loading it takes on top"
        return room.NoRoom(
            asked=f"{spec.source.short} in {format.name}",
            found=f"out of memory while loading it ({said}); after it was given back {there}",
            needed=predicted,
        )

    def _needed(self, spec: ModelSpec, format: Format) -> room.Need | None:
        """The weights' bytes in a format, from the headers of the files that are here, or from the config alone;
        ``None`` where neither can be had."""
        compute = registry.get(spec.reference)
        bits = compute.weights.num_bits
        if registry.backend(format).unpacks:  # what is stored narrow is wide in memory
            format = compute
        folder = _files(spec.source)
        count = count_weights(folder) if folder is not None else None
        if count is not None:
            needed, eligible, rest = count.bytes_in(format, bits), count.eligible, count.rest
        else:
            try:
                shape = read(spec.source.name, spec.source.revision, spec.source.trust_remote_code)
            except UsageError:  # which loading says better
                return None
            needed, eligible, rest = amounts.weight_bytes(shape, format, bits), shape.quantizable, shape.rest
        detail = f"{eligible:,} at {format.bits_per_weight:.2f} bits, {rest:,} at {format.rest_bits(bits)} bits"
        return room.Need(weights=needed, detail=detail)


def _files(source: ModelSource) -> Path | None:
    """The folder of a model's files: the one that is named, or the hub's in the local cache. No network is asked."""
    if source.folder is not None:
        return source.folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("model.safetensors.index.json", "model.safetensors"):
        try:
            found = try_to_load_from_cache(source.name, name, revision=source.revision)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _bare(error: QuantError) -> QuantError:
    """The same error without the frames that it went through, which would keep what they hold for the whole run."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    return twin
