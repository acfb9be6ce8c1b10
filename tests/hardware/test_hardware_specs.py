"""The table of published numbers and how a name finds its row."""

from __future__ import annotations

import pytest

from pytest_quant.hardware import specs, specs_file
from pytest_quant.hardware.specs import device, find

GB = 2**30


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
        ("  nvidia  a10g ", "NVIDIA A10G"),
        ("NVIDIA A10", "NVIDIA A10"),
        ("NVIDIA A10G-24", "NVIDIA A10G"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("NVIDIA H200 NVL", "NVIDIA H200 NVL"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("Tesla T4", "Tesla T4"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA A100-SXM4-80GB"),
        ("NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", "NVIDIA H100 80GB HBM3"),
        ("GRID A100DX-80C", "NVIDIA A100-SXM4-80GB"),
        ("GRID A100D-80C", "NVIDIA A100 80GB PCIe"),
        ("GRID A100X-40C", "NVIDIA A100-SXM4-40GB"),
        ("GRID A100DX-1-10CME", "NVIDIA A100-SXM4-80GB"),
        ("NVIDIA H100XM-80C", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100-4-40C", "NVIDIA H100 PCIe"),
        ("NVIDIA A10-24Q", "NVIDIA A10"),
        ("NVIDIA L40S-48Q", "NVIDIA L40S"),
        ("GRID T4-16Q", "Tesla T4"),
        ("AMD Instinct MI300X OAM", "AMD Instinct MI300X"),
    ],
)
def test_a_reported_name_finds_its_row(name, row):
    assert find(name).name == row


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA",
        "NVIDIA H100",
        "H100",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 D v2",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "NVIDIA A10M",
        "NVIDIA L40",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H800",
        "NVIDIA H200X",
        "NVIDIA Nonesuch-8Q",
        "GRID A100DX-80Z",
        "NVIDIA A100-SXM4-80GB MIG",
        "NVIDIA H100 80GB HBM3e",
    ],
)
def test_other_hardware_finds_nothing(name):
    assert find(name) is None


def test_rates_of_the_lesson():
    rates = {
        short: (row.cc, row.bandwidth_tb_s, row.fp16_tflops, row.fp8_tflops, row.int8_tops, row.int4_tops)
        for row in specs_file.load()
        for short in (row.name,)
    }
    assert rates["NVIDIA H100 80GB HBM3"] == ((9, 0), 3.35, 989.4, 1978.9, 1978.9, None)
    assert rates["NVIDIA A100-SXM4-80GB"] == ((8, 0), 2.039, 312, None, 624, 1248)
    assert rates["NVIDIA A10G"] == ((8, 6), 0.6, 70, None, None, None)
    assert rates["NVIDIA L40S"] == ((8, 9), 0.864, 362, 733, 733, 1466)
    assert rates["NVIDIA GeForce RTX 4090"] == ((8, 9), 1.008, 165.2, 330.3, 660.6, 1321.2)
    assert rates["NVIDIA GeForce RTX 3090"] == ((8, 6), 0.936, 71, None, 285, 569)


def test_what_is_unsure_is_said():
    assert find("NVIDIA A10G").unsure == ("int8_tops", "int4_tops")
    assert find("NVIDIA L40S").unsure == ("int4_tops",)
    assert find("NVIDIA H100 80GB HBM3").unsure == ()


@pytest.mark.parametrize("spec", specs_file.load(), ids=lambda spec: spec.name)
def test_every_row_agrees_with_what_its_architecture_has(spec):
    """FP8 from 8.9, FP4 from 10.0, INT4 units on 7.5 to 8.9 only, and every row says where it comes from."""
    assert spec.evidence
    if spec.cc is None:
        assert spec.gfx in {"gfx942", "gfx950"}
        return
    assert spec.fp8_tflops is None or spec.cc >= (8, 9)
    assert spec.fp4_tflops is None or spec.cc >= (10, 0)
    assert spec.int4_tops is None or (7, 5) <= spec.cc <= (8, 9)
    assert spec.memory_mib is None or 0.92 < spec.memory_mib / 1024 / spec.memory_gb < 1.03


def test_no_name_stands_for_two_rows():
    rows = specs_file.load()
    for field in ("aliases", "short", "vgpu"):
        said = [word.lower() for row in rows for word in getattr(row, field)]
        assert len(said) == len(set(said)), field
    assert len(specs.names()) == len(set(specs.names())) == len(rows) == 34


@pytest.mark.parametrize(
    ("short", "name", "memory"),
    [
        ("H100 SXM5", "NVIDIA H100 80GB HBM3", 81559 * 2**20),
        ("A100", "NVIDIA A100-SXM4-80GB", 80 * GB),
        ("A10G", "NVIDIA A10G", 23028 * 2**20),
        ("l40s", "NVIDIA L40S", 46068 * 2**20),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", 24564 * 2**20),
        ("RTX 3090", "NVIDIA GeForce RTX 3090", 24 * GB),
    ],
)
def test_a_device_to_plan_for_by_its_short_name(short, name, memory):
    planned = device(short)
    assert (planned.kind, planned.vendor, planned.name, planned.count) == ("cuda", "nvidia", name, 1)
    assert planned.memory_bytes == memory
    assert planned.compute_capability == find(name).cc
    assert planned.bandwidth == find(name).bandwidth
    assert planned.notes[0].startswith("This device is not here")


def test_an_amd_device_to_plan_for():
    planned = device("MI300X")
    assert (planned.kind, planned.vendor, planned.architecture) == ("rocm", "amd", "gfx942")
    assert planned.compute_capability is None
    assert (planned.memory_bytes, planned.bandwidth) == (192 * GB, 5.3e12)


@pytest.mark.parametrize(
    ("name", "partition", "gb", "share"),
    [
        ("A100 MIG 1g.10gb", "MIG 1g.10gb", 10, 1 / 8),
        ("NVIDIA A100-SXM4-80GB MIG 1g.20gb", "MIG 1g.20gb", 20, 2 / 8),
        ("NVIDIA A100-SXM4-80GB MIG 7g.80gb", "MIG 7g.80gb", 80, 1),
        ("GRID A100DX-40C", "vGPU", 40, 1),
        ("GRID A100DX-2-20C", "vGPU", 20, 2 / 8),
    ],
)
def test_a_slice_to_plan_for(name, partition, gb, share):
    planned = device(name)
    assert planned.name == "NVIDIA A100-SXM4-80GB"
    assert (planned.partition, planned.memory_bytes) == (partition, gb * GB)
    assert planned.bandwidth == pytest.approx(2.039e12 * share)


def test_a_slice_of_a_board_whose_driver_reports_less_than_its_nameplate():
    planned = device("H100 SXM5 MIG 1g.10gb")
    assert planned.memory_bytes == 81559 * 2**20 // 8
    assert planned.bandwidth == pytest.approx(3.35e12 / 8)
    assert device("NVIDIA GB200 MIG 2g.46gb").bandwidth == pytest.approx(8e12 / 4)
    assert device("H200 MIG 1g.18gb").bandwidth == pytest.approx(4.8e12 / 8)


@pytest.mark.parametrize("name", ["", "RTX 3090 Ti", "A10", "GTX 1080", "cpu"])
def test_a_device_that_is_not_in_the_table(name):
    assert (device(name) is None) == (name != "A10")


def test_what_is_unsure_is_noted_when_planning():
    assert device("H100 NVL").notes[1] == (
        "The table is unsure about the bandwidth_tb_s, fp16_tflops, fp8_tflops, int8_tops of NVIDIA H100 NVL."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fp7": 1}, "x: unknown field fp7"),
        ({"unsure": ["fp7"]}, "x: unknown field fp7"),
        ({"gfx": "gfx942"}, "x: needs one of cc and gfx"),
        ({"memory_gb": 0}, "x: memory_gb must be above 0, found 0"),
    ],
)
def test_a_malformed_row_is_refused(change, message):
    row = {"name": "x", "cc": [9, 0], "memory_gb": 80, "evidence": "none"}
    assert specs_file.parse(row).architecture == "sm_90"
    with pytest.raises(ValueError, match=message):
        specs_file.parse(row | change)
