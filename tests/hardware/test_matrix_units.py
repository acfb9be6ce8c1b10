"""Every cell of the units table, against tables written down here independently of the data file."""

from __future__ import annotations

import pytest

from pytest_quant.errors import UsageError
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix import NUMERICS, load

NVIDIA_TYPES = "fp32 tf32 fp16 bf16 fp8 fp8_e5m2 int8 int4 nf4 fp4 mxfp8 mxfp4 nvfp4"
# N native, E emulated or dequantized, - not there, ? not verified
NVIDIA = {
    ("Tesla V100-SXM2-16GB", (7, 0)): "N - N E E E E E E E E E E",
    ("Tesla T4", (7, 5)): "N - N E E E N N E E E E E",
    ("NVIDIA A100-SXM4-80GB", (8, 0)): "N N N N E E N N E E E E E",
    ("NVIDIA A10G", (8, 6)): "N N N N E E N N E E E E E",
    ("NVIDIA GeForce RTX 3090", (8, 6)): "N N N N E E N N E E E E E",
    ("Orin", (8, 7)): "N N N N E E N N E E E E E",
    ("NVIDIA L40S", (8, 9)): "N N N N N N N N E E E E E",
    ("NVIDIA GeForce RTX 4090", (8, 9)): "N N N N N N N N E E E E E",
    ("NVIDIA H100 80GB HBM3", (9, 0)): "N N N N N N N E E E E E E",
    ("NVIDIA H200", (9, 0)): "N N N N N N N E E E E E E",
    ("NVIDIA B200", (10, 0)): "N N N N N N N E E E N N N",
    ("NVIDIA B300 SXM6 AC", (10, 3)): "N N N N N N N E E E N N N",
    ("NVIDIA Thor", (11, 0)): "N N N N N N N E E E N N N",
    ("NVIDIA GeForce RTX 5090", (12, 0)): "N N N N N N N E E E N N N",
    ("NVIDIA GB10", (12, 1)): "N N N N N N N E E E N N N",
    ("NVIDIA Tesla P100", (6, 0)): "? ? ? ? ? ? ? ? E E ? ? ?",
    ("NVIDIA from the future", (13, 0)): "? ? ? ? ? ? ? ? E E ? ? ?",
}
AMD_TYPES = "fp32 fp16 bf16 tf32 fp8 fp8_e5m2 int8 int4 mxfp4 mxfp8 nf4 fp4 nvfp4"
AMD = {
    "gfx908": "N N N - E E N E E E E E E",
    "gfx90a": "N N N - E E N E E E E E E",
    "gfx90a:sramecc+:xnack-": "N N N - E E N E E E E E E",
    "gfx942": "N N N N N N N E E E E E E",
    "gfx950": "N N N - N N N E N N E E ?",
    "gfx1030": "N N E - E E E E E E E E E",
    "gfx1100": "N N N - E E N N E E E E E",
    "gfx1151": "N N N - E E N N E E E E E",
    "gfx1200": "N N N - N N N N E E E E E",
    "gfx1201": "N N N - N N N N E E E E E",
    "gfx1300": "N ? ? ? ? ? ? ? ? ? E E ?",
}
INTEL_TYPES = "fp32 fp16 bf16 int8 fp8 fp8_e5m2 int4 mxfp4 nvfp4 nf4 tf32"
INTEL = {
    "xe-lp": "N N E N - - - - - E ?",
    "xe-lpg": "N N E N - - - - - E ?",
    "xe-hpg": "N N N N E E E - - E ?",
    "xe-hpc": "N N N N E E E E E E ?",
    "xe2": "N N N N E E E E E E ?",
    "xe3-lpg": "N N N N E E E E E E ?",
    "unheard-of": "? ? ? ? ? ? ? ? ? E ?",
}
CPU_TYPES = "fp32 bf16 fp16 int8 fp8 fp8_e5m2 int4 nf4 fp4 mxfp8 mxfp4 nvfp4"
X86 = {
    "": "N ? ? ? ? ? ? E E E E E",
    "avx2": "N E E N E E E E E E E E",
    "avx2 avx_vnni": "N E E N E E E E E E E E",
    "avx2 avx_vnni avx_ne_convert": "N E E N E E E E E E E E",
    "avx2 avx512": "N E E N E E E E E E E E",
    "avx2 avx512 avx512_vnni": "N E E N E E E E E E E E",
    "avx2 avx512 avx512_vnni avx512_bf16": "N N E N E E E E E E E E",
    "avx2 avx512 avx512_vnni avx512_bf16 amx_int8 amx_bf16": "N N E N E E E E E E E E",
    "avx2 avx512 avx512_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16": "N N N N E E E E E E E E",
    "avx2 avx512 avx512_vnni avx512_bf16 amx_int8 amx_bf16 amx_fp16": "N N N N E E E E E E E E",
    "avx2 avx512 avx512_vnni avx512_bf16 amx_int8 amx_bf16 amx_fp16 amx_fp8": "N N N N N N E E E E E E",
}
ARM = {
    "": "N E ? E E E E E E E E E",
    "dotprod": "N E ? N E E E E E E E E",
    "dotprod i8mm bf16 sve": "N N ? N E E E E E E E E",
}
STATUS = {"N": "native", "E": "dequantized", "-": "unsupported", "?": "unknown"}


def cuda(name: str, version: tuple[int, int]) -> Device:
    return Device("cuda", "nvidia", name, "sm_{}{}".format(*version), compute_capability=version)


def cpu(architecture: str, features: str) -> Device:
    return Device("cpu", "unknown", "a CPU", architecture, features=frozenset(features.split()))


TABLES = [
    *((NVIDIA_TYPES, cuda(*key), cells) for key, cells in NVIDIA.items()),
    *((AMD_TYPES, Device("rocm", "amd", "a GPU", key), cells) for key, cells in AMD.items()),
    *((INTEL_TYPES, Device("xpu", "intel", "a GPU", key), cells) for key, cells in INTEL.items()),
    *((CPU_TYPES, cpu("x86_64", key), cells) for key, cells in X86.items()),
    *((CPU_TYPES, cpu("aarch64", key), cells) for key, cells in ARM.items()),
    (
        "fp32 fp16 bf16 fp8 fp8_e5m2 int8 int4 nf4 fp4 tf32",
        Device("mps", "apple", "Apple M3", "apple"),
        "N N ? - - E E E E ?",
    ),
    ("bf16 fp32", Device("mps", "amd", "Radeon Pro 5500M", "unknown"), "- ?"),
]
CELLS = [
    pytest.param(numeric, device, STATUS[cell], id=f"{device}-{' '.join(sorted(device.features))}-{numeric}")
    for numerics, device, cells in TABLES
    for numeric, cell in zip(numerics.split(), cells.split(), strict=True)
]


@pytest.mark.parametrize("numeric, device, status", CELLS)
def test_cell(numeric: str, device: Device, status: str) -> None:
    support = load().units(numeric, device)
    assert support.status == status
    assert support.reason
    assert support.source
    assert bool(support.needed) == (status != "native")


def test_fp8_below_89_says_which_capability_would_do() -> None:
    support = load().units("fp8", cuda("NVIDIA A100-SXM4-80GB", (8, 0)))
    assert support.needed == "an NVIDIA GPU of compute capability 8.9 or newer"


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090", "Some OEM's board", ""], ids=repr)
def test_a_marketing_name_decides_nothing(name: str) -> None:
    matrix = load()
    for numeric in NUMERICS:
        expected = matrix.units(numeric, cuda("NVIDIA A10G", (8, 6)))
        assert matrix.units(numeric, cuda(name, (8, 6))) == expected


@pytest.mark.parametrize("architecture, pretended", [("gfx90a", (9, 0)), ("gfx1100", (11, 0)), ("gfx1030", (10, 3))])
def test_hips_pretended_capability_is_never_compared(architecture: str, pretended: tuple[int, int]) -> None:
    matrix = load()
    plain = Device("rocm", "amd", "a GPU", architecture)
    trap = Device("rocm", "amd", "a GPU", architecture, compute_capability=pretended)
    for numeric in NUMERICS:
        assert matrix.units(numeric, trap) == matrix.units(numeric, plain)
    assert matrix.units("fp8", trap).status == "dequantized"
    for backend, capability in matrix.capabilities:
        assert matrix.backend(backend, trap, capability) == matrix.backend(backend, plain, capability)


def test_a_cuda_device_of_undetected_capability_is_unknown() -> None:
    support = load().units("fp8", Device("cuda", "nvidia", "a GPU", "unknown"))
    assert support.status == "unknown"
    assert "undetected" in support.reason


def test_an_unknown_numeric_type_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'int3'.*nvfp4"):
        load().units("int3", cuda("NVIDIA A10G", (8, 6)))


def test_mi300_says_that_its_fp8_is_another_encoding() -> None:
    matrix = load()
    assert "FNUZ" in matrix.units("fp8", Device("rocm", "amd", "MI300X", "gfx942")).reason
    assert "OCP" in matrix.units("fp8", Device("rocm", "amd", "MI355X", "gfx950")).reason


def test_avx2_int8_names_its_limit() -> None:
    assert "saturate" in load().units("int8", cpu("x86_64", "avx2")).reason
    assert "VNNI" in load().units("int8", cpu("x86_64", "avx2 avx_vnni")).reason


def test_every_shipped_row_has_a_source_of_its_own() -> None:
    matrix = load("lesson")
    supports = [cell for row in matrix.unit_rows for cell in row.cells.values()]
    supports += [row.support for row in matrix.backend_rows]
    assert supports
    assert not [support for support in supports if support.source.endswith(".toml")]
