"""A weight rounded to fewer bits, and back: what a format's rounding alone does to it, whatever kernel would run it.

Integers and FP8 are rounded by compressed-tensors, NF4 and FP4 by bitsandbytes. Both keep scales as exact as the weight
they are given, so all is computed in FP32 here: in BF16 compressed-tensors divides and rounds in BF16, and is off by up
to 0.7 of a step at 8 bits. Scales stay in FP32 and are counted as the 16 bits that most formats store them in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_quant.errors import NotFinite, Unsupported, UsageError
from pytest_quant.formats.backend import installed

if TYPE_CHECKING:
    import torch

STRATEGIES = ("tensor", "channel", "group")
CODEBOOKS = ("nf4", "fp4")
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Weights that share a scale, as bitsandbytes takes them."""
_USUAL_GROUP = 64
_SMALLEST_GROUP = 16
_SCALE_BITS = 16
_WIDE = ("float32", "float16", "bfloat16", "float64")
_NOTHING = 1e-30
"""Below this range a group of weights is zeros: its scale would be 0, or no normal FP32 number."""


@dataclass(frozen=True)
class Rounding:
    """How the weights of a linear layer, ``(out, in)``, are rounded.

    ``tensor`` has one scale for all of them, ``channel`` one for a row (an output), ``group`` one for ``group_size``
    neighbours in a row. Scales come from the largest weight. For b bits that is ``2 * max |w| / (2**b - 1)`` where
    ``symmetric``, for the levels -2**(b-1) to 2**(b-1) - 1, and else ``(max - min) / (2**b - 1)``, where the range has
    0 in it, with a whole zero point; ``max |w| / 448`` for FP8 (E4M3), ``max |w|`` for NF4 and FP4.
    """

    numeric: str
    """``int2`` to ``int8``, ``fp8``, ``nf4`` or ``fp4``."""
    strategy: str
    """``tensor``, ``channel`` or ``group``; NF4 and FP4 know ``group`` only."""
    group_size: int | None = None
    """Of the strategy ``group``; 64 for NF4 and FP4 where it is not told."""
    symmetric: bool = True

    @property
    def name(self) -> str:
        """``int4-group-64``, ``int8-channel-asymmetric``, ``nf4-group-64``."""
        size = [str(self.size)] if self.strategy == "group" else []
        return "-".join([self.numeric, self.strategy, *size, *([] if self.symmetric else ["asymmetric"])])

    @property
    def num_bits(self) -> int:
        """Of one weight, without its scale."""
        return int(self.numeric.lstrip("intfp"))

    @property
    def size(self) -> int | None:
        """Weights in a group; ``None`` where there are no groups."""
        if self.strategy != "group":
            return None
        return _USUAL_GROUP if self.group_size is None and self.numeric in CODEBOOKS else self.group_size

    @classmethod
    def asked(cls, numeric: str, strategy: str | None, group_size: int | None) -> Rounding:
        """The rounding that a user asked for, who may leave out the strategy where it follows: ``tensor``, or ``group``
        with a group size and for NF4 and FP4. Checked."""
        usual = "group" if numeric in CODEBOOKS or group_size is not None else "tensor"
        rounding = cls(numeric, strategy or usual, group_size)
        rounding.check()
        return rounding

    def check(self) -> None:
        """:class:`UsageError` where there is no such rounding."""
        if not isinstance(self.numeric, str) or not re.fullmatch(r"int[2-8]|fp8|nf4|fp4", self.numeric):
            raise UsageError(f"numeric={self.numeric!r}: weights are rounded to int2 ... int8, fp8, nf4 or fp4")
        if self.strategy not in STRATEGIES:
            raise UsageError(f"strategy={self.strategy!r} is not one of {', '.join(STRATEGIES)}")
        if self.numeric in CODEBOOKS and self.strategy != "group":
            raise UsageError(f'{self.numeric} has a scale for each block: strategy="group", not "{self.strategy}"')
        if not self.symmetric and not self.numeric.startswith("int"):
            raise UsageError(f"{self.numeric} has no zero points: symmetric=False is for integers")
        if self.strategy != "group":
            if self.group_size is not None:
                raise UsageError(f'group_size={self.group_size} needs strategy="group", not "{self.strategy}"')
            return
        if self.size is None:
            raise UsageError(f'strategy="group" needs a group_size, e.g. {self.numeric} with group_size=64')
        if type(self.size) is not int or self.size < 1:
            raise UsageError(f"group_size={self.size!r} is no positive whole number")
        if self.numeric in CODEBOOKS and self.size not in BLOCKS:
            raise UsageError(f"group_size={self.size}: {self.numeric} has blocks of {', '.join(map(str, BLOCKS))}")

    def bits(self, columns: int) -> float:
        """Stored bits of one weight in a row of ``columns``: its own, and its share of a scale of 16 bits and, where
        not symmetric, of a zero point of as many bits as a weight. The one scale of a tensor counts for nothing.

        bitsandbytes stores the scales of NF4 and FP4 in FP32 or, with double quantization, in 8 bits; so that numerics
        can be compared at the same size they are counted as the others are.
        """
        if self.strategy == "tensor":
            return float(self.num_bits)
        return self.num_bits + (_SCALE_BITS + (0 if self.symmetric else self.num_bits)) / (self.size or columns)

    def fitted(self, columns: int) -> Rounding:
        """The same for rows of ``columns``, with smaller groups where its own do not divide them: what a scan over
        layers of many widths uses. :class:`UsageError` where none fits."""
        if self.size is None or columns % self.size == 0:
            return self
        if self.numeric not in CODEBOOKS:
            return replace(self, group_size=fitting(columns, self.size))
        sizes = [size for size in BLOCKS if size < self.size and columns % size == 0]
        if not sizes:
            raise UsageError(f"no block of {self.numeric} ({', '.join(map(str, BLOCKS))}) divides rows of {columns}")
        return replace(self, group_size=sizes[-1])


def fitting(columns: int, group_size: int) -> int:
    """The largest size of groups up to ``group_size`` that divides rows of ``columns``: 96 for 128 and 576.

    :class:`UsageError` where that is below 16: scales would take as much as the weights do.
    """
    found = next(size for size in range(min(group_size, columns), 0, -1) if columns % size == 0)
    if found < min(_SMALLEST_GROUP, group_size, columns):
        raise UsageError(
            f"no group size from {_SMALLEST_GROUP} to {group_size} divides rows of {columns} weights; round such a "
            f"layer by channel, or leave it out"
        )
    return found


def rounded(weight: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """The weight as it comes back: a new tensor of the same shape, type and device; ``(out, in)``, or more dimensions
    before these.

    Raises :class:`UsageError` for a rounding or a group size that does not fit, :class:`NotFinite` for a weight with
    NaN or infinity, :class:`Unsupported` where the library is not installed.
    """
    import torch

    rounding.check()
    if weight.ndim < 2 or str(weight.dtype).removeprefix("torch.") not in _WIDE:
        raise UsageError(
            f"cannot round a weight of shape {tuple(weight.shape)} in {weight.dtype}: a matrix in one of "
            f"{', '.join(_WIDE)} is needed"
        )
    if rounding.size is not None and weight.shape[-1] % rounding.size:
        raise UsageError(_uneven(rounding, weight.shape[-1]))
    with torch.no_grad():
        if not torch.isfinite(weight).all():
            raise NotFinite(f"cannot round a weight of shape {tuple(weight.shape)}: it has NaN or infinite values")
        rows = weight.detach().to(torch.float32).reshape(-1, weight.shape[-1])
        found = (_by_code if rounding.numeric in CODEBOOKS else _by_steps)(rows, rounding)
        return found.reshape(weight.shape).to(weight.dtype)


def _uneven(rounding: Rounding, columns: int) -> str:
    sizes = BLOCKS if rounding.numeric in CODEBOOKS else range(_SMALLEST_GROUP, 513)
    fit = [str(size) for size in sizes if columns % size == 0]
    return f"groups of {rounding.size} do not divide the {columns} weights of a row; " + (
        f"these do: {', '.join(fit)}" if fit else "nor does any other size that is taken"
    )


def _by_steps(rows: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Integers and FP8, by compressed-tensors; ``(out, in)`` in FP32 to the same."""
    import torch

    _require("compressed-tensors", rounding)
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(
        num_bits=rounding.num_bits,
        type="float" if rounding.numeric == "fp8" else "int",
        strategy=rounding.strategy,
        group_size=rounding.size,
        symmetric=rounding.symmetric,
    )
    if rounding.strategy == "tensor":
        lowest, highest = (end.reshape(1) for end in rows.aminmax())
    elif rounding.strategy == "channel":
        lowest, highest = rows.aminmax(dim=1, keepdim=True)
    else:
        lowest, highest = rows.reshape(len(rows), -1, rounding.size or 1).aminmax(dim=2)
    # a group of zeros would have a scale of 0, and 0 / 0 as its zero point
    highest = torch.where(highest.clamp_min(0.0) - lowest.clamp_max(0.0) < _NOTHING, 1.0, highest)
    scale, zero_point = calculate_qparams(lowest, highest, args)
    found: torch.Tensor = fake_quantize(rows, scale, zero_point, args)
    return found


def _by_code(rows: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """NF4 and FP4, by bitsandbytes, with one scale in FP32 for a block; ``(out, in)`` in FP32 to the same."""
    _require("bitsandbytes", rounding)
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(rows.contiguous(), blocksize=rounding.size, quant_type=rounding.numeric)
    found: torch.Tensor = dequantize_4bit(packed, state)
    return found


def _require(distribution: str, rounding: Rounding) -> None:
    if installed(distribution) is None:
        raise Unsupported(
            asked=f"weights rounded to {rounding.name}",
            found=f"{distribution} not installed",
            needed=f"pip install 'pytest-quant[{distribution}]'",
        )
