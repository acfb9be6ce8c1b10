"""Formats: how weights and activations are represented, in compressed-tensors' words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_quant.formats.kv_cache import KVCache


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
    kv_cache: KVCache | None = None
    scale_bits: float = 0.0
    stored_bits: int | None = None
    """Bits that a weight takes where the library does not pack it; ``None``: those of ``weights``."""
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Of the backend's own; a model that was loaded with others does not prove itself."""
    exclude: tuple[str, ...] = ()
    """Patterns (``*.down_proj``) of modules that stay in the compute type."""
    from_checkpoint: bool = False
    """Made beforehand, and loaded from files of its own; otherwise quantized while the base model is loaded."""
    instead: tuple[str, ...] = ()
    """Formats that do much the same through another library."""

    variant_of: str = ""
    """The built-in format that this one is, but for its parameters."""

    @property
    def base(self) -> str:
        """The name without a KV cache format."""
        return self.name.partition("+")[0]

    @property
    def quantized(self) -> bool:
        """Whether it is anything but a plain floating-point model."""
        return self.weights.num_bits < 16 or self.kv_cache is not None

    @property
    def weight_only(self) -> bool:
        """Stored narrow, computed in a wider type: runs wherever its kernel does."""
        return self.weights.num_bits < 16 and self.input_activations is None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of one quantized weight, its share of the scales included."""
        return (self.stored_bits or self.weights.num_bits) + self.scale_bits
