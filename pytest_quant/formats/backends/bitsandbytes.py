"""bitsandbytes: LLM.int8() and the 4-bit block formats nf4 and fp4."""

from __future__ import annotations

import logging
from typing import Any

from pytest_quant.formats.backend import Stored
from pytest_quant.formats.format import Format


class Bitsandbytes:
    """Quantizes on loading, through transformers' ``BitsAndBytesConfig``."""

    name = "bitsandbytes"
    packages = ("torch", "transformers", "accelerate", "safetensors", "bitsandbytes")
    extra = "bitsandbytes"

    def load_arguments(self, format: Format, compute_dtype: str) -> dict[str, Any]:
        import torch
        from transformers import BitsAndBytesConfig

        _silence_cast_messages()
        dtype = getattr(torch, compute_dtype)
        wanted = dict(format.parameters)
        if format.name == "int8":
            config = BitsAndBytesConfig(load_in_8bit=True, **wanted)
        else:
            wanted.pop("block_size")  # 64 is what bitsandbytes does; the proof checks it
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **wanted)
        return {"dtype": dtype, "quantization_config": config}

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
