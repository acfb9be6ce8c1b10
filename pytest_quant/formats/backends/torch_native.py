"""Unquantized formats: torch's own floating-point types."""

from __future__ import annotations

from typing import Any

from pytest_quant.formats.backend import Stored
from pytest_quant.formats.format import Format

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class TorchNative:
    """Weights in one floating-point type, nothing quantized."""

    name = "torch"
    packages = ("torch", "transformers", "accelerate", "safetensors")
    extra = "transformers"

    def load_arguments(self, format: Format, compute_dtype: str) -> dict[str, Any]:
        import torch

        return {"dtype": getattr(torch, DTYPES[format.name])}

    def stored(self, module: Any) -> Stored | None:
        dtype = next((p.dtype for p in module.parameters(recurse=False) if p.ndim >= 2), None)
        if dtype is None or not dtype.is_floating_point:
            return None
        return Stored(dtype.itemsize * 8, "float", {"dtype": str(dtype).removeprefix("torch.")})


BACKEND = TorchNative()
