"""Models with parts on disk: the same numbers, true bytes, true proofs. And maps that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import save_llama

from pytest_quant.engines import loading, placing
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, QuantError, Unsupported, UsageError
from pytest_quant.formats import offloading, registry
from pytest_quant.formats.proof import prove
from pytest_quant.hardware.device import Device
from pytest_quant.placement import Placement, parse

pytestmark = pytest.mark.usefixtures("libraries")

HERE = Device("cpu", "amd", "Zen 4", "x86_64", memory_bytes=24 * 10**9)
TOKENS = np.arange(1, 65, dtype=np.int64)[None]
DISK = parse({"": "cpu", "model.layers.1": "disk"})
LAYER = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128 + 2 * 64
"""Weights of a layer of the tiny Llama."""


def load(model: Path, name: str = "fp32", placement: Placement | None = None) -> Any:
    format = registry.get(name)
    source = ModelSource(str(model))
    return loading.load(source, format, registry.backend(format), "float32", HERE, None, placement)


def skeleton(model: Path) -> Any:
    from transformers import AutoConfig

    from pytest_quant.engines.shape import skeleton

    return skeleton(AutoConfig.from_pretrained(model))


@pytest.mark.parametrize(
    "device_map",
    [
        {"": "cpu", "model.layers.1": "disk"},
        {"": "cpu", "model.layers.0.self_attn": "disk", "model.layers.1.mlp.down_proj": "disk"},
        {"": "cpu", "model.layers": "disk"},
        {"": "disk"},
        {"": "cpu", "lm_head": "disk"},
        {"": "cpu", "model.embed_tokens": "disk"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_model_on_disk_says_the_same_to_the_bit(tiny_llama, device_map, name):
    whole, parted = load(tiny_llama, name), load(tiny_llama, name, parse(device_map))
    assert whole.offload is None
    assert parted.offload is not None
    assert np.array_equal(whole.token_nll(TOKENS), parted.token_nll(TOKENS))
    assert np.array_equal(whole.probe_logits(TOKENS[0]), parted.probe_logits(TOKENS[0]))
    assert whole.kv_cache_bytes(TOKENS) == parted.kv_cache_bytes(TOKENS)
    assert whole.generate("The quick", 8) == parted.generate("The quick", 8)
    assert parted.proof.weight_bytes == whole.proof.weight_bytes
    assert parted.proof.bits_per_weight == whole.proof.bits_per_weight
    assert parted.proof.quantized_weight_share == 1.0
    assert parted.proof.kernels == whole.proof.kernels
    assert not parted.changed


@pytest.mark.parametrize(
    "device_map",
    [
        {"": "cpu", "model.layers.1": "disk"},
        {"": "disk"},
        {"": "cpu", "model.embed_tokens": "disk", "lm_head": "disk"},
    ],
    ids=str,
)
def test_a_model_whose_head_is_its_table(tmp_path, byte_tokenizer, device_map):
    tied = save_llama(tmp_path / "tied", byte_tokenizer, tie_word_embeddings=True)
    whole, parted = load(tied), load(tied, placement=parse(device_map))
    assert np.array_equal(whole.token_nll(TOKENS), parted.token_nll(TOKENS))
    assert parted.generate("The quick", 4) == whole.generate("The quick", 4)
    assert not parted.changed
    assert parted.proof.weight_bytes == whole.proof.weight_bytes
    with pytest.raises(UsageError, match=r"model\.embed_tokens\.weight and lm_head\.weight are one tensor"):
        load(tied, placement=parse({"": "cpu", "lm_head": "disk"}))


def test_what_is_offloaded_is_counted(tiny_llama):
    for name, size in (("fp32", 4), ("bf16", 2)):
        parted = load(tiny_llama, name, DISK)
        assert parted.offload == offloading.Offload(
            {"disk": LAYER * size}, {"disk": 1}, 2, {"float32" if size == 4 else "bfloat16": LAYER * size}
        )
        assert sum(parted.proof.bytes_by_dtype.values()) == parted.proof.weight_bytes
        assert parted.proof.offloaded_bytes == LAYER * size
        assert parted.proof.bytes_by_device["offloaded to disk"] == LAYER * size
        assert parted.proof.figures()["offloaded_bytes"] == LAYER * size
        assert sum(parted.proof.bytes_by_device.values()) == parted.proof.weight_bytes
        assert str(parted.offload).startswith("1 of 2 layers offloaded to disk (")
        assert parted.places == ("cpu",)


def test_a_model_that_is_not_offloaded_has_no_such_figures(tiny_llama):
    assert not {"offloaded_bytes", "bytes_by_device"} & load(tiny_llama).proof.figures().keys()


def test_a_change_of_an_offloaded_model_is_seen_where_it_lasts(tiny_llama):
    parted = load(tiny_llama, placement=DISK)
    parted.token_nll(TOKENS)
    assert not parted.changed
    parted.model.model.layers[1].mlp.act_fn = __import__("torch").nn.ReLU()
    assert parted.changed


def test_the_proof_looks_at_the_weights_that_a_forward_has(tiny_llama):
    """One that believed the meta device would take BF16 on disk for FP32."""
    parted = load(tiny_llama, "bf16", DISK)
    fp32 = registry.get("fp32")
    eligible = loading.eligible_weights(parted.model.config)
    with pytest.raises(ProofFailed, match=r"not in fp32: 0\.0% of the eligible weights"):
        prove(parted.model, fp32, registry.backend(fp32), eligible)
    layer = parted.model.model.layers[1].mlp.down_proj
    with offloading.onloaded(layer) as offloaded:
        assert offloaded
        assert str(layer.weight.dtype) == "torch.bfloat16"
        assert layer.weight.device.type == "cpu"
    assert layer.weight.device.type == "meta"


@pytest.mark.parametrize("name", ["int8", "nf4", "int8-weight-only", "int4@hqq", "int8-weight-only@quanto"])
def test_no_library_quantizes_weights_on_disk(tiny_llama, name):
    with pytest.raises(Unsupported, match=r"device_map") as told:
        load(tiny_llama, name, DISK)
    assert "without cpu and disk" in told.value.needed


def test_a_word_offloads_what_finds_no_room(tiny_llama):
    whole = load(tiny_llama)
    parted = load(tiny_llama, placement=parse("auto", {"cpu": whole.proof.weight_bytes * 3 // 4}))
    assert parted.offload is not None
    assert np.array_equal(whole.token_nll(TOKENS), parted.token_nll(TOKENS))
    assert load(tiny_llama, placement=parse("auto")).offload is None


def test_folders_of_offloaded_weights_are_removed(tiny_llama, tmp_path, monkeypatch):
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parted = load(tiny_llama, placement=DISK)
    assert [path.name.startswith("pytest-quant-offload-") for path in tmp_path.iterdir()] == [True]
    del parted
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(QuantError):
        load(tiny_llama, placement=parse({"model.layers.7": "disk"}))
    assert list(tmp_path.iterdir()) == []


# maps


def test_a_map_is_divided_into_the_largest_parts_at_one_place(tiny_llama):
    model = skeleton(tiny_llama)
    assert placing.resolve(parse({"": 0}), model) == {"": 0}
    assert placing.resolve(parse({"": 0, "model.layers.1": 1}), model) == {
        "model.embed_tokens": 0,
        "model.layers.0": 0,
        "model.layers.1": 1,
        "model.norm": 0,
        "model.rotary_emb": 0,
        "lm_head": 0,
    }
    assert placing.resolve(parse({"model": 1, "lm_head": 0}), model) == {"model": 1, "lm_head": 0}
    assert placing.resolve(parse("balanced"), model) == "balanced"


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ({"": 0, "model.layers.7": 1}, r"'model.layers.7' is no part of the model, which has model.embed_tokens, "),
        ({"model": 0}, r"gives lm_head.weight no place; add \"\""),
    ],
)
def test_maps_that_do_not_match_the_model(tiny_llama, device_map, said):
    with pytest.raises(UsageError, match=said):
        placing.resolve(parse(device_map), skeleton(tiny_llama))


@pytest.mark.parametrize("device_map", [{"": 0}, {"": "cpu", "lm_head": "cuda:1"}, {"": "mps"}])
def test_devices_that_are_not_there(tiny_llama, device_map):
    with pytest.raises(UsageError, match="names"):
        load(tiny_llama, placement=parse(device_map))


def test_devices_are_counted(monkeypatch):
    monkeypatch.setattr(placing, "visible", lambda device: 2)
    gpu = Device("cuda", "nvidia", "H100", "sm_90", count=2)
    placing.check(parse({"": 0, "lm_head": 1}), gpu)
    with pytest.raises(UsageError, match=r"names the device 2, but the run sees 2 \(H100\)"):
        placing.check(parse({"": 0, "lm_head": 2}), gpu)


@pytest.mark.parametrize(
    ("device_map", "limits", "free"),
    [
        ("auto", None, 70),
        ("auto", {0: 20, "cpu": 1000}, 20),
        ("auto", {0: 20, 1: 100}, 60),
        ({"": 1}, None, 40),
        ({"": 0, "lm_head": 1}, None, 70),
        ({"": 0, "lm_head": "cpu"}, None, None),
    ],
)
def test_free_memory_is_that_of_the_devices_that_a_map_may_use(monkeypatch, device_map, limits, free):
    monkeypatch.setattr(placing, "visible", lambda device: 2)
    monkeypatch.setattr(placing.memory, "free_on", lambda number: (30, 40)[number])
    gpu = Device("cuda", "nvidia", "H100", "sm_90", count=2)
    assert placing.free_bytes(parse(device_map, limits), gpu) == free


@pytest.mark.parametrize(
    ("device_map", "known"), [({"": "cpu"}, True), ({"": "cpu", "a": "disk"}, False), ("auto", True)]
)
def test_what_is_to_be_on_disk_needs_no_memory(device_map, known):
    cpu = Device("cpu", "intel", "A CPU", "x86_64")
    assert (placing.free_bytes(parse(device_map), cpu) is not None) is known


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("auto", Placement("auto")),
        ('{"": 0, "lm_head": "cuda:1"}', Placement((("", 0), ("lm_head", 1)))),
        ({"lm_head": "cpu", "": 0}, Placement((("", 0), ("lm_head", "cpu")))),
        ("cuda:1", Placement((("", 1),))),
        (1, Placement((("", 1),))),
    ],
)
def test_maps_as_they_are_written(told, found):
    assert parse(told) == found
    assert hash(parse(told)) == hash(found)


@pytest.mark.parametrize(
    ("told", "limits", "said"),
    [
        ("automatic", None, "'automatic' is no place"),
        ({"": -1}, None, "-1 is no place"),
        ({"": True}, None, "True is no place"),
        ({}, None, "a place for each part"),
        ({0: 0}, None, "a place for each part"),
        ('{"": 0', None, "no JSON"),
        ({"": 0}, {0: "20GiB"}, "max_memory goes with"),
        ("auto", {0: "much"}, "'much' is no number of bytes"),
        ("auto", {}, "must name bytes"),
        ({"a": 0, "a.": "cpu"}, None, "device_map names 'a' twice"),
        ('{"a": 0, "a": 1}', None, "device_map names 'a' twice"),
        ("auto", {0: 1, "0": 2}, "max_memory names 0 twice"),
        ("auto", {"cuda:1": "1GB", 1: "2GB"}, "max_memory names 1 twice"),
    ],
)
def test_maps_that_are_none(told, limits, said):
    with pytest.raises(UsageError, match=said):
        parse(told, limits)


def test_limits_are_bytes():
    assert parse("auto", {1: "2GiB", "cpu": 5, 0: "1.5 GB"}).max_memory == ((0, 15 * 10**8), (1, 2 << 30), ("cpu", 5))
    assert parse("auto", {0: 7}).plain == {"map": "auto", "max_memory": {"0": 7}}
    assert parse("auto").plain == "auto"
    assert parse({"": 0, "lm_head": 1}).plain == {"": 0, "lm_head": 1}
