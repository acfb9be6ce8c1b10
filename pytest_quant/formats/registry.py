"""The formats by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pytest_quant.errors import UsageError
from pytest_quant.formats.format import Format, QuantizationArgs

# bitsandbytes stores one absmax for a block of 64 weights; double quantization stores that absmax in
# 8 bits, with one 32-bit scale for 256 of them (QLoRA, Dettmers et al. 2023, section 3).
_BLOCK = 64
_DOUBLE_QUANT_BITS = 8 / _BLOCK + 32 / (_BLOCK * 256)


def _plain(name: str, bits: int) -> Format:
    return Format(name, QuantizationArgs(bits, "float"), backend="torch", numeric=name)


def _four_bit(name: str) -> Format:
    parameters = {"bnb_4bit_quant_type": name, "bnb_4bit_use_double_quant": True, "block_size": _BLOCK}
    weights = QuantizationArgs(4, "float", "group", group_size=_BLOCK)
    return Format(
        name, weights, "bitsandbytes", name, scale_bits=_DOUBLE_QUANT_BITS, parameters=MappingProxyType(parameters)
    )


def _announced(name: str, numeric: str, bits: int, kind: str, *, activations: bool = False) -> Format:
    weights = QuantizationArgs(bits, kind, "channel")
    dynamic = QuantizationArgs(bits, kind, "token", dynamic=True) if activations else None
    return Format(name, weights, backend="none", numeric=numeric, input_activations=dynamic, known=False)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        f.name: f
        for f in (
            _plain("fp32", 32),
            _plain("bf16", 16),
            _plain("fp16", 16),
            Format(
                "int8",
                QuantizationArgs(8, "int", "channel"),
                backend="bitsandbytes",
                numeric="int8",
                input_activations=QuantizationArgs(8, "int", "token", dynamic=True),
                parameters=MappingProxyType({"llm_int8_threshold": 6.0}),
            ),
            _four_bit("nf4"),
            _four_bit("fp4"),
            _announced("fp8", "fp8", 8, "float", activations=True),
            _announced("fp8-weight-only", "fp8", 8, "float"),
            _announced("int8-weight-only", "int8", 8, "int"),
            _announced("w8a8", "int8", 8, "int", activations=True),
            _announced("int4", "int4", 4, "int"),
            _announced("awq", "int4", 4, "int"),
            _announced("gptq", "int4", 4, "int"),
            _announced("mxfp4", "mxfp4", 4, "float", activations=True),
            _announced("nvfp4", "nvfp4", 4, "float", activations=True),
            _announced("gguf", "int4", 4, "int"),
        )
    }
)
"""Every format name; ``known`` tells which of them this version realizes."""


def get(name: str) -> Format:
    """The format of that name; :class:`UsageError` with the names there are."""
    try:
        return FORMATS[name]
    except KeyError:
        raise UsageError(f"unknown format {name!r}; the formats are {', '.join(FORMATS)}") from None


def describe(format: Format) -> dict[str, Any]:
    """The format and its parameters as they go into a measurement's identity."""
    weights = {"num_bits": format.weights.num_bits, "type": format.weights.type, "strategy": format.weights.strategy}
    if format.weights.group_size is not None:
        weights["group_size"] = format.weights.group_size
    described: dict[str, Any] = {"name": format.name, "backend": format.backend, "weights": weights}
    if format.parameters:
        described["parameters"] = dict(format.parameters)
    return described
