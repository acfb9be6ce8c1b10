"""What a run would do on a device: which tests, which skips, how large and how fast at best. Loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from pytest_quant import room
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import QuantError, Unsupported, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.format import Format
from pytest_quant.formats.support import support as supported
from pytest_quant.gates.gate import Gate
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Matrix, Support, explain_skip
from pytest_quant.planning.predict import Load, Machine, Prediction, predict
from pytest_quant.roofline import rates
from pytest_quant.roofline.shape import ModelShape
from pytest_quant.spec import ModelSpec

Check = Callable[[ModelSpec, Format, Device, Matrix], Support]


@dataclass(frozen=True)
class Planned:
    """One format of one test."""

    test: str
    format: str
    skip: str | None = None
    """Why it would be skipped."""
    status: str = ""
    """``native`` or ``dequantized``."""
    prediction: Prediction | None = None
    """``None`` where it would be skipped for another reason than its size, and where the model's config is not here."""


def check_elsewhere(spec: ModelSpec, format: Format, device: Device, matrix: Matrix) -> Support:
    """Whether a format runs on hardware that is not here: its libraries are not judged by ours, and checkpoints
    may be there."""
    support = supported(format, device, matrix, require_native=spec.require_native)
    if support.status == "unsupported":
        raise explain_skip(format, device, support)
    return support


def load_of(gates: Iterable[Gate]) -> Load:
    """The most that the gates of a test ask for at a time: their largest batch, and of all tokens of a sequence."""
    told = [dict(gate.parameters) for gate in gates]
    batch_size = max((int(one.get("batch_size", 1)) for one in told), default=1)
    prompt = max((int(one.get("prompt_tokens", 0)) for one in told), default=0)
    lengths = (int(one.get("context", 0)) for one in told)
    generated = (int(one.get("prompt_tokens", 0)) + int(one.get("new_tokens", 0)) for one in told)
    context = max([*lengths, *generated, 1])
    return Load(batch_size, context, prompt or context)


def plan(
    test: str,
    spec: ModelSpec,
    formats: tuple[str, ...],
    device: Device,
    matrix: Matrix,
    may: Check,
    load: Load | None = None,
    *,
    here: bool = False,
) -> list[Planned]:
    """One line for each format of a test; ``may`` says whether it may run, ``here`` that the device is this machine's,
    so that what is free of its memory counts."""
    machine = Machine(device, rates.published(device), here=here)
    return [_plan_one(test, spec, registry.get(name), machine, matrix, may, load or load_of(())) for name in formats]


def _plan_one(
    test: str, spec: ModelSpec, format: Format, machine: Machine, matrix: Matrix, may: Check, load: Load
) -> Planned:
    device = machine.device
    try:
        support = may(spec, format, device, matrix)
    except QuantError as reason:
        return Planned(test, format.name, skip=str(reason))
    shape = _shape(spec.source)
    if shape is None:
        return Planned(test, format.name, status=support.status)
    predicted = predict(format, support, shape, load, machine, registry.get(spec.reference))
    try:
        _require_room(f"{spec.source.short} in {format.name}", predicted.weight_bytes, machine)
    except Unsupported as too_large:
        return Planned(test, format.name, str(too_large), support.status, predicted)
    return Planned(test, format.name, status=support.status, prediction=predicted)


def _require_room(asked: str, weights: int, machine: Machine) -> None:
    """:class:`Unsupported` where the weights do not fit: here as a run decides it, elsewhere by all that is there."""
    device = machine.device
    if machine.here:
        room.require(asked, room.Need(weights=weights), device, {})
    elif device.memory_bytes is not None and weights > device.memory_bytes:
        raise Unsupported(
            asked=asked,
            found=f"{room.gigabytes(device.memory_bytes)} on {device.name}",
            needed=f"{room.gigabytes(weights)} for the weights",
        )


@lru_cache(maxsize=16)
def _shape(source: ModelSource) -> ModelShape | None:
    """From the config; ``None`` where that cannot be read: a run says then what is wrong."""
    from pytest_quant.engines.shape import read

    try:
        return read(source.name, source.revision, source.trust_remote_code)
    except UsageError:
        return None
