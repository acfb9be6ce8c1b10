"""What a run would do on a device: which tests, which skips, how large and how fast at best. Loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_quant.engines.weights import count_weights
from pytest_quant.errors import QuantError, Unsupported
from pytest_quant.formats import registry
from pytest_quant.formats.format import Format
from pytest_quant.formats.support import support as supported
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Matrix, Support, explain_skip
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
    weight_bytes: int | None = None
    """Predicted from the headers of the model's files; None where they are not here."""
    seconds_per_token: float | None = None
    """The bound that memory bandwidth sets on decoding at batch size 1; None without both."""


def check_elsewhere(spec: ModelSpec, format: Format, device: Device, matrix: Matrix) -> Support:
    """Whether a format runs on hardware that is not here: its libraries are not judged by ours, and checkpoints
    may be there."""
    support = supported(format, device, matrix, require_native=spec.require_native)
    if support.status == "unsupported":
        raise explain_skip(format, device, support)
    return support


def plan(
    test: str, spec: ModelSpec, formats: tuple[str, ...], device: Device, matrix: Matrix, may: Check
) -> list[Planned]:
    """One line for each format of a test; ``may`` says whether it may run."""
    return [_plan_one(test, spec, registry.get(name), device, matrix, may) for name in formats]


def _plan_one(test: str, spec: ModelSpec, format: Format, device: Device, matrix: Matrix, may: Check) -> Planned:
    try:
        support = may(spec, format, device, matrix)
    except QuantError as reason:
        return Planned(test, format.name, skip=str(reason))
    count = count_weights(spec.source.folder) if spec.source.folder else None
    if count is None:
        return Planned(test, format.name, status=support.status)
    weights = count.bytes_in(format, registry.get(spec.reference).weights.num_bits)
    if device.memory_bytes is not None and weights > device.memory_bytes:
        too_large = Unsupported(
            asked=f"{spec.source.short} in {format.name}",
            found=f"{device.memory_bytes / 1e9:.1f} GB on {device.name}",
            needed=f"{weights / 1e9:.1f} GB for the weights",
        )
        return Planned(test, format.name, skip=str(too_large), weight_bytes=weights)
    bound = weights / device.bandwidth if device.bandwidth else None
    return Planned(test, format.name, status=support.status, weight_bytes=weights, seconds_per_token=bound)
