"""compressed-tensors: checkpoints of llm-compressor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored, installed, listed
from pytest_quant.formats.backends import compressed_tensors_making as making
from pytest_quant.formats.format import Format, QuantizationArgs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FP4_GROUP = 16


def _format(
    name: str,
    weights: QuantizationArgs,
    numeric: str,
    activations: QuantizationArgs | None = None,
    scale_bits: float = 0.0,
    wide_scale_bits: float = 0.0,
    row_bits: int = 0,
    instead: tuple[str, ...] = (),
) -> Format:
    """What its checkpoints have in common: which activations are quantized, and to how many bits. Group sizes, zero
    points and whether scales are fixed differ from checkpoint to checkpoint; they are reported."""
    return Format(
        name,
        weights,
        backend="compressed-tensors",
        numeric=numeric,
        input_activations=activations,
        scale_bits=scale_bits,
        wide_scale_bits=wide_scale_bits,
        row_bits=row_bits,
        wide_row_bits=row_bits,
        parameters=MappingProxyType({"activation_bits": activations.num_bits if activations else 16}),
        from_checkpoint=True,
        instead=instead,
    )


class CompressedTensors(Backend):
    """Loads checkpoints through transformers, and makes them with llm-compressor.

    transformers leaves them packed while it loads, and dequantizes every weight at the first forward: from then on the
    model takes as many bytes as a plain one, and quantized activations are rounded and multiplied in the compute type.
    """

    name = "compressed-tensors"
    requires = ("torch", "transformers", "accelerate", "safetensors", "compressed-tensors>=0.15")
    install = "'pytest-quant[compressed-tensors]'"
    recipe = making.RECIPE
    makes = True
    unpacks = True
    formats = (
        _format(  # one scale in the compute type for a group of 128
            "w4a16",
            QuantizationArgs(4, "int", "group", group_size=128),
            "int4",
            scale_bits=0.125,
            wide_scale_bits=0.125,
            instead=("int4@quanto",),
        ),
        _format(
            "w8a8@compressed-tensors",
            QuantizationArgs(8, "int", "channel"),
            "int8",
            QuantizationArgs(8, "int", "token", dynamic=True),
            row_bits=16,
            instead=("w8a8",),
        ),
        _format(
            "fp8@compressed-tensors",
            QuantizationArgs(8, "float", "channel"),
            "fp8",
            QuantizationArgs(8, "float", "token", dynamic=True),
            row_bits=16,
            instead=("fp8", "fp8-weight-only"),
        ),
        _format(  # one 8-bit scale for a group of 16, and one for the whole tensor
            "nvfp4@compressed-tensors",
            QuantizationArgs(4, "float", "group", group_size=_FP4_GROUP),
            "nvfp4",
            QuantizationArgs(4, "float", "group", group_size=_FP4_GROUP, dynamic=True),
            scale_bits=0.5,
            instead=("nvfp4",),
        ),
    )

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        if asked.checkpoint is None:
            raise UsageError(
                f"{asked.format.name} is loaded from a checkpoint that llm-compressor made of {asked.model!r}, and "
                f"none was given: give its folder or hub id"
            )
        import torch

        dtype = getattr(torch, asked.compute_dtype)
        try:
            with making.without_progress():
                model = from_pretrained(asked.checkpoint, dtype=dtype)
        except RuntimeError as error:
            _explain_mismatch(asked, error)
            raise
        _unpack_into(model, dtype)
        return model

    def stored(self, module: Any) -> Stored | None:
        found = _packed(module) or _plain(module)
        if found is None:
            return None
        return Stored(found.num_bits, found.type, {**found.parameters, **_activations(module)})

    def weight(self, module: Any, name: str) -> Any:
        """Every tensor of the layer whose name begins with that of the weight: values, shape, scales, zero points."""
        parts = [
            tensor
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            if key == name or key.startswith(f"{name}_")
        ]
        return parts or None

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        """Of llm-compressor's ``GPTQModifier`` and its others too."""
        return f"QuantizationModifier(..., ignore={listed(making.ignoring(names, [head]))})"

    def calibrates(self, format: Format) -> bool:
        return making.needs_samples(format)

    def make(
        self, asked: Asked, samples: Sequence[NDArray[np.int64]], folder: Path, tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        """With llm-compressor, :class:`Unsupported` where that is not installed.

        The format's parameters ``rounding`` (``nearest``, ``gptq``) and ``smoothing_strength`` (0 to 1, 0 for no
        SmoothQuant) say how. It runs in ``asked.compute_dtype``, and scales are saved in it.
        """
        return making.make(asked, samples, folder, tell)


def _explain_mismatch(asked: Asked, error: RuntimeError) -> None:
    """Raise what it means that tensors have other shapes than the checkpoint's config says, if that is the error."""
    if "ignore_mismatched_sizes" not in str(error):
        return
    from transformers import AutoConfig

    told = getattr(AutoConfig.from_pretrained(asked.checkpoint), "quantization_config", None) or {}
    groups = [group for group in (told.get("config_groups") or {}).values() if group.get("weights")]
    if any(group["weights"].get("symmetric") is False for group in groups):
        raise Unsupported(
            asked=f"{asked.checkpoint} in {asked.format.name}",
            found=f"packed weights with zero points, whose shape compressed-tensors {installed('compressed-tensors')} "
            f"gets wrong while transformers loads them",
            needed="a checkpoint with symmetric weights (symmetric=True in the quantizer's recipe)",
        ) from error
    raise UsageError(
        f"the tensors of {asked.checkpoint!r} have other shapes than its config.json says (another group size, or "
        f"another scheme); restore the checkpoint or make it again"
    ) from error


def _unpack_into(model: Any, dtype: Any) -> None:
    """Have the first forward unpack the weights into the compute type, and without a progress bar.

    compressed-tensors unpacks FP4 into bfloat16, whatever the model computes in, and then cannot multiply.
    """
    import torch

    handle = getattr(model, "ct_decompress_hook", None)
    if handle is None:
        return
    unpack = model._forward_pre_hooks[handle.id]

    def unpack_quietly(module: Any, inputs: Any) -> None:
        with making.without_progress():
            unpack(module, inputs)
        for layer in module.modules():
            if isinstance(layer, torch.nn.Linear) and layer.weight.dtype is not dtype:
                wide = torch.nn.Parameter(layer.weight.to(dtype), requires_grad=False)
                del layer.weight  # assigned in place, it would keep its type
                layer.weight = wide

    model._forward_pre_hooks[handle.id] = unpack_quietly


def _packed(module: Any) -> Stored | None:
    """Several values in one element: integers in 32-bit words, FP4 pairs in bytes with 8-bit scales."""
    import torch

    packed, scale = getattr(module, "weight_packed", None), getattr(module, "weight_scale", None)
    if packed is None or scale is None:
        return None
    if packed.dtype is torch.uint8:
        if getattr(module, "weight_global_scale", None) is None or scale.dtype is not torch.float8_e4m3fn:
            return None  # FP4 with other scales is another format (MXFP4)
        columns = 2 * packed.shape[-1]
        return Stored(4, "float", _layout(packed.shape[0], columns, scale, symmetric=True))
    shape = getattr(module, "weight_shape", None)
    if packed.dtype is not torch.int32 or shape is None:
        return None
    rows, columns = (int(size) for size in shape)
    if packed.shape[0] != rows:
        return None
    return Stored(packed.shape[-1] * 32 // columns, "int", _layout(rows, columns, scale, symmetric=_symmetric(module)))


def _plain(module: Any) -> Stored | None:
    """One value in one element of 8 bits."""
    import torch

    weight, scale = getattr(module, "weight", None), getattr(module, "weight_scale", None)
    if not isinstance(module, torch.nn.Linear) or weight is None or scale is None or weight.ndim != 2:
        return None
    kinds = {torch.int8: "int", torch.float8_e4m3fn: "float"}
    if weight.dtype not in kinds:
        return None
    rows, columns = weight.shape
    layout = _layout(rows, columns, scale, symmetric=_symmetric(module))
    return Stored(8, kinds[weight.dtype], {"weight_dtype": str(weight.dtype).removeprefix("torch."), **layout})


def _layout(rows: int, columns: int, scale: Any, *, symmetric: bool) -> dict[str, Any]:
    """What the shape of the scales says: one for the tensor, a row, a group of a row, or a block."""
    shape = tuple(scale.shape) if scale.ndim == 2 else (scale.numel(), 1)
    found: dict[str, Any] = {"scale_dtype": str(scale.dtype).removeprefix("torch."), "symmetric": symmetric}
    if scale.numel() == 1:
        return {"strategy": "tensor", **found}
    if shape[0] != rows:
        return {"strategy": "block", "block_rows": -(-rows // shape[0]), "group_size": -(-columns // shape[1]), **found}
    if shape[1] == 1:
        return {"strategy": "channel", **found}
    return {"strategy": "group", "group_size": -(-columns // shape[1]), **found}


def _symmetric(module: Any) -> bool:
    return getattr(module, "weight_zero_point", None) is None


def _activations(module: Any) -> dict[str, Any]:
    """How the layer's own forward rounds its inputs; 16 bits mean not at all."""
    scheme = getattr(module, "quantization_scheme", None)
    inputs = getattr(scheme, "input_activations", None)
    if inputs is None or not getattr(module, "quantization_enabled", True) or not _rounds(module):
        return {"activation_bits": 16}
    return {
        "activation_bits": int(inputs.num_bits),
        "activation_type": making.word(inputs.type),
        "activation_strategy": making.word(inputs.strategy),
        "activation_dynamic": inputs.dynamic if isinstance(inputs.dynamic, bool) else making.word(inputs.dynamic),
    }


def _rounds(module: Any) -> bool:
    """Whether compressed-tensors' forward stands in for the layer's class's."""
    return getattr(module, "quantization_status", None) is not None and "forward" in vars(module)


BACKEND = CompressedTensors()
