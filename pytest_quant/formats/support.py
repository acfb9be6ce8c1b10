"""Whether a format runs on a device: as its backend says, or else as the support matrix does."""

from __future__ import annotations

from pytest_quant.formats import registry
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Matrix, Support


def support(format: Format, device: Device, matrix: Matrix, *, require_native: bool | None = None) -> Support:
    """The answer for a format, with its reason. A backend that our matrix does not know answers for itself."""
    own = registry.backend(format).support(format, device)
    return own or matrix.support(format, device, require_native=require_native)
