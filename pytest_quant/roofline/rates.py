"""How fast a device can be: bytes a second of its memory, operations a second of its units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pytest_quant.formats.backends.torch_native import DTYPES
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device, specs
from pytest_quant.hardware.matrix_rows import Support

_COMPUTE = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Rates:
    """Peak rates of one device. What is not known is ``None`` or absent."""

    bandwidth: float | None = None
    """Bytes a second."""
    operations: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Operations a second, dense, by the numeric that the products run in: ``fp16``, ``int8``, ``nvfp4``, ..."""
    bandwidth_source: str = "not known"
    operations_source: str = "not known"


def published(device: Device) -> Rates:
    """What the vendor publishes, scaled to the slice that the device is. Nothing is known of a device that is not in
    the table, and of the units of a slice whose size is not known."""
    spec, share = specs.find(device.name), specs.compute_share(device)
    rates: dict[str, float] = {}
    if spec is not None and share is not None:
        has_bf16 = spec.cc is None or spec.cc >= (8, 0)
        tera = {
            "fp16": spec.fp16_tflops,
            "bf16": spec.fp16_tflops if has_bf16 else None,
            "fp8": spec.fp8_tflops,
            "int8": spec.int8_tops,
            "int4": spec.int4_tops,
            "mxfp4": spec.fp4_tflops,
            "nvfp4": spec.fp4_tflops if spec.cc is not None else None,
        }
        rates = {name: rate * 1e12 * share for name, rate in tera.items() if rate is not None}
    return Rates(
        bandwidth=device.bandwidth,
        operations=MappingProxyType(rates),
        bandwidth_source=device.bandwidth_source or "not known",
        operations_source=specs.SOURCE if rates else "not known",
    )


def numeric(format: Format, support: Support, compute_dtype: str) -> str:
    """In what the matrix products of a format run: in its own type where it is native or a plain type, otherwise in
    the compute type (``float32``, ``bfloat16`` or ``float16``)."""
    if format.weights.num_bits >= 16 or (support.status == "native" and not format.weight_only):
        return format.numeric
    return _COMPUTE.get(format.compute_dtype(compute_dtype), compute_dtype)
