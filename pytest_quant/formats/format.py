"""Formats: how weights and activations are represented, in compressed-tensors' words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class QuantizationArgs:
    """How one tensor is represented; the field names are those of compressed-tensors."""

    num_bits: int
    type: str
    """``int`` or ``float``."""
    strategy: str = "tensor"
    """``tensor``, ``channel``, ``group``, ``block`` or ``token``."""
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False


@dataclass(frozen=True)
class Format:
    """A named format and the backend that realizes it.

    ``numeric`` is the row of the support matrix's units table that the matrix products run in when
    the format is native (``int8``, ``bf16``, ...); ``scale_bits`` is what scales add to each weight.
    """

    name: str
    weights: QuantizationArgs
    backend: str
    numeric: str
    input_activations: QuantizationArgs | None = None
    scale_bits: float = 0.0
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    known: bool = True
    """False for a name that a later version will realize: such a format is skipped, never pretended."""

    @property
    def quantized(self) -> bool:
        return self.weights.num_bits < 16

    @property
    def weight_only(self) -> bool:
        """Stored narrow, computed in a wider type: runs wherever its kernel does."""
        return self.quantized and self.input_activations is None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of one quantized weight, its share of the scales included."""
        return self.weights.num_bits + self.scale_bits
