"""Published rates, of whole boards and of slices, and the numeric that products run in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quant.formats import registry
from pytest_quant.hardware import Device, specs
from pytest_quant.hardware.matrix_rows import Support
from pytest_quant.roofline.rates import numeric, published

CPU = Device("cpu", "amd", "AMD EPYC", "x86_64")


def test_an_a100_has_no_fp8():
    rates = published(specs.device("A100"))
    assert rates.bandwidth == pytest.approx(2.039e12)
    assert rates.operations == {"fp16": 312e12, "bf16": 312e12, "int8": 624e12, "int4": 1248e12}
    assert rates.bandwidth_source == rates.operations_source == specs.SOURCE


def test_bf16_is_not_known_before_ampere():
    assert set(published(specs.device("Tesla T4")).operations) == {"fp16", "int8", "int4"}


def test_4_bit_floats_of_blackwell_and_of_mi355x():
    assert {"mxfp4", "nvfp4"} <= set(published(specs.device("NVIDIA B200")).operations)
    assert "nvfp4" not in published(specs.device("AMD Instinct MI355X")).operations
    assert "mxfp4" in published(specs.device("AMD Instinct MI355X")).operations


@pytest.mark.parametrize(
    ("name", "memory", "units"),
    [
        ("A100 MIG 1g.10gb", 1 / 8, 1 / 7),
        ("A100 MIG 3g.40gb", 1 / 2, 3 / 7),
        ("A100 MIG 7g.80gb", 1, 1),
        ("A100 MIG 1c.3g.40gb", 1 / 2, 1 / 7),
    ],
)
def test_a_mig_slice_has_its_part_of_both(name, memory, units):
    whole, part = published(specs.device("A100")), published(specs.device(name))
    assert part.bandwidth == pytest.approx(whole.bandwidth * memory)
    assert part.operations == pytest.approx({key: rate * units for key, rate in whole.operations.items()})


def test_four_slices_of_a_gpu_that_is_cut_into_four():
    device = specs.device("NVIDIA RTX PRO 6000 Blackwell Server Edition")
    assert specs.compute_share(replace(device, partition="MIG 1g.24gb")) == 1 / 4
    assert specs.compute_share(replace(device, partition="MIG 4g.96gb")) == 1


def test_a_time_sliced_guest_may_have_all_and_a_mig_backed_one_its_slices():
    whole = published(specs.device("A100")).operations["fp16"]
    guest = Device("cuda", "nvidia", "GRID A100DX-40C", "sm_80", partition="vGPU")
    assert published(guest).operations["fp16"] == whole
    assert published(replace(guest, name="GRID A100DX-2-20C")).operations["fp16"] == pytest.approx(whole * 2 / 7)


def test_nothing_is_known_of_a_slice_of_unknown_size_nor_of_a_partition_of_an_amd():
    a100 = specs.device("A100")
    assert published(replace(a100, partition="MIG")).operations == {}
    mi300x = specs.device("AMD Instinct MI300X")
    assert published(mi300x).operations
    assert published(replace(mi300x, bandwidth=None, bandwidth_source=None)).operations == {}


def test_nothing_is_published_of_a_cpu():
    rates = published(CPU)
    assert (rates.bandwidth, dict(rates.operations), rates.bandwidth_source) == (None, {}, "not known")


def support(status: str) -> Support:
    return Support(status, "", "")


@pytest.mark.parametrize(
    ("name", "status", "compute", "expected"),
    [
        ("fp16", "native", "float16", "fp16"),
        ("fp16", "dequantized", "float32", "fp16"),
        ("int8", "native", "float16", "int8"),
        ("int8", "dequantized", "float16", "fp16"),
        ("w8a8", "native", "bfloat16", "int8"),
        ("nf4", "native", "float16", "fp16"),
        ("fp4", "dequantized", "float32", "fp32"),
        ("int8-weight-only", "native", "bfloat16", "bf16"),
        ("mxfp4", "native", "float32", "mxfp4"),
        ("mxfp4", "dequantized", "float32", "bf16"),
        ("nvfp4-weight-only", "dequantized", "float32", "fp32"),
        ("nvfp4-weight-only", "dequantized", "float16", "bf16"),
    ],
)
def test_in_what_the_products_run(name, status, compute, expected):
    assert numeric(registry.get(name), support(status), compute) == expected
