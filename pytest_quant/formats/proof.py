"""Proof of quantization: that a loaded model really is in the format it was asked to be in.

Nothing here trusts a config. The weights that a matrix product uses are listed from the model's
architecture (never from the loaded model), and each is looked up in the loaded model: its kernel, its
parameters and its bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_quant.errors import ProofFailed
from pytest_quant.formats.backend import Backend, Stored
from pytest_quant.formats.format import Format
from pytest_quant.formats.storage import footprint

MIN_SHARE = 0.95
"""Routers and other small gates may stay wide; a layer that was forgotten may not."""


@dataclass(frozen=True)
class Proof:
    """What the loaded model showed about its format."""

    format: str
    quantized_weight_share: float
    """Share of the eligible weights (those of matrix products, embeddings and head apart) in the format."""
    bits_per_weight: float
    """Stored bits of an eligible weight, scales included."""
    weight_bytes: int
    """True bytes of the whole model."""
    bytes_by_dtype: Mapping[str, int]
    kernels: Mapping[str, int]
    """Module classes that hold the eligible weights, with their number."""
    left_out: tuple[str, ...] = ()
    """Eligible weights that are not in the format."""
    reference_difference: float | None = None
    """Largest absolute difference of the logits from the reference's on a probe; None until compared."""

    def figures(self) -> dict[str, Any]:
        """The proof as it goes into records."""
        record = {
            "quantized_weight_share": self.quantized_weight_share,
            "bits_per_weight": self.bits_per_weight,
            "weight_bytes": self.weight_bytes,
            "bytes_by_dtype": dict(self.bytes_by_dtype),
            "kernels": dict(self.kernels),
        }
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

    ``eligible`` gives the number of weights of each parameter that a matrix product uses, by name.
    Raises :class:`ProofFailed` with the figures.
    """
    modules = dict(model.named_modules())
    kernels: Counter[str] = Counter()
    left_out: list[str] = []
    wrong: dict[str, str] = {}
    held = []
    for name in eligible:
        owner_name, _, weight_name = name.rpartition(".")
        owner = modules.get(owner_name)
        if owner is None:
            left_out.append(name)
            continue
        kernels[type(owner).__qualname__] += 1
        held.append(getattr(owner, weight_name, None))
        stored = backend.stored(owner)
        if stored is None or not _as_asked(stored, format):
            left_out.append(name)
        else:
            wrong.update(_wrong_parameters(name, stored, format))
    weights = sum(eligible.values())
    share = 1.0 - sum(eligible[name] for name in left_out) / weights if weights else 0.0
    whole = footprint(model)
    proof = Proof(
        format=format.name,
        quantized_weight_share=share,
        bits_per_weight=8.0 * footprint(held).total / weights if weights else 0.0,
        weight_bytes=whole.total,
        bytes_by_dtype=whole.by_dtype,
        kernels=dict(kernels),
        left_out=tuple(left_out),
    )
    _check(proof, wrong, len(eligible))
    return proof


def _as_asked(stored: Stored, format: Format) -> bool:
    if stored.num_bits != format.weights.num_bits or stored.type != format.weights.type:
        return False
    if format.quantized:
        return True
    wanted = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[format.name]
    return bool(stored.parameters["dtype"] == wanted)


def _wrong_parameters(name: str, stored: Stored, format: Format) -> dict[str, str]:
    return {
        key: f"{key} is {stored.parameters.get(key)!r} in {name}, asked for {wanted!r}"
        for key, wanted in format.parameters.items()
        if stored.parameters.get(key) != wanted
    }


def _check(proof: Proof, wrong: Mapping[str, str], eligible: int) -> None:
    if proof.quantized_weight_share < MIN_SHARE:
        some = ", ".join(proof.left_out[:3]) + (", ..." if len(proof.left_out) > 3 else "")
        raise ProofFailed(
            f"not in {proof.format}: {proof.quantized_weight_share:.1%} of the eligible weights are (at least "
            f"{MIN_SHARE:.0%} must be), {proof.bits_per_weight:.2f} bits a weight, {proof.weight_bytes:,} bytes in "
            f"all; kernels {_listed(proof.kernels)}; {len(proof.left_out)} of {eligible} weights left out: {some}"
        )
    if wrong:
        raise ProofFailed(f"loaded as {proof.format}, but with other parameters: {'; '.join(wrong.values())}")


def _listed(kernels: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in sorted(kernels.items())) or "none"
