"""Weights counted from file headers, against what torch counts; and files that are no such thing."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from pytest_quant.engines.weights import WeightCount, count_weights
from pytest_quant.formats import registry


def header(entries: object, body: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(*shape: int) -> dict:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}


def by_torch(folder: Path) -> tuple[int, int]:
    """Eligible are the weights of all linear layers but the head; the rest is everything else."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    model = AutoModelForCausalLM.from_pretrained(folder)
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
    eligible = sum(layer.weight.numel() for layer in layers)
    return eligible, sum(p.numel() for p in model.parameters()) - eligible


def numbers(folder: Path) -> tuple[int, int]:
    count = count_weights(folder)
    assert count is not None
    return count.eligible, count.rest


def test_a_llama_against_torch(tiny_llama):
    # 2 layers of (64x64 q, 32x64 k, 32x64 v, 64x64 o, 3 of 64x128); embeddings and head of 256x64, 5 norms of 64
    assert count_weights(tiny_llama) == WeightCount(
        73_728, 2 * 256 * 64 + 5 * 64, rows=((64, 2 * (64 + 32 + 32 + 64 + 2 * 128)), (128, 2 * 64))
    )
    assert numbers(tiny_llama) == by_torch(tiny_llama)


def test_a_gpt2_against_torch(tiny_gpt2):
    assert numbers(tiny_gpt2) == by_torch(tiny_gpt2)


def test_shards_are_added_up(tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = list(load_file(tiny_llama / "model.safetensors").items())
    for number, part in enumerate((weights[:5], weights[5:])):
        save_file(dict(part), tmp_path / f"model-{number}.safetensors", metadata={"format": "pt"})
    assert count_weights(tmp_path) == count_weights(tiny_llama)


def test_a_second_copy_that_the_index_does_not_name_is_not_counted(tiny_llama, tmp_path):
    """Some repositories ship the weights twice, sharded and in one file under its maker's names."""
    from safetensors.torch import load_file

    names = list(load_file(tiny_llama / "model.safetensors"))
    shutil.copy(tiny_llama / "model.safetensors", tmp_path / "model-00001-of-00001.safetensors")
    shutil.copy(tiny_llama / "model.safetensors", tmp_path / "consolidated.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert count_weights(tmp_path) == count_weights(tiny_llama)


def test_only_matrices_outside_embeddings_are_eligible(tmp_path):
    tensors = {
        "__metadata__": {"format": "pt"},
        "model.layers.0.mlp.up_proj.weight": entry(30, 10),
        "model.layers.0.mlp.up_proj.bias": entry(30),
        "model.layers.0.norm.weight": entry(10),
        "model.embed_tokens.weight": entry(100, 10),
        "lm_head.weight": entry(100, 10),
        "transformer.wte.weight": entry(7, 10),
        "transformer.wpe.weight": entry(3, 10),
        "experts.weight": entry(2, 5, 5),
        "scale": entry(),
    }
    (tmp_path / "model.safetensors").write_bytes(header(tensors))
    assert count_weights(tmp_path) == WeightCount(
        300 + 50, 30 + 10 + 1000 + 1000 + 70 + 30 + 1, rows=((5, 10), (10, 30))
    )


def test_numbers_beyond_32_bits(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header({"w": entry(70_000, 70_000)}))
    assert count_weights(tmp_path) == WeightCount(4_900_000_000, 0, rows=((70_000, 70_000),))


def test_no_files_are_none(tmp_path):
    assert count_weights(tmp_path) is None
    assert count_weights(tmp_path / "missing") is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x00" * 64)
    assert count_weights(tmp_path) is None


def test_no_eligible_weights_are_none(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header({"model.embed_tokens.weight": entry(10, 10)}))
    assert count_weights(tmp_path) is None


GARBAGE = {
    "empty": b"",
    "short": b"\x01\x02\x03",
    "random": bytes(range(256)),
    "a length of terabytes": struct.pack("<Q", 1 << 42) + b"{}",
    "the text is cut": header({"w": entry(2, 2)})[:-3],
    "a length of nothing": struct.pack("<Q", 0),
    "no json": struct.pack("<Q", 4) + b"abcd",
    "no utf-8": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "a pickle": b"\x80\x04\x95" + b"\x00" * 61,
    "a page of html": b"<!DOCTYPE html><html><body>Access denied</body></html>",
    "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "a list": header([]),
    "a list of pairs": header([["w", 1]]),
    "a number": header(7),
    "nothing": header(None),
    "an entry without a shape": header({"w": {"dtype": "F32"}}),
    "an entry that is none": header({"w": 7}),
    "an entry that is a text": header({"w": "shape"}),
    "a shape that is none": header({"w": {"shape": None}}),
    "a shape that is a number": header({"w": {"shape": 7}}),
    "a shape that is a text": header({"w": {"shape": "22"}}),
    "a shape of texts": header({"w": {"shape": ["2", "2"]}}),
    "a shape of nothing": header({"w": {"shape": [None, 2]}}),
    "a negative shape": header({"w": {"shape": [-4, 4]}}),
    "a broken shape": header({"w": {"shape": [2.5, 2]}}),
    "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
}


@pytest.mark.parametrize("what", list(GARBAGE))
def test_a_garbage_file_is_none(tmp_path, what):
    (tmp_path / "model.safetensors").write_bytes(GARBAGE[what])
    assert count_weights(tmp_path) is None


def test_one_garbage_shard_is_none_and_not_half_the_model(tiny_llama, tmp_path):
    shutil.copy(tiny_llama / "model.safetensors", tmp_path / "model-1.safetensors")
    (tmp_path / "model-2.safetensors").write_bytes(b"garbage")
    assert count_weights(tmp_path) is None


def test_bytes_in_a_plain_format_are_of_all_weights():
    count = WeightCount(1000, 100)
    assert count.bytes_in(registry.get("fp32"), 16) == 4400
    assert count.bytes_in(registry.get("bf16"), 32) == 2200
    assert count.bytes_in(registry.get("fp16"), 32) == 2200


def test_bytes_in_a_quantized_format_keep_the_rest():
    count = WeightCount(16384, 100)
    assert count.bytes_in(registry.get("int8"), 16) == 16384 + 200
    assert count.bytes_in(registry.get("int8"), 32) == 16384 + 400
    # 4 bits a weight, 8 a block of 64, 32 for 256 blocks: 8192 + 256 + 4 bytes
    assert count.bytes_in(registry.get("nf4"), 16) == 8452 + 200
    assert count.bytes_in(registry.get("fp4"), 16) == 8452 + 200
