"""GGUF files of small models, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Choice = Callable[[str], str]
"""ggml's type for a tensor, by its name in the file."""


Unpacking = Callable[[], np.ndarray]


def write(folder: Path, file: Path, choice: Choice | str, *, parts: int = 1) -> dict[str, Unpacking]:
    """A GGUF of the Llama or GPT-2 in ``folder``. Matrices get the chosen type, everything else is FP32. Returns what
    tells each weight after quantization, by the name that transformers gives it."""
    import torch
    from gguf import MODEL_ARCH, GGUFWriter
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    arch = {"llama": MODEL_ARCH.LLAMA, "gpt2": MODEL_ARCH.GPT2}[config.model_type]
    writer = GGUFWriter(file, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "llama":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    kept = _add_tensors(writer, model, arch, choice if callable(choice) else lambda name: choice)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def _add_tensors(writer: Any, model: Any, arch: Any, choice: Choice) -> dict[str, Unpacking]:
    from gguf import GGMLQuantizationType, get_tensor_name_map, quantize

    config = model.config
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", 0)}
    kept = {}
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        target = f"{names.get_name(module)}.{leaf}"
        turned = type(model.get_submodule(module)).__name__ == "Conv1D" and parameter.ndim == 2
        values = (parameter.T if turned else parameter).detach().numpy()
        shuffled = heads.get(module.rpartition(".")[2])
        if shuffled:
            values = _interleaved(values, shuffled)
        if values.ndim == 1:
            writer.add_tensor(target, np.ascontiguousarray(values))
            continue
        kind = GGMLQuantizationType[choice(target)]
        packed = quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(target, packed, raw_dtype=kind)
        kept[name] = partial(_unpacked, packed, kind, shuffled, turned)
    return kept


def _unpacked(packed: np.ndarray, kind: Any, heads: int | None, turned: bool) -> np.ndarray:
    from gguf import dequantize

    values = dequantize(packed, kind)
    if heads:
        values = values.reshape(heads, len(values) // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
    return values.T if turned else values


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order that llama.cpp's rotary embedding wants."""
    return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
