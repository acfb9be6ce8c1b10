"""What torchao's tensor subclasses hold, read from their inner tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_quant.formats.backend import Stored

_MX_BITS = {"float4_e2m1fn_x2": 4, "float8_e4m3fn": 8, "float8_e5m2": 8}


def read(weight: Any) -> Stored | None:
    """How a weight is stored; ``None`` if not in one of torchao's tensors that we know.

    The parameters: ``activations`` (how the input is quantized, ``None`` if it is not), ``group_size`` (weights along
    the input that share a scale; ``None`` is a whole row, otherwise ``tensor`` or ``rows x columns``), ``symmetric``,
    ``packed`` (4-bit values two to a byte), ``scale`` (type of the scales), ``compute_dtype`` and ``tensor``.
    """
    reader = _READERS.get(type(weight).__name__)
    if reader is None or not type(weight).__module__.startswith("torchao."):
        return None
    stored = reader(weight)
    if stored is None:
        return None
    common = {"compute_dtype": _name(weight.dtype), "tensor": type(weight).__name__}
    return Stored(stored.num_bits, stored.type, {**stored.parameters, **common})


def _int8(weight: Any) -> Stored | None:
    if _name(weight.qdata.dtype) != "int8":
        return None
    parameters = {
        "activations": _dynamic(weight.act_quant_kwargs, "int8", weight.act_quant_scale),
        "group_size": _group(weight.qdata.shape, weight.scale.shape),
        "symmetric": _is_zero(weight.zero_point),
        "scale": _name(weight.scale.dtype),
    }
    if weight.reduce_range:  # 7 of the 8 bits, for CPUs whose int8 products overflow
        parameters["reduced_range"] = True
    return Stored(8, "int", parameters)


def _int_unpacked(weight: Any) -> Stored | None:
    """One byte for each weight, whatever its bits; the values tell whether they are so few."""
    bits = int(_name(weight.target_dtype).removeprefix("int"))
    low, high = int(weight.qdata.min()), int(weight.qdata.max())
    if low < -(1 << (bits - 1)) or high >= 1 << (bits - 1):
        bits = 8
    activations = weight.activation_quantization
    return Stored(
        bits,
        "int",
        {
            "activations": None if activations is None else str(getattr(activations, "value", activations)),
            "group_size": weight.qdata.shape[-1] // weight.scale.shape[-1],  # of a whole row, where that is one group
            "symmetric": _is_zero(weight.zero_point),
            "packed": False,
            "scale": _name(weight.scale.dtype),
        },
    )


def _int4_tiles(weight: Any) -> Stored | None:
    """``qdata`` is ``[out / 8][in / 128][32][4]`` of int32 and ``scale_and_zero`` ``[in / group][out][2]``, both padded
    to whole tiles."""
    scales = weight.scale_and_zero
    return _int4(weight, weight.qdata.shape[-3] * 128 // scales.shape[-3], scales[..., 1], scales)


def _int4_plain(weight: Any) -> Stored | None:
    """``scale`` and ``zero_point`` are ``[in / group][out]``."""
    return _int4(weight, weight.shape[-1] // weight.scale.shape[-2], weight.zero_point, weight.scale)


def _int4(weight: Any, group: int, zero_point: Any, scale: Any) -> Stored:
    activations = _name(getattr(weight, "activation_dtype", weight.dtype))
    return Stored(
        4,
        "int",
        {
            "activations": "fp8 per token" if activations.startswith("float8") else None,
            "group_size": group,
            "symmetric": _is_zero(zero_point),
            "packed": True,
            "scale": _name(scale.dtype),
        },
    )


def _float8(weight: Any) -> Stored | None:
    if not _name(weight.qdata.dtype).startswith("float8"):
        return None
    return Stored(
        8,
        "float",
        {
            "activations": _dynamic(weight.act_quant_kwargs, "fp8", None),
            "group_size": _group(weight.qdata.shape, weight.scale.shape),
            "dtype": _name(weight.qdata.dtype),
        },
    )


def _mx(weight: Any) -> Stored | None:
    element = _name(weight.elem_dtype)
    bits = _MX_BITS.get(element)
    if bits is None or 8 * weight.qdata.numel() != bits * weight.numel():
        return None
    acting = weight.act_quant_kwargs
    kind = None if acting is None else f"mxfp{_MX_BITS.get(_name(acting.elem_dtype), '?')}"
    return Stored(
        bits,
        "float",
        {
            "activations": None if acting is None else f"{kind} in groups of {acting.block_size}",
            "group_size": _blocks(weight),
            "packed": bits == 4,
            "scale": _name(weight.scale.dtype),
            "dtype": element,
            "kernel": str(getattr(weight.kernel_preference, "value", weight.kernel_preference)),
        },
    )


def _nvfp4(weight: Any) -> Stored | None:
    if 2 * weight.qdata.numel() != weight.numel():
        return None
    acting = weight.act_quant_kwargs
    return Stored(
        4,
        "float",
        {
            "activations": None if acting is None else f"nvfp4 in groups of {acting.block_size}",
            "group_size": _blocks(weight),
            "packed": True,
            "scale": _name(weight.scale.dtype),
            "dtype": "float4_e2m1fn_x2",
        },
    )


_READERS: dict[str, Callable[[Any], Stored | None]] = {
    "Int8Tensor": _int8,
    "IntxUnpackedToInt8Tensor": _int_unpacked,
    "Int4TilePackedTo4dTensor": _int4_tiles,
    "Int4PlainInt32Tensor": _int4_plain,
    "Int4Tensor": _int4_plain,
    "Float8Tensor": _float8,
    "MXTensor": _mx,
    "NVFP4Tensor": _nvfp4,
}


def _dynamic(quantizer: Any, type: str, static_scale: Any) -> str | None:
    """How activations are quantized: the keyword arguments that the weight keeps for it."""
    if quantizer is None:
        return None
    granularity = quantizer.granularity
    per = {"PerRow": "token", "PerTensor": "tensor"}.get(granularity.__class__.__name__, str(granularity))
    uneven = getattr(getattr(quantizer, "mapping_type", None), "name", "SYMMETRIC") != "SYMMETRIC"
    return f"{type} per {per}{', asymmetric' if uneven else ''}{', static' if static_scale is not None else ''}"


def _group(weight: tuple[int, ...], scale: tuple[int, ...]) -> int | str | None:
    """What shares a scale, from the shapes ``(out, in)`` of the weight and of its scales."""
    if len(scale) < 2:
        return "tensor"
    rows, columns = weight[-2] // scale[-2], weight[-1] // scale[-1]
    if rows == 1:
        return None if columns == weight[-1] else columns
    return "tensor" if (rows, columns) == (weight[-2], weight[-1]) else f"{rows}x{columns}"


def _blocks(weight: Any) -> int | str:
    """The block size, if there are as many scales as it takes (padded to tiles of 128 by 4 where swizzled)."""
    rows, columns = weight.shape[-2], weight.shape[-1] // weight.block_size
    if weight.is_swizzled_scales:
        rows, columns = -(-rows // 128) * 128, -(-columns // 4) * 4
    return int(weight.block_size) if weight.scale.numel() == rows * columns else f"{weight.scale.numel()} scales"


def _is_zero(zero_point: Any) -> bool:
    return zero_point is None or not bool(zero_point.any())


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
