"""Unquantized formats: torch's own floating-point types."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from pytest_quant.errors import UsageError
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored
from pytest_quant.formats.format import Format, QuantizationArgs

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class TorchNative(Backend):
    """Weights in one floating-point type, nothing quantized."""

    name = "torch"
    requires = ("torch", "transformers", "accelerate", "safetensors")
    install = "'pytest-quant[transformers]'"
    formats = tuple(
        Format(name, QuantizationArgs(32 if name == "fp32" else 16, "float"), backend="torch", numeric=name)
        for name in DTYPES
    )

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        import torch

        return from_pretrained(asked.model, dtype=getattr(torch, DTYPES[asked.format.variant_of or asked.format.base]))

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        raise UsageError(f"fp32, bf16 and fp16 quantize nothing: {', '.join(names)} stay wide anyway")

    def stored(self, module: Any) -> Stored | None:
        dtype = next((p.dtype for p in module.parameters(recurse=False) if p.ndim >= 2), None)
        if dtype is None or not dtype.is_floating_point:
            return None
        return Stored(dtype.itemsize * 8, "float", MappingProxyType({"dtype": str(dtype).removeprefix("torch.")}))


BACKEND = TorchNative()
