"""bitsandbytes: LLM.int8() and the 4-bit block formats nf4 and fp4."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored
from pytest_quant.formats.backends.skeleton import excluding, stay_wide
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware import Device

# One absmax for a block of 64 weights; double quantization stores that absmax in 8 bits, with one 32-bit scale for 256
# of them (QLoRA, Dettmers et al. 2023, section 3).
_BLOCK = 64
_DOUBLE_QUANT_BITS = 8 / _BLOCK + 32 / (_BLOCK * 256)

_SKIPPED = "llm_int8_skip_modules"
"""What 4-bit layers take too, whatever it is called."""


def _four_bit(name: str) -> Format:
    parameters = {"bnb_4bit_quant_type": name, "bnb_4bit_use_double_quant": True, "block_size": _BLOCK}
    weights = QuantizationArgs(4, "float", "group", group_size=_BLOCK)
    return Format(
        name, weights, "bitsandbytes", name, scale_bits=_DOUBLE_QUANT_BITS, parameters=MappingProxyType(parameters)
    )


class Bitsandbytes(Backend):
    """Quantizes on loading, through transformers' ``BitsAndBytesConfig``."""

    name = "bitsandbytes"
    requires = ("torch", "transformers", "accelerate", "safetensors", "bitsandbytes")
    install = "'pytest-quant[bitsandbytes]'"
    formats = (
        Format(
            "int8",
            QuantizationArgs(8, "int", "channel"),
            backend="bitsandbytes",
            numeric="int8",
            input_activations=QuantizationArgs(8, "int", "token", dynamic=True),
            row_bits=32,  # a scale in FP32
            parameters=MappingProxyType({"llm_int8_threshold": 6.0}),
        ),
        _four_bit("nf4"),
        _four_bit("fp4"),
    )

    def computes_in(self, format: Format, device: Device, compute_dtype: str) -> str:
        repacks = format.weights.num_bits == 4 and "avx512_bf16" in device.features  # at the first forward
        return "bfloat16" if repacks else compute_dtype

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        import torch
        from transformers import BitsAndBytesConfig

        _silence_cast_messages()
        dtype = getattr(torch, asked.compute_dtype)
        wanted = dict(asked.format.parameters)
        wanted[_SKIPPED] = stay_wide(asked)
        if asked.format.weights.num_bits == 8:
            config = BitsAndBytesConfig(load_in_8bit=True, **wanted)
        else:
            wanted.pop("block_size")  # 64 is what bitsandbytes does; the proof checks it
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **wanted)
        return from_pretrained(asked.model, dtype=dtype, quantization_config=config)

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        return excluding("BitsAndBytesConfig", _SKIPPED, names, head)

    def stored(self, module: Any) -> Stored | None:
        import bitsandbytes as bnb
        import torch

        weight = getattr(module, "weight", None)
        if isinstance(module, bnb.nn.Linear8bitLt):
            if weight is None or weight.dtype is not torch.int8:
                return None
            return Stored(8, "int", {"llm_int8_threshold": float(module.state.threshold)})
        if isinstance(module, bnb.nn.Linear4bit):
            state = getattr(weight, "quant_state", None)
            if state is None:
                return None
            # On CPUs with AVX512_BF16 the first forward repacks the weight and unnests its scales;
            # the attribute original_nested then remembers what was stored.
            nested = bool(getattr(state, "original_nested", state.nested))
            parameters = {
                "bnb_4bit_quant_type": state.quant_type,
                "bnb_4bit_use_double_quant": nested,
                "block_size": int(state.blocksize),
            }
            return Stored(4, "float", parameters)
        return None


def _silence_cast_messages() -> None:
    """LLM.int8() says at every call that it casts its inputs: thousands of lines in a run."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


BACKEND = Bitsandbytes()
