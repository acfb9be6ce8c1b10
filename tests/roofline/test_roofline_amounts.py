"""Bytes and operations of shapes whose numbers can be counted by hand."""

from __future__ import annotations

import pytest

from pytest_quant.formats import registry, variant
from pytest_quant.roofline.amounts import kv_bytes, operations, read_bytes, weight_bytes
from pytest_quant.roofline.shape import KVLayer, ModelShape

SMOL = ModelShape(
    106_168_320, 28_346_688, head=28_311_552, kv=(KVLayer(384, 576),) * 30, rows=((576, 138_240), (1536, 17_280))
)
"""SmolLM2-135M: what transformers' model without weights says (tests/real holds it against the model)."""
TRUE = {
    ("fp32", 32): 538_060_288,
    ("bf16", 32): 269_030_272,
    ("fp16", 32): 269_030_272,
    ("int8", 32): 220_177_408,
    ("int8", 16): 163_484_032,
    ("nf4", 32): 168_385_528,
    ("nf4", 16): 111_692_152,
    ("fp4", 32): 168_385_528,
    ("int8-weight-only", 32): 220_332_928,
    ("int8-weight-only", 16): 163_639_552,
    ("w8a8", 32): 220_332_928,
    ("w8a8", 16): 163_639_552,
    ("int4-unpacked", 32): 227_849_728,
    ("int4-unpacked", 16): 167_838_592,
    ("fp8-weight-only", 32): 220_177_408,
    ("fp8-weight-only", 16): 163_484_032,
    ("mxfp4", 32): 113_617_792,
    ("mxfp4", 16): 113_617_792,
    ("nvfp4-weight-only", 32): 173_568_328,
    ("nvfp4-weight-only", 16): 116_874_952,
    ("int8-weight-only@quanto", 32): 220_179_088,
    ("int8-weight-only@quanto", 16): 163_174_672,
    ("int4@quanto", 32): 174_767_248,
    ("int4@quanto", 16): 113_926_672,
    ("fp8-weight-only@quanto", 32): 220_179_088,
    ("fp8-weight-only@quanto", 16): 163_174_672,
    ("int4@hqq", 32): 179_742_208,
    ("int4@hqq", 16): 116_413_312,
    ("gptq", 32): 171_224_128,
    ("awq", 32): 170_618_368,
    ("w8a8@compressed-tensors", 32): 220_177_408,
    ("fp8@compressed-tensors", 32): 220_177_408,
    ("nvfp4@compressed-tensors", 32): 173_108_368,
    ("gguf", 32): 143_025_408,
}
"""Bytes of SmolLM2-135M by unique storages, by format and bits of the compute type; docs/formats.md has them too."""
GROUPS_OF_64 = {"gptq": 171_224_128, "awq": 170_618_368, "int4@auto-round": 170_618_368, "w4a16": 173_110_048}


@pytest.mark.parametrize(("name", "bits"), TRUE)
def test_weight_bytes_are_within_one_percent_of_the_truth(name, bits):
    assert weight_bytes(SMOL, registry.get(name), bits) == pytest.approx(TRUE[name, bits], rel=0.01)


@pytest.mark.parametrize("name", GROUPS_OF_64)
def test_weight_bytes_of_variants_with_smaller_groups(name):
    made = variant(name, f"{name}-64", group_size=64)
    assert weight_bytes(SMOL, made, 32) == pytest.approx(GROUPS_OF_64[name], rel=0.01)


def test_every_format_on_this_list_or_known_not_to_run_on_a_cpu():
    listed = {name for name, _ in TRUE} | set(GROUPS_OF_64)
    assert set(registry.formats()) - listed == {"int4", "fp8", "nvfp4", "fp8@finegrained-fp8"}


def test_parameters_alone_give_nominal_bytes_and_scales_of_groups():
    shape = ModelShape.of_parameters(70e9)
    assert shape.parameters == 70_000_000_000
    nominal = {name: weight_bytes(shape, registry.get(name), 16) for name in ("fp32", "fp16", "int8", "w4a16")}
    assert nominal == {"fp32": 280e9, "fp16": 140e9, "int8": 70e9, "w4a16": 70e9 * 4.125 / 8}
    assert kv_bytes(shape, 1, 100) is None


@pytest.mark.parametrize("number", [0, -1, float("inf"), float("nan")])
def test_no_model_has_such_a_number_of_parameters(number):
    with pytest.raises(ValueError, match="above 0"):
        ModelShape.of_parameters(number)


class TestKVCache:
    def test_grows_with_batch_context_and_bits(self):
        assert kv_bytes(SMOL, 1, 1, 32) == 30 * 384 * 4
        assert kv_bytes(SMOL, 2, 100, 32) == 9_216_000
        assert kv_bytes(SMOL, 2, 100, 4.5) == 9_216_000 * 4.5 / 32

    @pytest.mark.parametrize(("context", "tokens"), [(15, 15), (16, 16), (17, 16), (1000, 16)])
    def test_stops_at_the_window(self, context, tokens):
        shape = ModelShape(1, 1, kv=(KVLayer(8, 8, 16), KVLayer(8, 8)))
        assert kv_bytes(shape, 1, context) == 2 * 8 * (tokens + context)

    def test_of_70b_with_eight_kv_heads(self):
        llama = ModelShape(1, 1, kv=(KVLayer(2 * 8 * 128, 64 * 128),) * 80)
        assert kv_bytes(llama, 1, 1) == 327_680
        assert kv_bytes(llama, 16, 8192) == 16 * 8192 * 327_680


class TestRead:
    def test_is_all_where_the_head_is_the_table(self):
        assert read_bytes(SMOL, 538_060_288, 32, 1) == 538_060_288

    def test_leaves_out_a_table_of_single_rows(self):
        shape = ModelShape(1000, 600, table=300, head=300)
        assert read_bytes(shape, 1600 * 2, 16, 1) == 1300 * 2
        assert read_bytes(shape, 1000 + 600 * 2, 16, 1) == 1000 + 300 * 2

    def test_leaves_out_what_text_never_goes_through(self):
        assert read_bytes(ModelShape(1000, 0, idle=250), 500, 16, 1) == 375

    def test_grows_with_the_experts_that_a_batch_touches(self):
        shape = ModelShape(1000, 0, routed=800, experts=8, experts_used=2)
        assert read_bytes(shape, 2000, 16, 1) == pytest.approx(400 + 1600 / 4)
        assert read_bytes(shape, 2000, 16, 2) == pytest.approx(400 + 1600 * (1 - 0.75**2))
        assert read_bytes(shape, 2000, 16, 1000) == pytest.approx(2000)


class TestOperations:
    def test_of_one_token_are_two_a_weight(self):
        assert operations(ModelShape(1000, 100, head=100), 1, 50) == 2200

    def test_head_is_counted_for_the_last_token(self):
        assert operations(ModelShape(1000, 100, head=100), 10, 0) == 20_200

    def test_only_chosen_experts_compute(self):
        assert operations(ModelShape(1000, 0, routed=800, experts=8, experts_used=2), 1) == 2 * 400

    def test_towers_do_not(self):
        assert operations(ModelShape(1000, 0, idle=300), 1) == 1400

    @pytest.mark.parametrize("window", [None, 1, 3, 16, 100])
    @pytest.mark.parametrize("context", [0, 2, 16, 40])
    @pytest.mark.parametrize("tokens", [1, 2, 17, 60])
    def test_attention_counts_each_pair(self, window, context, tokens):
        shape = ModelShape(0, 0, kv=(KVLayer(8, 10, window),))
        pairs = sum(
            1
            for new in range(context, context + tokens)
            for old in range(new + 1)
            if window is None or new - old < window
        )
        assert operations(shape, tokens, context) == 4 * 10 * pairs
