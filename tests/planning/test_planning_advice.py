"""Each way through the decision."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning_examples import LLAMA_70B, device, predictions

from pytest_quant.formats import registry
from pytest_quant.planning import grades
from pytest_quant.planning.advice import advise
from pytest_quant.planning.need import GOALS, Need, share_needed
from pytest_quant.planning.predict import Load
from pytest_quant.roofline.shape import KVLayer, ModelShape

ALL = " ".join(name for name in registry.formats() if not name.startswith("ours"))
EIGHT_B = ModelShape(
    quantizable=6_979_321_856,
    rest=1_050_939_392,
    table=525_336_576,
    head=525_336_576,
    kv=(KVLayer(values=2 * 8 * 128, width=4096),) * 32,
    vocabulary=128256,
    hidden=4096,
    layers=32,
)
"""Llama 3 8B."""
BUSY = Load(batch_size=256, context=512, prompt=384)


def chosen(rows, baseline="fp16", **need):
    found = advise(rows, Need(**need), baseline)
    assert found.chosen is not None
    return found.chosen.name, "\n".join(found.reasons)


def test_quality_keeps_16_bits_where_they_fit():
    name, reasons = chosen(predictions("MI300X", ALL))
    assert name == "fp16"
    assert "unquantized" in reasons
    assert chosen(predictions("MI300X", ALL, compute="bf16"), "bf16")[0] == "bf16"


@pytest.mark.parametrize(("place", "name"), [("H100", "fp8"), ("A100", "int8")])
def test_quality_takes_8_bits_next_as_the_units_can(place, name):
    found, reasons = chosen(predictions(place, ALL))
    assert found == name
    assert "not fp16: 138.0 GB of weights + " in reasons
    assert f"above the {'85.5' if place == 'H100' else '85.9'} GB of the device" in reasons
    assert "1.98x the speed of fp16 where both reach their bound" in reasons


def test_without_units_for_8_bits_they_are_only_stored():
    name, _ = chosen(predictions("V100", ALL, EIGHT_B))
    assert name == "int8-weight-only"


def test_quality_takes_4_calibrated_bits_where_8_miss_the_need():
    rows = predictions("A100", ALL)
    name, reasons = chosen(rows, max_seconds=0.03)
    assert name == "gptq"
    assert "not int8: 69.0 GB of weights + 670.8 MB of KV cache at 2.04 TB/s = 34.2 ms (bandwidth) a step" in reasons
    assert "above 30.0 ms" in reasons
    assert "without calibration: nf4" in reasons
    assert "+0.3 to 1.0 ppl" in reasons
    assert chosen(predictions("L40S", ALL))[0] == "gptq", "8 bits do not fit"


@pytest.mark.parametrize(
    ("names", "best"),
    [
        ("int4 nf4 fp4", "nf4"),
        ("int4 fp4 int4@hqq", "int4@hqq"),
        ("fp4 int4", "fp4"),  # nothing tells the two apart but bytes
        ("nf4 gptq+kv-int4", "nf4"),
        ("nf4 gptq+kv-int8", "gptq+kv-int8"),
        ("nf4 nf4+kv-int2", "nf4"),
    ],
)
def test_4_bits_by_how_they_were_found(names, best):
    assert chosen(predictions("L40S", names))[0] == best


def test_latency_takes_the_fewest_bytes_and_of_equals_the_better():
    name, reasons = chosen(predictions("A100", ALL), goal="latency")
    assert name == "gptq", "nf4's step is 1 % shorter"
    assert "bandwidth limits it" in reasons
    assert "not int8: a step takes 34.2 ms at best, 1.9x as long" in reasons
    assert "decode turns from bandwidth to compute" in chosen(predictions("A100", ALL, load=Load(context=64)))[1]


def test_latency_of_a_batch_that_the_units_limit():
    name, reasons = chosen(
        predictions("A100", ALL, EIGHT_B, replace(BUSY, batch_size=1024, context=128)), goal="latency"
    )
    assert name == "int8"
    assert "compute limits it at this batch" in reasons


@pytest.mark.parametrize(("place", "name"), [("H100", "fp8"), ("A100", "int8"), ("L40S", "fp8")])
def test_throughput_takes_what_the_units_multiply_in(place, name):
    found, reasons = chosen(predictions(place, ALL, EIGHT_B, BUSY), goal="throughput")
    assert found == name
    assert "storing weights narrow alone does not help here" in reasons
    assert "not fp16: " in reasons


def test_throughput_without_such_units_gains_nothing_from_fewer_bits():
    rows = predictions("A100", "fp16 nf4 gptq", EIGHT_B, replace(BUSY, batch_size=1, prompt=512))
    assert chosen(rows, goal="throughput")[0] == "fp16"


def test_a_type_whose_rate_is_not_known_is_not_flattered():
    rows = predictions("A100", "fp32 fp16 int8", EIGHT_B, BUSY)
    assert rows[0].name == "fp32"
    assert rows[0].prefill is not None
    assert rows[0].prefill.compute_seconds is None, "the table has no rate of fp32"
    for goal in ("latency", "throughput"):
        assert chosen(rows, goal=goal)[0] == "int8"
        assert chosen(rows[:2], goal=goal)[0] == "fp16"


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_beside_fp32_whose_rate_is_not_known_nothing_is_decided_by_bytes_alone(goal):
    """A published rate of fp32 is missing for every GPU: what is unpacked to it would else gain all of its bytes."""
    load = Load(batch_size=64 if goal == "throughput" else 1024)
    rows = predictions("A100", ALL, ModelShape.of_parameters(8e9), load, compute="fp32")
    by_name = {row.name: row for row in rows}
    gptq, fp32, fp16 = by_name["gptq"], by_name["fp32"], by_name["fp16"]
    assert (gptq.numeric, gptq.like) == ("fp32", "fp16")
    assert gptq.prefill_seconds == fp32.prefill_seconds == pytest.approx(fp16.prefill.seconds)
    assert gptq.prefill.seconds < gptq.prefill_seconds / 100, "the bound itself assumes nothing"
    name, reasons = chosen(rows, "fp32", goal=goal)
    assert name == "int8"
    assert "the units' rate in fp32 is not known: fp32 is compared as if it were as in fp16" in reasons
    assert "prefill: compute limits it, products run in int8: 2.00x the speed of fp32 where both" in reasons
    name, reasons = chosen([gptq, fp32], "fp32", goal="latency")
    assert name == ("gptq" if goal == "throughput" else "fp32"), "no slower at the larger batch"
    assert "bandwidth limits it" not in reasons
    assert "what limits it cannot be told, as the units' rate in fp32 is not known" in reasons
    name, reasons = chosen([gptq, fp32], "fp32", goal="memory")
    assert name == "gptq"
    assert "limits it" not in reasons
    assert "(bandwidth alone: the units' rate in fp32 is not known)" in reasons
    assert "prefill: the units' rate in fp32 is not known, products run in fp32: no gain on fp32" in reasons


def test_a_rate_that_stands_in_for_none_is_none():
    place = replace(device("A100"), name="nobody's")
    (row,) = predictions(place, "gptq")
    assert (row.like, row.decode_seconds) == (None, row.decode.seconds)


def test_quality_says_how_much_of_the_bound_it_needs():
    rows = predictions("A100", ALL)
    assert "it needs 68 % of the bound; gptq would need 36 %" in chosen(rows, max_seconds=0.05)[1]
    assert "it needs 99 % of the bound; gptq would need 52 %" in chosen(rows, min_tokens_per_second=29)[1]
    assert "% of the bound" not in chosen(rows)[1]
    assert chosen(predictions("A100", "int8"), max_seconds=0.05)[1].count("would need") == 0
    int8 = next(row for row in rows if row.name == "int8")
    both = Need(max_seconds=0.1, min_tokens_per_second=29)
    assert share_needed(int8, both) == pytest.approx(29 * int8.decode.seconds)
    assert share_needed(int8, Need()) is None


def test_what_nf4_costs_beyond_the_bounds_is_said():
    assert "5 to 10 % of its speed" in chosen(predictions("L40S", "nf4 int4"), goal="latency")[1]
    assert "5 to 10 %" not in chosen(predictions("L40S", "gptq"), goal="latency")[1]


def test_memory_takes_the_fewest_bytes():
    name, reasons = chosen(predictions("A100", ALL), goal="memory")
    assert name == "gptq"
    assert "not int8: 71.2 GB" in reasons


def test_every_goal_says_what_is_full_first():
    for goal in GOALS:
        reasons = chosen(predictions("A100", ALL), goal=goal)[1]
        assert "memory is full beyond a batch of " in reasons
        assert "GB of 85.9 GB" in reasons


def test_the_need_is_kept():
    rows = predictions("A100", ALL)
    assert chosen(rows, max_bytes=60e9)[0] == "gptq"
    assert chosen(rows, min_tokens_per_second=40)[0] == "gptq"
    assert chosen(rows, min_tokens_per_second=20)[0] == "int8"
    out = dict(advise(rows, Need(max_bytes=60e9)).broken)
    assert out["int8"].endswith("= 71.2 GB, above 60.0 GB")
    out = dict(advise(rows, Need(min_tokens_per_second=40)).broken)
    assert out["int8"].startswith("29.3 tokens/s at best")
    assert out["int8"].endswith("below 40")


def test_nothing_meets_it_and_that_is_certain():
    found = advise(predictions("A100", ALL), Need(max_seconds=0.001))
    assert found.chosen is None
    assert found.judged
    assert any(reason.startswith("the fastest is nf4: 17.") for reason in found.reasons)
    found = advise(predictions("A100", "fp16 nf4", load=Load(batch_size=100, context=4096)), Need())
    assert found.chosen is None
    assert any("a batch of " in reason and "would fit" in reason for reason in found.reasons)
    assert len(found.broken) == 2
    found = advise(predictions("T4", "nf4"), Need())
    assert any("not even one sequence" in reason for reason in found.reasons)
    assert advise([], Need()).judged


def test_what_is_not_known_is_not_judged():
    place = replace(device("A100"), bandwidth=None, name="nobody's")
    rows = predictions(place, "nf4 fp16")
    found = advise(rows, Need(max_seconds=0.05))
    assert found.chosen is None
    assert not found.judged
    assert dict(found.open) == {"nf4": "neither the device's bandwidth nor the rate of its units is known"}
    assert dict(found.broken).keys() == {"fp16"}, "what does not fit is out all the same"
    for goal in GOALS:
        assert chosen(rows, goal=goal)[0] == "nf4"
    found = advise(predictions(replace(device("A100"), memory_bytes=None), "nf4"), Need())
    assert not found.judged
    assert dict(found.open) == {"nf4": "the device's memory is not known"}


def test_what_is_unpacked_is_not_taken_for_narrow():
    found = advise(predictions("A100", "w4a16 gguf"), Need())
    assert found.chosen is None
    name, reasons = chosen(predictions("MI300X", "w4a16"))
    assert name == "w4a16"
    assert "its library unpacks it: " in reasons


def test_the_choice_does_not_depend_on_the_order_of_the_question():
    rows = predictions("A100", "nf4 gptq int4 fp4")
    for goal in GOALS:
        assert chosen(rows, goal=goal) == chosen(list(reversed(rows)), goal=goal)


@pytest.mark.parametrize(
    ("name", "grade"),
    [
        ("fp32", grades.PLAIN),
        ("fp16+kv-int8", grades.EIGHT),
        ("fp16+kv-int4", grades.ROUNDED),
        ("fp16+kv-int2", grades.FEWER),
        ("int8", grades.EIGHT),
        ("gguf", grades.EIGHT),
        ("awq", grades.CALIBRATED),
        ("w4a16", grades.CALIBRATED),
        ("nf4", grades.FITTED),
        ("int4@hqq", grades.FITTED),
        ("fp4", grades.ROUNDED),
        ("int4-unpacked", grades.ROUNDED),
        ("nvfp4", grades.BOTH),
        ("nvfp4@compressed-tensors", grades.BOTH),
    ],
)
def test_grades(name, grade):
    assert grades.grade(registry.get(name)) is grade


def test_published_figures_are_only_quoted_for_what_they_were_said_of():
    assert grades.published(registry.get("gptq")) == "+0.3 to 1.0 ppl"
    assert grades.published(registry.get("fp8")) is None
    assert grades.published(registry.get("nf4+kv-int8")) is None


def test_a_shape_of_another_model_is_not_what_these_tests_rest_on():
    assert LLAMA_70B.parameters == 68_976_648_192
    assert EIGHT_B.parameters == 8_030_261_248
