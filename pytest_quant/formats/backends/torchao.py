"""torchao: int8, int4, fp8 and the block-scaled 4-bit formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from platform import machine
from types import MappingProxyType
from typing import Any

from pytest_quant.errors import Unsupported
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored, installed
from pytest_quant.formats.backends.skeleton import excluding, linear_sizes, stay_wide
from pytest_quant.formats.backends.torchao_tensors import read
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.formats.products import products

_ROWS = 32
"""Rows of input that stand for a prompt, beside the single one of decoding."""
_NVFP4_COMPUTES = ("bfloat16", "float32")
_INT8_ROW_BITS = 32 + 8
"""A scale in FP32 and an int8 zero point, which is 0."""
_FP8_ROW_BITS = 32
_MULTIPLES = {"fp8": (16, 16), "mxfp4": (1, 32), "nvfp4": (16, 16), "nvfp4-weight-only": (16, 16)}
"""What outputs and inputs of a layer must be multiples of; otherwise it stays wide in silence, or loading fails."""
_TILE = 1024
_PADDING = 1.25
"""Tile-packed int4 pads a layer's inputs to whole tiles; beyond this factor it is no 4-bit format any more."""
_NEEDED = {
    "int4": "an NVIDIA GPU of compute capability 8.0 or newer or an Intel GPU; int4-unpacked needs neither",
    "fp8": "an NVIDIA GPU of compute capability 8.9 or newer, MI300, MI350 or an Intel GPU; fp8-weight-only needs none",
    "mxfp4": "an NVIDIA GPU of compute capability 10.0 or newer, MI350, or a CPU (emulated)",
    "nvfp4": "an NVIDIA GPU of compute capability 10.0 or newer; nvfp4-weight-only needs none",
}


def _parameters(**parameters: Any) -> MappingProxyType[str, Any]:
    return MappingProxyType(parameters)


class Torchao(Backend):
    """Quantizes on loading, through transformers' ``TorchAoConfig``.

    The model is loaded in the compute type that was asked for where torchao computes in it, otherwise in bfloat16:
    ``int4``, ``fp8`` and ``mxfp4`` know no other, ``nvfp4`` and ``nvfp4-weight-only`` no float16. The proof tells the
    type, and what a layer multiplies (``product``; ``product_of_one_row`` where decoding differs), since torchao falls
    back to FP32 products in silence where an int8 product is refused.

    ``int4`` packs tiles for tinygemm on NVIDIA and AMD GPUs and oneDNN's layout on Intel's, which take no further
    library. ``mxfp4`` is emulated where the device has no units for it: rounded as the units would, multiplied in bf16.
    """

    name = "torchao"
    requires = ("torch", "transformers", "accelerate", "safetensors", "torchao>=0.18")
    install = "'pytest-quant[torchao]'"
    formats = (
        Format(
            "int8-weight-only",
            QuantizationArgs(8, "int", "channel"),
            "torchao",
            "int8",
            row_bits=_INT8_ROW_BITS,
            parameters=_parameters(activations=None, group_size=None, symmetric=True),
            instead=("int8-weight-only@quanto",),
        ),
        Format(
            "w8a8",
            QuantizationArgs(8, "int", "channel"),
            "torchao",
            "int8",
            input_activations=QuantizationArgs(8, "int", "token", dynamic=True),
            row_bits=_INT8_ROW_BITS,
            parameters=_parameters(activations="int8 per token", group_size=None, symmetric=True),
            instead=("w8a8@compressed-tensors",),
        ),
        Format(
            "int4",
            QuantizationArgs(4, "int", "group", group_size=128, symmetric=False),
            "torchao",
            "int4",
            scale_bits=0.25,  # bf16 scale and zero point
            computes=("bfloat16",),
            parameters=_parameters(activations=None, group_size=128, symmetric=False, packed=True),
            instead=("int4@quanto", "int4@hqq"),
        ),
        Format(
            "int4-unpacked",
            QuantizationArgs(4, "int", "group", group_size=64),
            "torchao",
            "int4",
            scale_bits=0.375,  # a scale in the compute type and an int8 zero point, which is 0
            wide_scale_bits=0.25,
            stored_bits=8,
            parameters=_parameters(activations=None, group_size=64, symmetric=True, packed=False),
        ),
        Format(
            "fp8",
            QuantizationArgs(8, "float", "channel"),
            "torchao",
            "fp8",
            input_activations=QuantizationArgs(8, "float", "token", dynamic=True),
            row_bits=_FP8_ROW_BITS,
            computes=("bfloat16",),
            parameters=_parameters(activations="fp8 per token", group_size=None),
            instead=("fp8-weight-only",),
        ),
        Format(
            "fp8-weight-only",
            QuantizationArgs(8, "float", "channel"),
            "torchao",
            "fp8",
            row_bits=_FP8_ROW_BITS,
            parameters=_parameters(activations=None, group_size=None),
            instead=("fp8-weight-only@quanto",),
        ),
        Format(
            "mxfp4",
            QuantizationArgs(4, "float", "group", group_size=32),
            "torchao",
            "mxfp4",
            input_activations=QuantizationArgs(4, "float", "group", group_size=32, dynamic=True),
            scale_bits=0.25,
            computes=("bfloat16",),
            parameters=_parameters(activations="mxfp4 in groups of 32", group_size=32, scale="float8_e8m0fnu"),
        ),
        Format(
            "nvfp4",
            QuantizationArgs(4, "float", "group", group_size=16),
            "torchao",
            "nvfp4",
            input_activations=QuantizationArgs(4, "float", "group", group_size=16, dynamic=True),
            scale_bits=0.5,
            computes=_NVFP4_COMPUTES,
            parameters=_parameters(activations="nvfp4 in groups of 16", group_size=16, scale="float8_e4m3fn"),
            instead=("nvfp4-weight-only",),
        ),
        Format(
            "nvfp4-weight-only",
            QuantizationArgs(4, "float", "group", group_size=16),
            "torchao",
            "nvfp4",
            scale_bits=0.5,
            computes=_NVFP4_COMPUTES,
            parameters=_parameters(activations=None, group_size=16, scale="float8_e4m3fn"),
        ),
    )

    def __init__(self) -> None:
        self._products: dict[tuple[object, ...], tuple[str, str]] = {}

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        """:class:`Unsupported` where torchao refuses the device, or a layer's size does not fit the format."""
        import torch
        from transformers import TorchAoConfig

        kind = asked.format.variant_of or asked.format.base
        dtype = getattr(torch, asked.format.compute_dtype(asked.compute_dtype))
        config = _CONFIGS[kind](asked)
        _rehearse(asked, kind, config, dtype)
        _check_sizes(asked, kind)
        wanted = TorchAoConfig(config, modules_to_not_convert=stay_wide(asked))
        return from_pretrained(asked.model, dtype=dtype, quantization_config=wanted)

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        return excluding("TorchAoConfig", "modules_to_not_convert", names, head)

    def stored(self, module: Any) -> Stored | None:
        weight = getattr(module, "weight", None)
        stored = read(weight)
        if stored is None:
            return None
        many, one = self._products_of(weight)
        told = {"product": many} if one == many else {"product": many, "product_of_one_row": one}
        return Stored(stored.num_bits, stored.type, {**stored.parameters, **told})

    def _products_of(self, weight: Any) -> tuple[str, str]:
        """What many rows and one row of input end in; the same for all weights of one kind and size."""
        how = (repr(getattr(weight, name, None)) for name in ("act_quant_kwargs", "kernel_preference", "block_size"))
        key = (type(weight).__name__, tuple(weight.shape), weight.dtype, str(weight.device), *how)
        if key not in self._products:
            self._products[key] = (products(weight, _ROWS), products(weight, 1))
        return self._products[key]


def _rehearse(asked: Asked, kind: str, config: Any, dtype: Any) -> None:
    """Quantize and multiply one small layer, before gigabytes are read: :class:`Unsupported` with the library's own
    words where it cannot."""
    import torch
    from torchao.quantization import quantize_

    with torch.device("meta"):  # which draws no random numbers
        layer = torch.nn.Linear(_TILE, 256, bias=False)
    values = torch.linspace(-1.0, 1.0, layer.weight.numel(), device=asked.place).to(dtype)
    layer.weight = torch.nn.Parameter(values.view(layer.weight.shape), requires_grad=False)
    try:
        quantize_(layer, config)
        for rows in (_ROWS, 1):
            products(layer.weight, rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # assertions, import errors and what kernels raise
        raise Unsupported(
            asked=f"{asked.format.name} (torchao {installed('torchao')}) on {asked.place}",
            found=f"{type(error).__name__}: {(str(error) or 'without words').strip().splitlines()[0][:300]}",
            needed=_NEEDED.get(kind, "another device, or other versions of torch and torchao"),
        ) from error


def _check_sizes(asked: Asked, kind: str) -> None:
    """:class:`Unsupported` where the library would leave layers wide in silence, refuse them, or pad them out of all
    proportion."""
    group = asked.format.parameters.get("group_size")
    outputs, inputs = _MULTIPLES.get(kind, (1, 1))
    if kind in ("int4", "int4-unpacked") and group:
        inputs = int(group)
    if (outputs, inputs) == (1, 1):
        return
    sizes = linear_sizes(asked)
    asks = f"{asked.format.name} (torchao {installed('torchao')})"
    for name, (out, into) in sizes.items():
        if out % outputs or into % inputs:
            found = f"{name} has {into} inputs and {out} outputs"
            raise Unsupported(asks, found, _fitting(asked, name, into, inputs, outputs))
    if kind == "int4" and asked.place.startswith("cuda") and sizes:
        padded = sum(out * -(-into // _TILE) * _TILE for out, into in sizes.values())
        factor = padded / sum(out * into for out, into in sizes.values())
        if factor > _PADDING:
            found = f"layers whose inputs are padded to multiples of {_TILE}: {factor:.2f} times the weights"
            raise Unsupported(asks, found, "a wider model; int4@quanto packs without padding")


def _fitting(asked: Asked, layer: str, into: int, inputs: int, outputs: int) -> str:
    """What a layer needs to be quantized, or what else may be done about it."""
    if outputs == 1 and (group := next((size for size in (128, 64, 32) if size < inputs and into % size == 0), None)):
        own = asked.format.variant_of or asked.format.name
        if own.startswith("int4"):
            return f"a group size that divides {into}: variant({own!r}, name=..., group_size={group})"
    many = f" and outputs of {outputs}" if outputs > 1 else ""
    return f"inputs in multiples of {inputs}{many}, or {layer} among what the format excludes"


def _int8_weight_only(asked: Asked) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow

    group = asked.format.parameters.get("group_size")
    return Int8WeightOnlyConfig(granularity=PerGroup(group) if group else PerRow(), set_inductor_config=False)


def _w8a8(asked: Asked) -> Any:
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from torchao.utils import should_reduce_range

    # Without VNNI the int8 products of an x86 CPU overflow where both factors are large.
    reduced = machine() in ("x86_64", "AMD64") and should_reduce_range(torch.device(asked.place))
    return Int8DynamicActivationInt8WeightConfig(reduce_range=reduced, set_inductor_config=False)


def _int4(asked: Asked) -> Any:
    import torch
    from torchao.quantization import Int4WeightOnlyConfig

    layouts = {"cuda": "tile_packed_to_4d", "xpu": "plain_int32"}
    layout = layouts.get(asked.place.partition(":")[0])
    if layout is None:
        raise Unsupported(
            asked=f"{asked.format.name} (torchao {installed('torchao')}) on {asked.place}",
            found="packed int4 layouts for GPUs only",
            needed=_NEEDED["int4"],
        )
    return Int4WeightOnlyConfig(
        group_size=asked.format.parameters["group_size"],
        int4_packing_format=layout,
        int4_tile_packed_ntile=16 if torch.version.hip else 8,
        set_inductor_config=False,
    )


def _int4_unpacked(asked: Asked) -> Any:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup

    parameters = asked.format.parameters
    return IntxWeightOnlyConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]
        granularity=PerGroup(parameters["group_size"]),
        mapping_type=MappingType.SYMMETRIC if parameters["symmetric"] else MappingType.ASYMMETRIC,
    )


def _fp8(asked: Asked) -> Any:
    import torch
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    # Fast accumulation of scaled rows crashes for some sizes with the cuBLAS of CUDA 12.9 (pytorch/ao#4582).
    breaks = (torch.version.cuda or "").startswith("12.9")
    return Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(),
        mm_config=Float8MMConfig(use_fast_accum=False) if breaks else None,
        set_inductor_config=False,
    )


def _fp8_weight_only(asked: Asked) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, PerGroup, PerRow

    group = asked.format.parameters.get("group_size")
    return Float8WeightOnlyConfig(granularity=PerGroup(group) if group else PerRow(), set_inductor_config=False)


def _mxfp4(asked: Asked) -> Any:
    import torch
    from torchao.prototype.mx_formats import MXDynamicActivationMXWeightConfig
    from torchao.quantization.quantize_.common import KernelPreference

    return MXDynamicActivationMXWeightConfig(
        activation_dtype=torch.float4_e2m1fn_x2,
        weight_dtype=torch.float4_e2m1fn_x2,
        kernel_preference=KernelPreference.AUTO if _has_mx_units(asked.place) else KernelPreference.EMULATED,
    )


def _has_mx_units(place: str) -> bool:
    import torch

    if not place.startswith("cuda"):
        return False
    if torch.version.hip:
        return torch.cuda.get_device_properties(place).gcnArchName.startswith("gfx950")
    return torch.cuda.get_device_capability(place) >= (10, 0)


def _nvfp4(asked: Asked) -> Any:
    from importlib.util import find_spec

    from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig

    # Its Triton kernel rounds as torch's operations do, only faster; it comes with mslk (mslk-cuda on the index).
    return NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=find_spec("mslk") is not None)


def _nvfp4_weight_only(asked: Asked) -> Any:
    from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig

    return NVFP4WeightOnlyConfig()


_CONFIGS: dict[str, Callable[[Asked], Any]] = {
    "int8-weight-only": _int8_weight_only,
    "w8a8": _w8a8,
    "int4": _int4,
    "int4-unpacked": _int4_unpacked,
    "fp8": _fp8,
    "fp8-weight-only": _fp8_weight_only,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "nvfp4-weight-only": _nvfp4_weight_only,
}

BACKEND = Torchao()
