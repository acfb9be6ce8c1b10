"""What the hardware allows a loaded model at best, in one workload."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_quant.formats import registry
from pytest_quant.metrics.workload import Workload
from pytest_quant.roofline import amounts, bound, rates
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Matrix
    from pytest_quant.model import ModelHandle
    from pytest_quant.roofline.bound import Bound
    from pytest_quant.roofline.rates import Rates


@dataclass(frozen=True)
class Ceiling:
    """The bound on one step of a batch, or on one prefill, and the tokens that come of it."""

    bound: Bound
    tokens: int
    each: str
    """What the bound is of: ``one step`` or ``one prefill``."""
    measured: bool = False
    """Whether its rates were measured here, as whatever else ran meanwhile allowed, and not published."""

    @property
    def speed(self) -> float:
        """Tokens a second at best."""
        return self.tokens / self.bound.seconds

    def described(self, speeds: Sequence[float]) -> dict[str, Any]:
        """As it goes into records, with the share of it that runs of these speeds reached."""
        found = self.bound
        peaks = {
            "bandwidth": found.read / found.bandwidth_seconds if found.bandwidth_seconds else None,
            "peak_operations": found.operations / found.compute_seconds if found.compute_seconds else None,
        }
        return {
            "tokens_per_second": self.speed,
            "share": median(speeds) / self.speed,
            "regime": found.regime,
            "intensity": found.intensity,
            "arithmetic": found.arithmetic(),
            "seconds": found.seconds,
            "operations": found.operations,
            "numeric": found.numeric,
            "rates": "measured" if self.measured else "published",
            **{name: rate for name, rate in peaks.items() if rate is not None},
        }


def ceiling(handle: ModelHandle, spec: ModelSpec, work: Workload, matrix: Matrix) -> Ceiling | None:
    """The ceiling of a loaded model, from its true bytes; ``None`` where nothing is known of its shape or device."""
    shape = handle.shape(trust_remote_code=spec.source.trust_remote_code)
    if shape is None:
        return None
    compute_bits = registry.get(spec.reference).weights.num_bits
    rest_bits = handle.format.rest_bits(compute_bits)
    computes = registry.backend(handle.format).computes_in(handle.format, handle.device, spec.compute_dtype)
    numeric = rates.numeric(handle.format, handle.support, computes)
    stored = handle.proof.held_bytes
    units = frozenset({numeric} if matrix.multiplies(numeric, handle.device) else ())
    peak = _rates(handle.device, stored, units)
    measured = handle.device.bandwidth is None
    bits = handle.proof.kv_cache.get("bits_per_value", rest_bits) if handle.proof.kv_cache else rest_bits
    read = amounts.read_bytes(shape, stored, rest_bits, work.batch_size, at_least=True)
    if work.phase == "decode":
        kept = amounts.kv_bytes(shape, work.batch_size, round(work.context), bits) or 0
        operations = work.batch_size * amounts.operations(shape, 1, round(work.context))
        found = bound.decode(weights=read, kv=kept, operations=operations, rates=peak, numeric=numeric)
        return None if found is None else Ceiling(found, work.batch_size, "one step", measured)
    written = amounts.kv_bytes(shape, work.batch_size, work.prompt_tokens, bits) or 0
    operations = work.batch_size * amounts.operations(shape, work.prompt_tokens, 0)
    found = bound.prefill(weights=read, kv=written, operations=operations, rates=peak, numeric=numeric)
    return None if found is None else Ceiling(found, work.tokens, "one prefill", measured)


@lru_cache(maxsize=64)
def _rates(device: Device, working_set: int, numerics: Collection[str]) -> Rates:
    from pytest_quant.engines.probe import measure

    return measure(device, working_set, numerics)
