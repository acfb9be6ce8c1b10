"""Proofs from what vLLM's workers told of SmolLM2-135M, recorded (one layer of it), and from changed answers."""

from __future__ import annotations

import json
import struct
from types import SimpleNamespace

import pytest

from pytest_quant.engines.vllm.inspection import _weights
from pytest_quant.engines.vllm.opening import _tensors
from pytest_quant.engines.vllm.proof import activation_bits, kv_bytes, kv_room, prove, representation
from pytest_quant.engines.vllm.stored import Tensor, bytes_of, loaded_bytes, read
from pytest_quant.errors import ProofFailed, UsageError
from pytest_quant.formats import registry

ELIGIBLE = {
    "model.layers.0.self_attn.q_proj.weight": 331776,
    "model.layers.0.self_attn.k_proj.weight": 110592,
    "model.layers.0.self_attn.v_proj.weight": 110592,
    "model.layers.0.self_attn.o_proj.weight": 331776,
    "model.layers.0.mlp.gate_proj.weight": 884736,
    "model.layers.0.mlp.up_proj.weight": 884736,
    "model.layers.0.mlp.down_proj.weight": 884736,
}
LAYERS = {
    "model.layers.0.self_attn.qkv_proj": ("QKVParallelLinear", 552960),
    "model.layers.0.self_attn.o_proj": ("RowParallelLinear", 331776),
    "model.layers.0.mlp.gate_up_proj": ("MergedColumnParallelLinear", 1769472),
    "model.layers.0.mlp.down_proj": ("RowParallelLinear", 884736),
}
PAGE = {"name": "model.layers.0.self_attn.attn", "kind": "FullAttentionSpec", "block_size": 128, "window": None}


def module(name, kind, weights, method, scheme=None, bits=None, held=0):
    return {
        "name": name,
        "classes": [kind, "LinearBase", "PluggableLayer", "Module", "object"],
        "method": method,
        "scheme": scheme,
        "bits": bits,
        "kernel": None,
        "weights": weights,
        "parameters": {"weight": ["float32", [0]]},
        "bytes": held,
    }


def worker(
    method="UnquantizedLinearMethod", scheme=None, *, dtype="float32", cache="auto", bits=None, except_=(), memory=None
):
    embedding = module("model.embed_tokens", "VocabParallelEmbedding", 28311552, "UnquantizedEmbeddingMethod")
    embedding["classes"] = ["VocabParallelEmbedding", "Module", "object"]
    modules = [embedding]
    for name, (kind, weights) in LAYERS.items():
        chosen = ("UnquantizedLinearMethod", None) if name in except_ else (method, scheme)
        modules.append(module(name, kind, weights, *chosen, bits, held=weights if memory else 0))
    size = 1 if cache.startswith(("fp8", "int8")) else 4
    page = {**PAGE, "page_bytes": 49152 * size, "values": 49152, "dtype": "uint8" if size == 1 else "float32"}
    return {
        "modules": modules,
        "attention": [{"name": PAGE["name"], "dtype": cache}],
        "kv_cache": {"blocks": 182, "layers": [page]},
        "memory_bytes": memory,
        "parameter_bytes": 113386752,
        "dtype": dtype,
    }


def proven(told, name, **arguments):
    return prove([told], registry.get(name), ELIGIBLE, **{"dtype": told["dtype"], "on_cpu": True, **arguments})


def test_a_plain_model():
    found = proven(worker(), "fp32")
    assert found.quantized_weight_share == 1.0
    assert found.kernels["QKVParallelLinear UnquantizedLinearMethod"] == 1
    assert found.left_out == ()
    assert found.kv_cache == {}


def test_nothing_was_quantized():
    with pytest.raises(ProofFailed, match="nothing was quantized, all 4 matrices"):
        proven(worker(dtype="bfloat16"), "int8-weight-only")


def test_a_plain_format_that_is_quantized():
    with pytest.raises(ProofFailed, match="it is quantized"):
        proven(worker("CompressedTensorsLinearMethod", "CompressedTensorsW8A8Int8"), "fp32")


def test_another_type_than_was_asked_for():
    with pytest.raises(ProofFailed, match="computes in bfloat16, not in float32"):
        proven(worker(dtype="bfloat16"), "fp32", dtype="float32")


@pytest.mark.parametrize(
    ("name", "method", "scheme", "bits"),
    [
        ("w8a8@compressed-tensors", "CompressedTensorsLinearMethod", "CompressedTensorsW8A8Int8", None),
        ("fp8@compressed-tensors", "CompressedTensorsLinearMethod", "CompressedTensorsW8A8Fp8", None),
        ("w4a16", "CompressedTensorsLinearMethod", "CompressedTensorsWNA16", 4),
        ("nvfp4@compressed-tensors", "CompressedTensorsLinearMethod", "CompressedTensorsW4A4Fp4", None),
        ("fp8", "Fp8LinearMethod", None, None),
        ("fp8", "Fp8PerTensorOnlineLinearMethod", None, None),
        ("fp8", "Fp8PtpcOnlineLinearMethod", None, None),
        ("awq", "AutoAWQMarlinLinearMethod", None, 4),
        ("gptq", "AutoGPTQLinearMethod", None, 4),
        ("nf4", "BitsAndBytesLinearMethod", None, None),
        ("gguf", "GGUFLinearMethod", None, None),
    ],
)
def test_what_counts_as_a_format(name, method, scheme, bits):
    told = worker(method, scheme, bits=bits, dtype="bfloat16")
    found = proven(told, name)
    assert found.quantized_weight_share == 1.0
    assert found.parameters["scheme"] == (scheme or method)
    if name != "w8a8@compressed-tensors":
        with pytest.raises(ProofFailed):
            proven(told, "w8a8@compressed-tensors")


def test_other_activations_are_another_format():
    told = worker("CompressedTensorsLinearMethod", "CompressedTensorsW8A16Fp8")
    assert activation_bits(told["modules"][1]) == 16
    assert representation(told["modules"][1]) == (8, "float")
    with pytest.raises(ProofFailed, match=r"0\.0% of the eligible weights"):
        proven(told, "fp8@compressed-tensors")


def test_a_layer_that_was_forgotten():
    told = worker("Fp8LinearMethod", dtype="bfloat16", except_=["model.layers.0.mlp.down_proj"])
    with pytest.raises(ProofFailed, match=r"75\.0% of the eligible.*left out: model\.layers\.0\.mlp\.down_proj"):
        proven(told, "fp8")


def test_more_weights_than_were_asked_for_hide_others():
    told = worker("Fp8LinearMethod", dtype="bfloat16", except_=["model.layers.0.mlp.down_proj"])
    told["modules"][1]["weights"] += 900_000
    with pytest.raises(ProofFailed, match=r"not known: vLLM holds 3,554,208 weights in it, but only 3,538,944"):
        proven(told, "fp8")
    wide = worker()
    wide["modules"][1]["weights"] += 900_000
    assert proven(wide, "fp32").quantized_weight_share == 1.0


def qkv(workers):
    """A layer of SmolLM2-135M as ``QKVParallelLinear`` of vLLM 0.32 has it among so many workers: 9 heads and 3 KV
    heads of 64; ``output_size`` is that of all workers together, KV heads that several have counted for each."""
    kept = max(3 // workers, 1)
    output = (9 // workers) * 64 * workers + 2 * kept * 64 * workers
    heads = {"total_num_heads": 9, "total_num_kv_heads": 3, "head_size": 64, "v_head_size": 64}
    return SimpleNamespace(input_size=576, output_size=output, **heads)


@pytest.mark.parametrize("workers", [1, 3, 9])
def test_replicated_heads_count_once(workers):
    assert (qkv(workers).output_size == 960) is (workers <= 3)
    assert _weights(qkv(workers)) == 552960


def test_other_layers_count_by_their_sizes():
    assert _weights(SimpleNamespace(input_size=576, output_size=576)) == 331776
    assert _weights(SimpleNamespace(input_size=576)) is None


def test_the_kv_cache_is_in_the_type_that_was_asked_for():
    found = proven(worker(cache="fp8"), "fp32+kv-fp8", kv_cache_dtype="fp8")
    assert found.kv_cache == {"dtype": "fp8", "library": "vllm", "layers": 1, "bits_per_value": 8.0}
    assert proven(worker(cache="fp8_e4m3"), "fp32", kv_cache_dtype="fp8").kv_cache["bits_per_value"] == 8.0
    with pytest.raises(ProofFailed, match="the KV cache is in auto, not in fp8"):
        proven(worker(), "fp32+kv-fp8", kv_cache_dtype="fp8")
    with pytest.raises(ProofFailed, match="the KV cache is in fp8, not in the type that is computed in"):
        proven(worker(cache="fp8"), "fp32")
    wide = worker(cache="fp8")
    wide["kv_cache"]["layers"][0]["page_bytes"] *= 4
    with pytest.raises(ProofFailed, match=r"32\.0 bits each"):
        proven(wide, "fp32", kv_cache_dtype="fp8")


def test_bytes_of_two_workers_on_gpus():
    parts = [worker("Fp8LinearMethod", dtype="bfloat16", memory=10**8) for _ in range(2)]
    for part in parts:  # each has half of a matrix
        for each in part["modules"]:
            each["bytes"] //= 2
    found = prove(parts, registry.get("fp8"), ELIGIBLE, dtype="bfloat16")
    assert found.weight_bytes == 2 * 10**8
    assert found.bits_per_weight == 8.0
    assert found.quantized_weight_share == 1.0


def test_what_is_made_on_a_cpu_has_other_bytes_than_its_checkpoint():
    tensors = {"model.layers.0.mlp.down_proj.weight": Tensor("F32", 1000, 4000)}
    told = worker("Fp8PtpcOnlineLinearMethod", dtype="bfloat16", memory=1)
    assert proven(told, "fp8", tensors=tensors).bytes_by_dtype == {"parameters": 113386752}
    emptied = worker("Fp8PtpcOnlineLinearMethod", dtype="bfloat16")
    found = proven(emptied, "fp8", tensors=tensors)
    assert found.bytes_by_dtype == {"bfloat16": 2000}
    assert found.parameters["bytes"].startswith("of the checkpoint")


def test_pages_of_the_kv_cache():
    cache = worker()["kv_cache"]
    assert kv_bytes([cache], 2, 129) == 2 * 2 * 49152 * 4
    assert kv_bytes([cache, cache], 1, 1) == 2 * 49152 * 4
    assert kv_room([cache]) == 182 * 128
    sliding = {"blocks": 9, "layers": [{**cache["layers"][0], "window": 256}]}
    assert kv_bytes([sliding], 1, 10_000) == 3 * 49152 * 4
    assert kv_bytes([None], 1, 5) == 0


def test_the_headers_of_a_checkpoint(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "embed.weight": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]},
        "lm_head.weight": {"dtype": "F32", "shape": [4, 8], "data_offsets": [128, 256]},
        "a.q_proj.weight": {"dtype": "I8", "shape": [8, 8], "data_offsets": [256, 320]},
        "a.q_proj.weight_scale": {"dtype": "BF16", "shape": [8, 1], "data_offsets": [320, 336]},
        "a.q_proj.bias": {"dtype": "F32", "shape": [8], "data_offsets": [336, 368]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(368))
    tensors = read(tmp_path)
    assert set(tensors) == set(header) - {"__metadata__"}
    assert loaded_bytes(tensors, "bfloat16", tied=True) == {"bfloat16": 64 + 16 + 16, "int8": 64}
    assert loaded_bytes(tensors, "float32", tied=False) == {"float32": 256 + 32, "int8": 64, "bfloat16": 16}
    assert bytes_of(tensors, ["a.q_proj.weight"], "float32") == 80
    assert read(tmp_path / "nowhere") == {}


def write(path, **tensors):
    """A file of float32 vectors of so many values."""
    header, end = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": [values], "data_offsets": [end, end + 4 * values]}
        end += 4 * values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def test_weights_that_a_folder_holds_twice_count_once(tmp_path):
    write(tmp_path / "model.safetensors", a=4)
    write(tmp_path / "consolidated.safetensors", x=4)
    assert set(read(tmp_path)) == {"a"}
    write(tmp_path / "one.safetensors", a=2)
    write(tmp_path / "two.safetensors", b=2)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert set(read(tmp_path)) == {"a", "b"}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UsageError, match=r"two\.safetensors is missing, though"):
        read(tmp_path)
    index.write_text("[]")
    with pytest.raises(UsageError, match=r"index\.json is no index"):
        read(tmp_path)
    index.unlink()
    (tmp_path / "model.safetensors").unlink()
    assert set(read(tmp_path)) == {"a", "x"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no safetensors file, or one that was cut short: it has 0 bytes"),
        (b"abc" * 10, "no safetensors file, or one that was cut short: it has 30 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n", "a pointer of Git LFS"),
        (struct.pack("<Q", 2) + b"[]", "no safetensors file"),
        (struct.pack("<Q", 2) + b"{x" + bytes(9), "no safetensors file"),
    ],
)
def test_a_file_that_holds_no_weights(tmp_path, content, said):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=rf"model\.safetensors is {said}.*get the model's files again"):
        read(tmp_path)


def test_a_file_that_was_cut_short(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, a=100)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UsageError, match=f"cut short: it has {len(whole) - 1} of {len(whole)} bytes"):
        read(tmp_path)


def test_files_that_the_hub_still_has_to_bring_are_no_broken_ones(tmp_path, monkeypatch):
    import transformers.utils

    monkeypatch.setattr(transformers.utils, "cached_file", lambda *_, **__: str(tmp_path / "config.json"))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert _tensors("org/model", None) is None
    write(tmp_path / "one.safetensors", a=2)
    assert set(_tensors("org/model", None) or ()) == {"a"}
