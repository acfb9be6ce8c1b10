"""Proof of quantization: that a loaded model really is in the format it was asked to be in.

Nothing here trusts a config. The weights that a matrix product uses are listed from the model's
architecture (never from the loaded model), and each is looked up in the loaded model: its kernel, its
parameters and its bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from pytest_quant.errors import ProofFailed
from pytest_quant.formats.backend import Backend, Stored
from pytest_quant.formats.format import Format
from pytest_quant.formats.offloading import offload, onloaded
from pytest_quant.formats.storage import footprint

MIN_SHARE = 0.95
"""Routers and other small gates may stay wide; a layer that was forgotten may not."""
_LEAST = 0.9
"""A weight of fewer of its format's bits is held somewhere that the bytes were not looked for."""
_SLACK = 1.25
_MORE = 2.0
"""Weights may take this much more than their format says: by the factor for padding and zero points, and by bits for
code books, which weigh a lot in a tiny model."""


@dataclass(frozen=True)
class Proof:
    """What the loaded model showed about its format."""

    format: str
    quantized_weight_share: float
    """Share of the eligible weights (those of matrix products, embeddings and head apart) in the format."""
    bits_per_weight: float
    """Stored bits of an eligible weight, scales included."""
    weight_bytes: int
    """True bytes of the whole model, as it is stored."""
    bytes_by_dtype: Mapping[str, int]
    kernels: Mapping[str, int]
    """Module classes that hold the eligible weights, with their number."""
    unpacked_bytes: int | None = None
    """True bytes of the whole model at work, where the engine unpacks the stored weights."""
    left_out: tuple[str, ...] = ()
    """Eligible weights that are not in the format."""
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What the backend tells of the eligible weights' representation, where it is the same for all of them."""
    kv_cache: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """How keys and values are stored, where that is part of the format."""
    offloaded_bytes: int | None = None
    """Of the weights' bytes, those that are in host memory or on disk between two forwards; None where none are."""
    bytes_by_device: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """True bytes on each device, and offloaded ones by their place; empty where all are on one."""
    reference_difference: float | None = None
    """Largest absolute difference of the logits from the reference's on a probe; None until compared."""

    @property
    def held_bytes(self) -> int:
        """What the weights take in memory."""
        return self.weight_bytes if self.unpacked_bytes is None else self.unpacked_bytes

    def figures(self) -> dict[str, Any]:
        """The proof as it goes into records."""
        record = {
            "quantized_weight_share": self.quantized_weight_share,
            "bits_per_weight": self.bits_per_weight,
            "weight_bytes": self.weight_bytes,
            "bytes_by_dtype": dict(self.bytes_by_dtype),
            "kernels": dict(self.kernels),
        }
        if self.unpacked_bytes is not None:
            record["unpacked_bytes"] = self.unpacked_bytes
        if self.bytes_by_device:
            record["bytes_by_device"] = dict(self.bytes_by_device)
        if self.offloaded_bytes is not None:
            record["offloaded_bytes"] = self.offloaded_bytes
        if self.parameters:
            record["parameters"] = dict(self.parameters)
        if self.kv_cache:
            record["kv_cache"] = dict(self.kv_cache)
        if self.reference_difference is not None:
            record["reference_difference"] = self.reference_difference
        return record

    def compared(self, difference: float, reference: str) -> Proof:
        """The proof with the measured difference from the reference; :class:`ProofFailed` if there is none."""
        if difference == 0.0:
            raise ProofFailed(
                f"the {self.format} model answers exactly as the {reference} reference does (largest difference of "
                f"the logits 0): the reference was measured by mistake, or the format was not applied"
            )
        return replace(self, reference_difference=difference)


def prove(model: Any, format: Format, backend: Backend, eligible: Mapping[str, int]) -> Proof:
    """Examine a freshly loaded model (before its first forward, which may repack the weights).

    A module whose weights are offloaded is looked at with its weights brought in as for a forward, one at a time.
    ``eligible`` gives the number of weights of each parameter that a matrix product uses, by name. Those that the
    format excludes must not be in it. Raises :class:`ProofFailed` with the figures.
    """
    modules = dict(model.named_modules())
    excluded = {name for name in eligible if is_excluded(name, format)}
    if unknown := matching_nothing(format, eligible):
        raise ProofFailed(f"{format.name} excludes {', '.join(unknown)}, which matches no weight of the model")
    _check_excluded(format, backend, modules, excluded)
    eligible = {name: count for name, count in eligible.items() if name not in excluded}
    kernels: Counter[str] = Counter()
    left_out: list[str] = []
    wrong: dict[str, str] = {}
    told: dict[str, set[Any]] = {}
    held = []
    brought = 0
    """Bytes of the eligible weights that are offloaded."""
    hidden: list[str] = []
    for name in eligible:
        owner_name, _, weight_name = name.rpartition(".")
        owner = modules.get(owner_name)
        if owner is None:
            left_out.append(name)
            continue
        kernels[type(owner).__qualname__] += 1
        with onloaded(owner) as offloaded:
            weight = backend.weight(owner, weight_name)
            stored = backend.stored(owner)
            size = footprint(weight).total
        if offloaded:
            brought += size
        else:
            held.append(weight)
        bits = 8.0 * size / eligible[name]
        fits = not backend.by_bytes or _fits(bits, format)
        if stored is not None and bits < _LEAST * stored.num_bits:
            hidden.append(name)
        if stored is None or not fits or not _as_asked(stored, format, backend):
            left_out.append(name)
        else:
            wrong.update(_wrong_parameters(name, stored, format, backend))
            for key, value in stored.parameters.items():
                told.setdefault(key, set()).add(value)
    weights = sum(eligible.values())
    share = 1.0 - sum(eligible[name] for name in left_out) / weights if weights else 0.0
    whole, away = footprint(backend.whole(model)), offload(model)
    places, by_dtype = dict(whole.by_device), Counter(whole.by_dtype)
    if away is not None:
        by_dtype.update(away.by_dtype)
        places.update({f"offloaded to {place}": size for place, size in away.bytes.items()})
    proof = Proof(
        format=format.name,
        quantized_weight_share=share,
        bits_per_weight=8.0 * (footprint(held).total + brought) / weights if weights else 0.0,
        weight_bytes=whole.total + (0 if away is None else away.total),
        bytes_by_dtype=dict(sorted(by_dtype.items())),
        kernels=dict(kernels),
        left_out=tuple(left_out),
        offloaded_bytes=None if away is None else away.total,
        bytes_by_device=places if len(places) > 1 else {},
        parameters={key: next(iter(values)) for key, values in sorted(told.items()) if len(values) == 1},
    )
    _check(proof, wrong, hidden, len(eligible), format)
    return proof


def _as_asked(stored: Stored, format: Format, backend: Backend) -> bool:
    if not backend.realizes(stored, format):
        return False
    if format.weights.num_bits < 16:
        return True
    wanted = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(format.variant_of or format.base)
    return wanted is None or bool(stored.parameters.get("dtype") == wanted)


def is_excluded(weight: str, format: Format) -> bool:
    """Whether the format leaves the module of a weight in the compute type."""
    return any(_matches(pattern, weight) for pattern in format.exclude)


def matching_nothing(format: Format, weights: Collection[str]) -> list[str]:
    """The patterns of a format's exclusions that match none of the weights: misspelt."""
    return [pattern for pattern in format.exclude if not any(_matches(pattern, weight) for weight in weights)]


def _matches(pattern: str, weight: str) -> bool:
    module = weight.rpartition(".")[0]
    return fnmatchcase(module, pattern) or module.endswith(f".{pattern}")


def _check_excluded(format: Format, backend: Backend, modules: Mapping[str, Any], excluded: Collection[str]) -> None:
    for name in sorted(excluded):
        owner = modules.get(name.rpartition(".")[0])
        stored = backend.stored(owner) if owner is not None else None
        if stored is not None and stored.num_bits < 16:
            raise ProofFailed(f"{format.name} excludes {name}, but it is stored in {stored.num_bits} bits")


def _wrong_parameters(name: str, stored: Stored, format: Format, backend: Backend) -> dict[str, str]:
    return {
        key: f"{key} is {stored.parameters.get(key)!r} in {name}, asked for {wanted!r}"
        for key, wanted in format.parameters.items()
        if key not in backend.recipe and stored.parameters.get(key) != wanted
    }


def _check(proof: Proof, wrong: Mapping[str, str], hidden: Sequence[str], eligible: int, format: Format) -> None:
    if proof.quantized_weight_share < MIN_SHARE:
        some = ", ".join(proof.left_out[:3]) + (", ..." if len(proof.left_out) > 3 else "")
        raise ProofFailed(
            f"not in {proof.format}: {proof.quantized_weight_share:.1%} of the eligible weights are (at least "
            f"{MIN_SHARE:.0%} must be), {proof.bits_per_weight:.2f} bits a weight, {proof.weight_bytes:,} bytes in "
            f"all; kernels {_listed(proof.kernels)}; {len(proof.left_out)} of {eligible} weights left out: {some}"
        )
    if hidden:
        raise ProofFailed(
            f"loaded as {proof.format}, but the bytes of {len(hidden)} of {eligible} weights are not to be found "
            f"({hidden[0]}, ...): the modules must hold their tensors as parameters, buffers or attributes"
        )
    if not _fits(proof.bits_per_weight, format):
        raise ProofFailed(
            f"loaded as {proof.format}, but its weights take {proof.bits_per_weight:.2f} bits each, not "
            f"{format.bits_per_weight:.2f}: kernels {_listed(proof.kernels)}"
        )
    if wrong:
        raise ProofFailed(f"loaded as {proof.format}, but with other parameters: {'; '.join(wrong.values())}")


def _fits(bits: float, format: Format) -> bool:
    """Whether a weight of so many bits can be in the format."""
    return bits <= max(format.bits_per_weight * _SLACK, format.bits_per_weight + _MORE)


def _listed(kernels: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in sorted(kernels.items())) or "none"
