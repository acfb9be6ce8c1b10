"""Bytes and times of a format, against what they are by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_examples import LLAMA_70B, device, predictions

from pytest_quant.formats import registry
from pytest_quant.formats.support import support
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import load as load_matrix
from pytest_quant.planning import planner
from pytest_quant.planning.predict import (
    RUNTIME_BYTES,
    Load,
    Machine,
    kv_bytes,
    predict,
)
from pytest_quant.roofline.rates import Rates, published
from pytest_quant.roofline.shape import KVLayer, ModelShape

SEVENTY = ModelShape.of_parameters(70e9)


def test_bits_alone_of_a_number_of_parameters():
    fp16, int8 = predictions("A100", "fp16 int8", SEVENTY)
    assert (fp16.weight_bytes, int8.weight_bytes) == (140_000_000_000, 70_000_000_000)
    assert fp16.decode is not None
    assert fp16.decode.seconds == pytest.approx(140 / 2039)
    assert fp16.memory.kv is None
    assert fp16.memory.total == 140_000_000_000 + RUNTIME_BYTES
    assert fp16.most_sequences is None


def test_a_step_reads_weights_and_cache_and_no_rows_of_the_input_table():
    (found,) = predictions("A100", "fp16", load=Load(batch_size=4, context=1025, prompt=512))
    assert found.decode is not None
    weights = 2 * (LLAMA_70B.parameters - 32000 * 8192)
    cache = 4 * 1024 * 80 * 2 * 8 * 128 * 2
    assert found.decode.read == pytest.approx(weights + cache)
    assert found.decode.seconds == pytest.approx((weights + cache) / 2.039e12)
    assert found.memory.kv == 4 * 1025 * 80 * 2 * 8 * 128 * 2
    assert found.tokens_per_second == pytest.approx(4 / found.decode.seconds)


def test_the_prompts_are_bound_by_the_units():
    fp16, int8, nf4 = predictions("A100", "fp16 int8 nf4", SEVENTY, Load(prompt=512))
    assert fp16.prefill is not None
    assert fp16.prefill.regime == "compute"
    assert fp16.prefill.seconds == pytest.approx(2 * 70e9 * 512 / 312e12)
    assert int8.prefill is not None
    assert int8.numeric == "int8"
    assert int8.prefill.seconds == pytest.approx(fp16.prefill.seconds / 2)
    assert nf4.prefill is not None
    assert nf4.numeric == "fp16"
    assert nf4.prefill.seconds == fp16.prefill.seconds, "weights that are only stored narrow gain nothing"


def test_what_a_library_unpacks_counts_at_work_as_it_is_then():
    fp16, w4a16 = predictions("A100", "fp16 w4a16")
    assert w4a16.unpacked
    assert w4a16.stored_bytes < 0.3 * fp16.weight_bytes
    assert w4a16.weight_bytes == fp16.weight_bytes
    assert w4a16.decode == fp16.decode


def test_the_batch_at_which_units_limit_the_step():
    fp16, nf4 = predictions("A100", "fp16 nf4", SEVENTY)
    # 2 operations a weight and sequence at 312 T/s, against 2 bytes at 2.039 TB/s
    assert fp16.turns_at == 154
    assert 153 < 312 / 2.039 < 154
    assert nf4.turns_at is not None
    assert nf4.turns_at < 50, "fewer bytes, the same operations"
    for row, batch in ((fp16, 153), (fp16, 154)):
        (again,) = predictions("A100", row.name, SEVENTY, Load(batch_size=batch))
        assert again.decode is not None
        assert again.decode.regime == ("compute" if batch == 154 else "bandwidth")


def test_a_long_context_never_lets_the_units_limit():
    (long,) = predictions("A100", "fp16", replace(LLAMA_70B, longest=None), Load(context=131072))
    assert long.turns_at is None


def test_the_largest_batch_that_fits():
    (found,) = predictions("A100", "nf4", load=Load(context=4096))
    assert found.most_sequences is not None
    for batch, fits in ((found.most_sequences, True), (found.most_sequences + 1, False)):
        (again,) = predictions("A100", "nf4", load=Load(batch_size=batch, context=4096))
        assert again.memory.fits is fits
    (none,) = predictions("T4", "nf4")
    assert none.most_sequences == 0


def test_several_devices_share_evenly():
    (one,), (four,) = predictions("A100", "fp16"), predictions("A100", "fp16", count=4)
    assert one.memory.fits is False
    assert four.memory.fits is True
    assert four.memory.weights == pytest.approx(one.memory.weights / 4)
    assert four.memory.runtime == one.memory.runtime
    assert one.decode is not None
    assert four.decode is not None
    assert four.decode.seconds == pytest.approx(one.decode.seconds / 4)


def test_a_cache_in_fewer_bits():
    wide = kv_bytes(LLAMA_70B, registry.get("nf4"), 1, 2048, 16)
    assert wide == 2048 * 80 * 2 * 8 * 128 * 2
    narrow = kv_bytes(LLAMA_70B, registry.get("nf4+kv-int4"), 1, 2048, 16)
    numbers = 80 * 2 * 8 * 128
    # the newest 127 as they came; 4 bits, a scale and a zero point of 16 for 64 of them
    assert narrow == 127 * numbers * 2 + (2048 - 127) * numbers * 4.5 / 8
    assert kv_bytes(LLAMA_70B, registry.get("nf4+kv-int4"), 1, 100, 16) == 100 * numbers * 2
    assert kv_bytes(LLAMA_70B, registry.get("fp32"), 1, 10, 16) == 10 * numbers * 4
    assert kv_bytes(SEVENTY, registry.get("nf4+kv-int4"), 1, 100, 16) is None


def test_of_experts_a_step_reads_those_that_it_needs():
    mixture = ModelShape(
        quantizable=90, rest=10, routed=80, experts=8, experts_used=2, kv=(KVLayer(values=1, width=1),)
    )
    one = predictions("A100", "fp16", mixture, Load(1, 2, 1))[0]
    many = predictions("A100", "fp16", mixture, Load(1000, 2, 1))[0]
    assert one.decode is not None
    assert many.decode is not None
    assert one.decode.weights == pytest.approx(2 * (20 + 80 * 2 / 8))
    assert many.decode.weights == pytest.approx(2 * 100)
    assert one.memory.weights == 200, "all of them are held"
    assert one.expected
    assert not predictions("A100", "fp16", LLAMA_70B)[0].expected


def test_a_sequence_shares_its_batch():
    (found,) = predictions("A100", "int8", load=Load(batch_size=8, context=1000, prompt=600))
    assert found.decode is not None
    assert found.prefill is not None
    assert found.request_seconds == pytest.approx((found.prefill.seconds + 400 * found.decode.seconds) / 8)


def test_kernels_that_multiply_in_a_type_of_their_own():
    """What a CPU's bf16 units do is not bound by the slower ones of the reference's type."""
    old = Device("cpu", "amd", "a CPU", "x86_64", features=frozenset({"avx2", "avx512"}), bandwidth=1e11)
    new = replace(old, features=old.features | {"avx512_bf16"})
    rates = Rates(1e11, {"fp32": 1e12, "bf16": 4e12})
    compute, matrix = registry.get("fp32"), load_matrix()
    for place, numeric in ((old, "fp32"), (new, "bf16")):
        running = [(registry.get(name), support(registry.get(name), place, matrix)) for name in ("nf4", "gptq")]
        assert planner.numerics(running, place, compute) == (numeric,)
        for format, answer in running:
            found = predict(format, answer, SEVENTY, Load(), Machine(place, rates), compute)
            assert found.numeric == numeric
            assert found.prefill is not None
            assert found.prefill.seconds == pytest.approx(2 * 70e9 * 512 / rates.operations[numeric])


def test_what_is_not_known_stays_so():
    unknown = replace(device("A100"), memory_bytes=None, bandwidth=None, name="nobody's")
    machine = Machine(unknown, published(unknown))
    fp16 = registry.get("fp16")
    (support,) = [row.support for row in predictions("A100", "fp16")]
    found = predict(fp16, support, LLAMA_70B, Load(), machine, fp16)
    assert found.decode is None
    assert found.prefill is None
    assert found.memory.fits is None
    assert found.tokens_per_second is None
    assert found.request_seconds is None
    assert found.turns_at is None
    assert found.most_sequences is None
