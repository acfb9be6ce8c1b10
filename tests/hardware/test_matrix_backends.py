"""Which backend can run what, and both questions put together for a format."""

from __future__ import annotations

import pytest

from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix import explain_skip, load

INT8 = Format(
    "int8",
    QuantizationArgs(8, "int", "channel"),
    "bitsandbytes",
    "int8",
    input_activations=QuantizationArgs(8, "int", "token", dynamic=True),
)
NF4 = Format("nf4", QuantizationArgs(4, "float", "group", group_size=64), "bitsandbytes", "nf4")
FP16 = Format("fp16", QuantizationArgs(16, "float"), "torch", "fp16")
BF16 = Format("bf16", QuantizationArgs(16, "float"), "torch", "bf16")
FP8 = Format(
    "fp8",
    QuantizationArgs(8, "float", "channel"),
    "torchao",
    "fp8",
    input_activations=QuantizationArgs(8, "float", "token", dynamic=True),
)


def cuda(major: int, minor: int) -> Device:
    return Device("cuda", "nvidia", "a GPU", f"sm_{major}{minor}", compute_capability=(major, minor))


def cpu(features: str, architecture: str = "x86_64") -> Device:
    return Device("cpu", "unknown", "a CPU", architecture, features=frozenset(features.split()))


def rocm(architecture: str) -> Device:
    return Device("rocm", "amd", "a GPU", architecture)


MPS = Device("mps", "apple", "Apple M3", "apple")
INTEL_MAC = Device("mps", "amd", "Radeon Pro 5500M", "unknown")
XPU = Device("xpu", "intel", "Max 1550", "xe-hpc")


@pytest.mark.parametrize(
    "capability, version, runs",
    [
        ("int8", (5, 2), False),
        ("int8", (6, 0), False),
        ("int8", (6, 1), False),
        ("int8", (7, 0), False),
        ("int8", (7, 2), False),
        ("int8", (7, 5), True),
        ("int8", (8, 6), True),
        ("int8", (12, 0), True),
        ("nf4", (5, 2), False),
        ("nf4", (5, 3), False),
        ("nf4", (6, 0), True),
        ("nf4", (7, 0), True),
        ("nf4", (7, 5), True),
        ("nf4", (9, 0), True),
        ("fp4", (5, 3), False),
        ("fp4", (6, 0), True),
    ],
)
def test_bitsandbytes_on_nvidia(capability: str, version: tuple[int, int], runs: bool) -> None:
    support = load().backend("bitsandbytes", cuda(*version), capability)
    assert support.runs is runs
    assert support.status == ("unsupported" if not runs else "native" if capability == "int8" else "dequantized")
    assert support.packages[:2] == ("bitsandbytes>=0.46.1", "accelerate>=1.1.0")
    assert support.source
    assert runs or support.needed


@pytest.mark.parametrize("version", [(6, 0), (6, 1), (7, 0)])
def test_bitsandbytes_int8_before_75_says_that_nothing_raises(version: tuple[int, int]) -> None:
    assert "nothing raises" in load().backend("bitsandbytes", cuda(*version), "int8").reason


@pytest.mark.parametrize(
    "device, int8, nf4",
    [
        (rocm("gfx908"), "native", "dequantized"),
        (rocm("gfx90a:sramecc+:xnack-"), "native", "dequantized"),
        (rocm("gfx942"), "native", "dequantized"),
        (rocm("gfx950"), "native", "dequantized"),
        (rocm("gfx1030"), "native", "dequantized"),
        (rocm("gfx1036"), "native", "dequantized"),
        (rocm("gfx1100"), "native", "dequantized"),
        (rocm("gfx1201"), "native", "dequantized"),
        (rocm("gfx906"), "unsupported", "unsupported"),
        (rocm("gfx1010"), "unsupported", "unsupported"),
        (XPU, "native", "dequantized"),
        (Device("xpu", "intel", "Arc", "xe2"), "native", "dequantized"),
        (Device("xpu", "intel", "iGPU", "xe-lpg"), "unknown", "unknown"),
        (MPS, "dequantized", "dequantized"),
        (INTEL_MAC, "unsupported", "unsupported"),
        (cpu(""), "unsupported", "unsupported"),
        (cpu("avx2"), "dequantized", "dequantized"),
        (cpu("avx2 avx512"), "native", "dequantized"),
        (cpu("dotprod", "aarch64"), "dequantized", "dequantized"),
        (cpu("", "riscv64"), "unsupported", "unsupported"),
    ],
    ids=str,
)
def test_bitsandbytes_elsewhere(device: Device, int8: str, nf4: str) -> None:
    matrix = load()
    assert matrix.backend("bitsandbytes", device, "int8").status == int8
    assert matrix.backend("bitsandbytes", device, "nf4").status == nf4
    assert matrix.backend("bitsandbytes", device, "fp4").status == nf4


def test_minimum_versions_on_intel_gpus_are_data() -> None:
    matrix = load()
    assert "torch>=2.9" in matrix.backend("bitsandbytes", XPU, "int8").packages
    assert "torch>=2.6" in matrix.backend("bitsandbytes", XPU, "nf4").packages


@pytest.mark.parametrize("capability", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("device", [cuda(5, 2), cuda(9, 0), rocm("gfx942"), XPU, MPS, cpu("")], ids=str)
def test_torch_runs_the_plain_types_everywhere(device: Device, capability: str) -> None:
    assert load().backend("torch", device, capability).runs


def test_bf16_on_mps_needs_apple_silicon_and_macos_14() -> None:
    matrix = load()
    assert "macOS 14" in matrix.backend("torch", MPS, "bf16").reason
    assert matrix.support(BF16, INTEL_MAC).status == "unsupported"
    answer = matrix.support(BF16, MPS)
    assert answer.status == "dequantized"
    assert "not known" in answer.reason


@pytest.mark.parametrize("version, status", [((8, 6), "unsupported"), ((8, 9), "native"), ((9, 0), "native")])
def test_torchao_fp8_begins_at_89(version: tuple[int, int], status: str) -> None:
    assert load().backend("torchao", cuda(*version), "fp8").status == status


def test_an_unheard_of_backend_is_unknown_and_does_not_run() -> None:
    strange = Format("int8", QuantizationArgs(8, "int"), "ourlib", "int8")
    matrix = load()
    assert matrix.backend("ourlib", cuda(9, 0), "int8").status == "unknown"
    support = matrix.support(strange, cuda(9, 0), require_native=False)
    assert support.status == "unsupported"
    assert "ourlib" in support.reason
    assert "matrix file" in support.needed


@pytest.mark.parametrize(
    "format, device, automatic, required, waived",
    [
        # quantizes activations: native units are needed unless waived
        (INT8, cuda(8, 0), "native", "native", "native"),
        (INT8, cuda(7, 5), "native", "native", "native"),
        (INT8, cuda(7, 0), "unsupported", "unsupported", "unsupported"),
        (INT8, cpu("avx2 avx512 avx512_vnni"), "native", "native", "native"),
        (INT8, MPS, "unsupported", "unsupported", "dequantized"),
        (INT8, rocm("gfx1030"), "unsupported", "unsupported", "dequantized"),
        (INT8, rocm("gfx1101"), "unsupported", "unsupported", "dequantized"),
        # the units are there, the backend does not use them
        (INT8, cpu("avx2"), "dequantized", "unsupported", "dequantized"),
        (INT8, cpu("dotprod i8mm", "aarch64"), "dequantized", "unsupported", "dequantized"),
        # weight-only is never native
        (NF4, cuda(9, 0), "dequantized", "unsupported", "dequantized"),
        (NF4, cuda(6, 0), "dequantized", "unsupported", "dequantized"),
        (NF4, cuda(5, 3), "unsupported", "unsupported", "unsupported"),
        (NF4, cpu("avx2"), "dequantized", "unsupported", "dequantized"),
        # not quantized: runs in a wider type where there is no unit
        (FP16, cuda(7, 0), "native", "native", "native"),
        (FP16, cpu("avx2"), "dequantized", "unsupported", "dequantized"),
        (BF16, cuda(7, 5), "dequantized", "unsupported", "dequantized"),
        (BF16, cuda(8, 6), "native", "native", "native"),
        (FP8, cuda(8, 0), "unsupported", "unsupported", "unsupported"),
        (FP8, cuda(8, 9), "native", "native", "native"),
        (FP8, XPU, "unsupported", "unsupported", "dequantized"),
    ],
    ids=str,
)
def test_require_native(format: Format, device: Device, automatic: str, required: str, waived: str) -> None:
    matrix = load()
    for require, status in ((None, automatic), (True, required), (False, waived)):
        support = matrix.support(format, device, require_native=require)
        assert support.status == status, require
        assert support.reason
        assert support.source
        assert bool(support.needed) == (status != "native")


def test_a_weight_only_format_of_a_native_type_is_still_dequantized() -> None:
    weight_only = Format("int8-weight-only", QuantizationArgs(8, "int", "channel"), "torchao", "int8")
    assert load().units("int8", cuda(8, 0)).status == "native"
    assert load().support(weight_only, cuda(8, 0)).status == "dequantized"


def test_a_format_of_another_name_is_asked_for_by_its_numeric_type() -> None:
    own = Format("nf4-double", QuantizationArgs(4, "float", "group"), "bitsandbytes", "nf4")
    assert load().support(own, cuda(8, 0)).status == "dequantized"
    int8 = QuantizationArgs(8, "int", "channel")
    assert load().support(Format("mine", int8, "torchao", "int8"), cuda(8, 0)).status == "dequantized"
    assert load().support(Format("mine", int8, "torchao", "fp8", int8), cuda(8, 9)).status == "native"


def test_a_format_of_another_library_is_asked_for_without_it() -> None:
    weights = QuantizationArgs(4, "int", "group", group_size=128)
    for name in ("int4@quanto", "int4@quanto+kv-int4"):
        support = load().support(Format(name, weights, "quanto", "int4"), cuda(8, 0))
        assert support.status == "dequantized"
        assert "AWQ" in support.reason


def test_a_variant_is_asked_for_by_what_it_varies() -> None:
    weights = QuantizationArgs(4, "int", "group", group_size=32)
    variant = Format("small-groups", weights, "torchao", "int4", variant_of="int4-unpacked")
    assert load().support(variant, cpu("avx2")).status == "dequantized"
    assert load().support(Format("packed", weights, "torchao", "int4"), cpu("avx2")).status == "unsupported"


def test_what_is_unknown_says_how_to_make_it_known() -> None:
    for backend, capability in load().capabilities:
        for device in (MPS, XPU, rocm("gfx942"), cuda(8, 0), cpu("avx2")):
            support = load().backend(backend, device, capability)
            assert support.runs or support.needed, (backend, capability)


def test_a_skip_names_what_was_asked_found_and_needed() -> None:
    volta = Device("cuda", "nvidia", "Tesla V100-SXM2-16GB", "sm_70", compute_capability=(7, 0))
    skip = explain_skip(INT8, volta, load().support(INT8, volta))
    assert skip.asked == "int8 (bitsandbytes)"
    assert "Tesla V100-SXM2-16GB" in skip.found
    assert "7.5" in skip.found
    assert "7.5 or newer" in skip.needed
    assert "bitsandbytes>=0.46.1" in skip.needed
    assert str(skip).startswith("asked: int8")


def test_a_skip_for_want_of_units_says_how_to_run_it_without() -> None:
    skip = explain_skip(INT8, MPS, load().support(INT8, MPS))
    assert "quantizes activations" in skip.found
    assert "require_native=False" in skip.needed
