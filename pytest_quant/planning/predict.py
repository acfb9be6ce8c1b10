"""What a model in a format takes on a device, at best: bytes, time of a step, sequences that fit. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from pytest_quant.formats import registry
from pytest_quant.formats.backends.torch_native import DTYPES
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Support
from pytest_quant.roofline import amounts, bound
from pytest_quant.roofline.bound import Bound
from pytest_quant.roofline.rates import Rates, numeric
from pytest_quant.roofline.shape import ModelShape

RUNTIME_BYTES = 1_000_000_000
"""Set aside on each device for what no tensor shows: the driver's context, libraries, kernels' workspaces."""
_INNER = 4
"""Width of the MLP between its products, in widths of the model: usual is 2.7 to 4."""
_LARGEST_BATCH = 1 << 20
_STAND_INS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Load:
    """What the model is asked to do at a time."""

    batch_size: int = 1
    context: int = 2048
    """Tokens of each sequence that the KV cache holds, at the most: the prompt's and the generated ones."""
    prompt: int = 512
    """Of these: the prompt's, which one prefill reads."""


@dataclass(frozen=True)
class Machine:
    """Devices of one kind. Several share weights, KV cache and work evenly and exchange nothing: no real ones do."""

    device: Device
    rates: Rates
    """Of one of them."""
    count: int = 1
    here: bool = False
    """Whether it is this machine's."""

    @property
    def together(self) -> Rates:
        """The rates of all."""
        rates, count = self.rates, self.count
        return replace(
            rates,
            bandwidth=rates.bandwidth and rates.bandwidth * count,
            operations=MappingProxyType({name: rate * count for name, rate in rates.operations.items()}),
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    weights: int
    kv: int | None
    """``None`` where the model's layers are not known."""
    activations: int
    """The larger of a prefill's MLP buffers and of the logits; 0 where the model's widths are not known."""
    runtime: int
    there: int | None
    """What one device has; ``None``: not known."""

    @property
    def total(self) -> int:
        return self.weights + (self.kv or 0) + self.activations + self.runtime

    @property
    def fits(self) -> bool | None:
        """``None`` where the device's memory is not known."""
        return None if self.there is None else self.total <= self.there


@dataclass(frozen=True)
class Prediction:
    """One format that can run."""

    format: Format
    support: Support
    numeric: str
    """In what its matrix products run."""
    load: Load
    stored_bytes: int
    """Of the checkpoint or the quantized weights, on all devices."""
    weight_bytes: int
    """At work, on all devices: more where the library unpacks what it loads."""
    memory: Memory
    decode: Bound | None
    """Of one step of the whole batch; ``None`` where no rate is known."""
    prefill: Bound | None
    """Of the prompts of the whole batch."""
    turns_at: int | None = None
    """The smallest batch whose decode step is bound by compute; ``None``: none, or not known."""
    most_sequences: int | None = None
    """The largest batch of this context that the memory holds; ``None``: not known."""
    like: str | None = None
    """The type whose rate stands in where the units' rate in ``numeric`` is not known; ``None``: none has to, or none
    is known either."""
    decode_seconds: float | None = None
    """What steps are compared by: the bound, and where a rate stands in no less than the units would take at it. Bytes
    alone would flatter what nothing else is known to bound."""
    prefill_seconds: float | None = None
    """The same of the prompts."""
    expected: bool = False
    """Whether the bounds rest on how many experts a batch is expected to touch: a router may touch fewer."""

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def unpacked(self) -> bool:
        """Whether the library makes wide weights of the stored ones."""
        return self.weight_bytes > self.stored_bytes

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens of the whole batch, at most."""
        return None if self.decode is None else self.load.batch_size / self.decode.seconds

    @property
    def request_seconds(self) -> float | None:
        """The share of one sequence in the time of its batch, as formats are compared: prompt read, the rest of the
        context generated."""
        if self.decode_seconds is None or self.prefill_seconds is None:
            return None
        steps = self.load.context - self.load.prompt
        return (self.prefill_seconds + steps * self.decode_seconds) / self.load.batch_size


def predict(
    format: Format,
    support: Support,
    shape: ModelShape,
    load: Load,
    machine: Machine,
    compute: Format,
) -> Prediction:
    """Bytes and bounds of a format that runs as ``support`` says.

    ``compute`` is the unquantized format whose type the rest of the model has, and in which weight-only formats
    multiply, unless their library takes another.
    """
    bits = compute.weights.num_bits
    stored = amounts.weight_bytes(shape, format, bits)
    weights = amounts.weight_bytes(shape, compute, bits) if registry.backend(format).unpacks else stored
    products, rates = products_in(format, support, machine.device, compute), machine.together
    step = partial(_decode, format, shape, load, rates, weights, bits, products)
    decode = step(load.batch_size)
    prefill = _prefill(format, shape, load, rates, weights, bits, products)
    like = _stand_in(rates, products)
    memory = _memory(format, shape, load, machine, weights, bits)
    return Prediction(
        format=format,
        support=support,
        numeric=products,
        load=load,
        stored_bytes=stored,
        weight_bytes=weights,
        memory=memory,
        decode=decode,
        prefill=prefill,
        turns_at=_smallest(step),
        most_sequences=_most(format, shape, load, machine, weights, bits),
        like=like,
        decode_seconds=_compared(decode, rates, like),
        prefill_seconds=_compared(prefill, rates, like),
        expected=shape.experts > 1 and shape.routed > 0,
    )


def products_in(format: Format, support: Support, device: Device, compute: Format) -> str:
    """In what a format's products run beside a reference in ``compute``: its library may have kernels of its own."""
    asked = DTYPES.get(compute.name, compute.name)
    return numeric(format, support, registry.backend(format).computes_in(format, device, asked))


def kv_bytes(shape: ModelShape, format: Format, batch_size: int, context: int, rest_bits: int) -> int | None:
    """Bytes of the KV cache in the format's own type, or else in the one that it computes in: the newest tokens that
    a quantized cache keeps as they came are counted so, and a scale and a zero point for each group."""
    wide = format.rest_bits(rest_bits)
    kept = amounts.kv_bytes(shape, batch_size, context, wide)
    cache = format.kv_cache
    if kept is None or cache is None:
        return kept
    residual = min(max(cache.residual_length - 1, 0), context)
    group = cache.stored.group_size
    narrow = cache.stored.num_bits + (2 * wide / group if group else 0.0)
    newest = amounts.kv_bytes(shape, batch_size, residual, wide) or 0
    return newest + (amounts.kv_bytes(shape, batch_size, context - residual, narrow) or 0)


def _stand_in(rates: Rates, products: str) -> str | None:
    """A plain type whose rate is known, for one whose rate is not: of 16 bits if there is one, as the units are no
    faster in more."""
    if products in rates.operations:
        return None
    return next((name for name in _STAND_INS if name in rates.operations), None)


def _compared(limit: Bound | None, rates: Rates, like: str | None) -> float | None:
    if limit is None or like is None:
        return None if limit is None else limit.seconds
    return max(limit.seconds, limit.operations / rates.operations[like])


def _decode(
    format: Format,
    shape: ModelShape,
    load: Load,
    rates: Rates,
    weights: int,
    bits: int,
    products: str,
    batch_size: int,
) -> Bound | None:
    """One token for each sequence, the last of its context."""
    earlier = load.context - 1
    return bound.decode(
        weights=amounts.read_bytes(shape, weights, format.rest_bits(bits), batch_size),
        kv=kv_bytes(shape, format, batch_size, earlier, bits) or 0,
        operations=batch_size * amounts.operations(shape, 1, earlier),
        rates=rates,
        numeric=products,
    )


def _prefill(
    format: Format, shape: ModelShape, load: Load, rates: Rates, weights: int, bits: int, products: str
) -> Bound | None:
    tokens = load.batch_size * load.prompt
    return bound.prefill(
        weights=amounts.read_bytes(shape, weights, format.rest_bits(bits), tokens),
        kv=kv_bytes(shape, format, load.batch_size, load.prompt, bits) or 0,
        operations=load.batch_size * amounts.operations(shape, load.prompt, 0),
        rates=rates,
        numeric=products,
    )


def _memory(format: Format, shape: ModelShape, load: Load, machine: Machine, weights: int, bits: int) -> Memory:
    """What one of the devices holds of the whole."""
    kv = kv_bytes(shape, format, load.batch_size, load.context, bits)
    return Memory(
        weights=round(weights / machine.count),
        kv=None if kv is None else round(kv / machine.count),
        activations=_activations(shape, load.batch_size, load.prompt, format.rest_bits(bits)),
        runtime=RUNTIME_BYTES,
        there=machine.device.memory_bytes,
    )


def _activations(shape: ModelShape, batch_size: int, prompt: int, bits: int) -> int:
    """Two buffers of the MLP's inner width for each token of the prompts, or the last tokens' logits in FP32: the
    larger."""
    inner = 2 * batch_size * prompt * _INNER * (shape.hidden or 0) * bits // 8
    return max(inner, 4 * batch_size * (shape.vocabulary or 0))


def _smallest(step: Callable[[int], Bound | None]) -> int | None:
    """The smallest batch whose step is bound by compute: once it is, it stays so, as operations grow with the batch and
    the weights' bytes do not."""
    first = step(1)
    if first is None or first.ridge is None:
        return None

    def computes(batch_size: int) -> bool:
        found = step(batch_size)
        return found is not None and found.regime == "compute"

    return _first(computes)


def _most(format: Format, shape: ModelShape, load: Load, machine: Machine, weights: int, bits: int) -> int | None:
    if not shape.kv or machine.device.memory_bytes is None:
        return None

    def overflows(batch_size: int) -> bool:
        more = replace(load, batch_size=batch_size)
        return _memory(format, shape, more, machine, weights, bits).fits is False

    first = _first(overflows)
    return None if first is None else first - 1


def _first(holds: Callable[[int], bool]) -> int | None:
    """The smallest batch for which something holds that holds for every larger one too; ``None``: for none that
    anybody would try."""
    high = 1
    while not holds(high):
        high *= 2
        if high > _LARGEST_BATCH:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
