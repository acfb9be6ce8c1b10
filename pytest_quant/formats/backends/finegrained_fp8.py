"""Fine-grained FP8: blocks of 128 by 128, as DeepSeek's checkpoints have them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from pytest_quant.errors import Unsupported
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored
from pytest_quant.formats.backends.skeleton import excluding, stay_wide
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware import Device

_BLOCK = 128
_ENOUGH = (8, 9)
_NEEDED = "an NVIDIA GPU of compute capability 8.9 or newer"


class FinegrainedFp8(Backend):
    """Through transformers' ``FineGrainedFP8Config``: on loading, or of a checkpoint that is quantized already.

    Without a fitting GPU transformers dequantizes such a checkpoint to 16 bits and says so in a log line only. So it is
    refused before anything is loaded, and a model that came out wide does not prove itself.
    """

    name = "finegrained-fp8"
    requires = ("torch", "transformers", "accelerate", "safetensors", "kernels>=0.18.2,<0.19")
    install = "'pytest-quant[transformers]' 'kernels>=0.18.2,<0.19'"
    takes_checkpoints = True
    formats = (
        Format(
            "fp8@finegrained-fp8",
            QuantizationArgs(8, "float", "block"),
            "finegrained-fp8",
            "fp8",
            input_activations=QuantizationArgs(8, "float", "group", group_size=_BLOCK, dynamic=True),
            scale_bits=32 / _BLOCK**2,
            parameters=MappingProxyType({"block_size": _BLOCK}),
            instead=("fp8", "fp8-weight-only"),
        ),
    )

    def trouble(self, format: Format, device: Device) -> Unsupported | None:
        """Where transformers would dequantize instead, or raise."""
        capability = device.compute_capability
        if device.kind == "xpu" or (device.kind == "cuda" and capability is not None and capability >= _ENOUGH):
            return None
        if device.kind == "cuda":
            version = "unknown" if capability is None else ".".join(map(str, capability))
            found = f"{device.name} of compute capability {version}, where transformers dequantizes it to 16 bits"
        else:
            found = f"{device.name} ({device.kind}), where transformers refuses it or dequantizes it to 16 bits"
        return Unsupported(asked=f"the format {format.name} (backend {self.name})", found=found, needed=_NEEDED)

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        import torch

        dtype = getattr(torch, asked.compute_dtype)
        if asked.place.startswith("cuda"):
            _require_kernel(asked)
        if asked.checkpoint is not None:
            return from_pretrained(asked.checkpoint, dtype=dtype)
        from transformers import FineGrainedFP8Config

        size = int(asked.format.parameters["block_size"])
        config = FineGrainedFP8Config(weight_block_size=(size, size), modules_to_not_convert=stay_wide(asked))
        model = from_pretrained(asked.model, dtype=dtype, quantization_config=config)
        _check_blocks_fit(model, asked, size)
        return model

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        return excluding("FineGrainedFP8Config", "modules_to_not_convert", names, head)

    def stored(self, module: Any) -> Stored | None:
        import torch

        pairs = _pairs(module)
        if not pairs or any(weight.dtype is not torch.float8_e4m3fn or scale is None for weight, scale in pairs):
            return None
        block = module.block_size
        if any(_blocks(weight, block) != tuple(scale.shape[-2:]) for weight, scale in pairs):
            return None  # its forward would not find the scales of its weights
        scales = {str(scale.dtype).removeprefix("torch.") for _, scale in pairs}
        parameters = {
            "block_size": _named(block),
            "scale_dtype": ", ".join(sorted(scales)),
            "activation_dynamic": getattr(module, "activation_scheme", "dynamic") == "dynamic",
        }
        return Stored(8, "float", parameters)

    def weight(self, module: Any, name: str) -> Any:
        return [getattr(module, key, None) for key in (name, f"{name}_scale_inv")]


def _require_kernel(asked: Asked) -> None:
    """:class:`Unsupported` where the kernel, which comes from the hub at the first use, is not to be had."""
    from transformers.integrations.finegrained_fp8 import load_finegrained_fp8_kernel

    try:
        load_finegrained_fp8_kernel()
    except Exception as error:
        said = (str(error) or type(error).__name__).strip().splitlines()[0][:300]
        raise Unsupported(
            asked=f"{asked.model} in {asked.format.name}",
            found=f"transformers' FP8 kernel cannot be loaded: {said}",
            needed="kernels-community/finegrained-fp8 in the hub's cache, or the hub within reach once",
        ) from error


def _check_blocks_fit(model: Any, asked: Asked, size: int) -> None:
    """:class:`Unsupported` for layers that blocks do not divide: transformers leaves their weights wide."""
    import torch

    pairs = {name: _pairs(module) for name, module in model.named_modules()}
    mine = {name: found for name, found in pairs.items() if found}
    wide = {
        name: tuple(weight.shape)
        for name, found in mine.items()
        for weight, _ in found
        if weight.dtype is not torch.float8_e4m3fn and any(side % size for side in weight.shape[-2:])
    }
    if wide:
        name, shape = next(iter(wide.items()))
        raise Unsupported(
            asked=f"{asked.model} in {asked.format.name}",
            found=(
                f"{len(wide)} of {len(mine)} layers that blocks of {size} x {size} do not divide, which stayed wide: "
                f"{name} is {' x '.join(map(str, shape))}"
            ),
            needed=f"layers whose sizes are multiples of {size}, or a format that excludes the others",
        )


def _pairs(module: Any) -> list[tuple[Any, Any]]:
    """The weights and scales of one of transformers' FP8 modules; empty for any other module."""
    from transformers.integrations import finegrained_fp8 as library

    if isinstance(module, library.FP8Linear):
        return [(module.weight, getattr(module, "weight_scale_inv", None))]
    if isinstance(module, library.FP8Experts):
        names = [name for name in ("gate_up_proj", "up_proj", "down_proj") if getattr(module, name, None) is not None]
        return [(getattr(module, name), getattr(module, f"{name}_scale_inv", None)) for name in names]
    return []


def _blocks(weight: Any, block: Any) -> tuple[int, ...]:
    """The shape that the scales of a weight must have."""
    if block is None:
        return ()
    rows, columns = weight.shape[-2:]
    return -(-rows // block[0]), -(-columns // block[1])


def _named(block: Any) -> int | str | None:
    if block is None:
        return None
    rows, columns = block
    return int(rows) if rows == columns else f"{rows}x{columns}"


BACKEND = FinegrainedFp8()
