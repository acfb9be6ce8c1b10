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
    wide_scale_bits: float = 0.0
    """Of ``scale_bits``, those in the compute type: in FP32 there are twice as many."""
    row_bits: int = 0
    """Scales and zero points of each row of a weight, where rows have their own; not in ``scale_bits``."""
    wide_row_bits: int = 0
    """Of ``row_bits``, those in the compute type."""
    group_sizes: tuple[int, ...] = ()
    """Group sizes that the library takes the first of that divides a row; ``scale_bits`` is meant for the first, and
    where none divides it, the row is one group."""
    covers_rest: bool = False
    """Whether embeddings and head are quantized as well."""
    computes: tuple[str, ...] = ()
    """Types that the library insists on computing in, the one that it falls back to first; empty: it takes any."""
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

    def compute_dtype(self, asked: str) -> str:
        """The type that the library computes in when it is asked for one, in torch's words."""
        return self.computes[0] if self.computes and asked not in self.computes else asked

    def rest_bits(self, compute_bits: int) -> int:
        """Bits of what is not quantized, in a compute type of so many bits: the type's own in a plain format, and those
        of the type that the library insists on."""
        if self.weights.num_bits >= 16:
            return self.weights.num_bits
        if self.computes and compute_bits == 32 and "float32" not in self.computes:
            return 16
        return compute_bits

    def bits_of(self, compute_bits: int, length: int | None = None) -> float:
        """Stored bits of one weight in a row of ``length``, its share of the scales included; of a row that is so long
        that its own scales count for nothing where the length is not given."""
        twice = compute_bits / 16 - 1.0
        bits = (self.stored_bits or self.weights.num_bits) + self._group_bits(twice, length)
        return bits if length is None else bits + (self.row_bits + twice * self.wide_row_bits) / length

    def _group_bits(self, twice: float, length: int | None) -> float:
        bits = self.scale_bits + twice * self.wide_scale_bits
        if length is None or not self.group_sizes:
            return bits
        size = next((size for size in self.group_sizes if length % size == 0), length)
        return bits * self.group_sizes[0] / size
