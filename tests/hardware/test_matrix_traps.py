"""The traps of hardware and libraries, each on replayed devices: what looks as if it ran natively, and does not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import matrix_devices
import pytest
from matrix_devices import device

import pytest_quant
from pytest_quant.formats import registry
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware.matrix import NUMERICS, Matrix, load

W8A8 = {"weights": QuantizationArgs(8, "int"), "input_activations": QuantizationArgs(8, "int", "token", dynamic=True)}
FP8 = {"weights": QuantizationArgs(8, "float"), "input_activations": QuantizationArgs(8, "float", dynamic=True)}
FP4 = {"weights": QuantizationArgs(4, "float"), "input_activations": QuantizationArgs(4, "float", dynamic=True)}
PRETENDED = {"MI250": (9, 0), "MI300X": (9, 4), "MI355X": (9, 5), "RX 7900 XTX": (11, 0), "RX 9070 XT": (12, 0)}
"""What HIP reports as the compute capability: the gfx version."""
NO_FP8_UNITS = ("MI250", "RX 7900 XTX")


@pytest.fixture
def matrix() -> Matrix:
    return load()


@pytest.mark.parametrize("name", PRETENDED)
def test_hips_pretended_compute_capability_never_counts_as_nvidias(matrix: Matrix, name: str) -> None:
    found = device(name)
    assert found.kind == "rocm"
    assert found.compute_capability is None, "detection must not put HIP's there"
    trap = replace(found, compute_capability=PRETENDED[name])
    assert [matrix.units(numeric, trap) for numeric in NUMERICS] == [matrix.units(n, found) for n in NUMERICS]
    for backend, capability in matrix.capabilities:
        assert matrix.backend(backend, trap, capability) == matrix.backend(backend, found, capability)
    for format in registry.formats().values():
        assert matrix.support(format, trap) == matrix.support(format, found)


@pytest.mark.parametrize("name", NO_FP8_UNITS)
def test_an_amd_gpu_without_fp8_units_runs_no_fp8_product(matrix: Matrix, name: str) -> None:
    found = device(name)
    assert matrix.units("fp8", found).status == "dequantized"
    assert "HIP reports" in matrix.units("fp8", found).reason
    for format in ("fp8", "fp8@finegrained-fp8", "nvfp4"):
        assert not matrix.support(registry.get(format), found, require_native=False).runs


@pytest.mark.parametrize("name", PRETENDED)
@pytest.mark.parametrize(
    ("backend", "capability"),
    [
        ("finegrained-fp8", "fp8"),
        ("fbgemm-fp8", "fp8"),
        ("compressed-tensors", "fp8-optimized"),
        ("transformers-nvfp4", "nvfp4"),
    ],
)
def test_transformers_gates_that_are_wrong_on_rocm_open_nothing(
    matrix: Matrix, name: str, backend: str, capability: str
) -> None:
    support = matrix.backend(backend, device(name), capability)
    assert not support.runs
    assert "HIP's gfx version" in support.reason
    if name in NO_FP8_UNITS:
        assert support.status == "unsupported"
    assert matrix.backend(backend, device("B200"), capability).status == "native"


@pytest.mark.parametrize("name", ["T4", "V100"])
def test_bf16_under_emulation_is_not_native(matrix: Matrix, name: str) -> None:
    """torch.cuda.is_bf16_supported() says True there: it counts emulation."""
    bf16 = registry.get("bf16")
    assert matrix.support(bf16, device(name)).status == "dequantized"
    assert "emulated" in matrix.support(bf16, device(name)).reason
    assert not matrix.support(bf16, device(name), require_native=True).runs
    assert "torch/cuda/__init__.py:191-211" in matrix.backend("torch", device(name), "bf16").source
    for ampere in ("A100", "A10G", "RTX 3090"):
        assert matrix.support(bf16, device(ampere), require_native=True).status == "native"


def test_nothing_asks_torch_whether_bf16_is_supported_under_emulation() -> None:
    calls = [
        (file.name, call)
        for file in Path(pytest_quant.__file__).parent.rglob("*.py")
        for call in re.findall(r"is_bf16_supported\((.*?)\)", file.read_text())
    ]
    assert all("including_emulation=False" in call for _, call in calls), calls


@pytest.mark.parametrize("name", ["V100", "T4", "A100", "A10G", "RTX 3090"])
def test_finegrained_fp8_below_89_would_silently_be_bf16(matrix: Matrix, name: str) -> None:
    for require_native in (None, False):
        support = matrix.support(registry.get("fp8@finegrained-fp8"), device(name), require_native=require_native)
        assert support.status == "unsupported"
        assert "silently loads the model in bf16" in support.reason
        assert "8.9" in support.needed


@pytest.mark.parametrize("name", ["Ice Lake", "Graviton3", matrix_devices.APPLE])
def test_finegrained_fp8_without_a_gpu_would_silently_be_bf16(matrix: Matrix, name: str) -> None:
    support = matrix.support(registry.get("fp8@finegrained-fp8"), device(name), require_native=False)
    assert support.status == "unsupported"
    assert "bf16" in support.reason


@pytest.mark.parametrize("name", ["A100", "L40S", "H100", "B200", "MI300X", "Sapphire Rapids", "Max 1550"])
def test_compressed_tensors_are_unpacked_whatever_the_units(matrix: Matrix, name: str) -> None:
    w8a8 = registry.get("w8a8@compressed-tensors")
    assert matrix.units("int8", device(name)).status == "native"
    support = matrix.support(w8a8, device(name))
    assert support.status == "dequantized"
    assert "unpacks the whole checkpoint" in support.reason
    assert not matrix.support(w8a8, device(name), require_native=True).runs
    assert matrix.support(registry.get("fp8@compressed-tensors"), device(name)).status != "native"


def test_the_fp8_kernel_of_compressed_tensors_is_ignored_below_89(matrix: Matrix) -> None:
    assert matrix.backend("compressed-tensors", device("A100"), "fp8-optimized").status == "unsupported"
    assert matrix.backend("compressed-tensors", device("L40S"), "fp8-optimized").status == "native"


@pytest.mark.parametrize("name", ["H100", "B200", "RTX 5090", "Ice Lake", "MI355X"])
def test_transformers_mxfp4_is_for_gpt_oss_alone(matrix: Matrix, name: str) -> None:
    format = Format("mxfp4@transformers", backend="transformers-mxfp4", numeric="mxfp4", **FP4)
    support = matrix.support(format, device(name), require_native=False)
    assert support.status == "unsupported"
    assert "quantizes nothing" in support.reason
    assert "gpt-oss" in support.needed


def test_transformers_mxfp4_of_gpt_oss_begins_at_75(matrix: Matrix) -> None:
    assert matrix.backend("transformers-mxfp4", device("T4"), "mxfp4-gpt-oss").status == "dequantized"
    below = matrix.backend("transformers-mxfp4", device("V100"), "mxfp4-gpt-oss")
    assert below.status == "unsupported"
    assert "silently" in below.reason


@pytest.mark.parametrize(
    ("kernel", "runs_on"),
    [
        ("machete", {"H100", "H200"}),
        ("swordfish", {"B200", "B300"}),
        ("marlin-gptq", {*matrix_devices.NVIDIA, "L4", "B300"}),
        ("marlin-awq", {*matrix_devices.NVIDIA, "L4", "B300"} - {"T4"}),
        ("exllamav2", {*matrix_devices.NVIDIA, "V100", "L4", "B300"}),
        ("qqq", {*matrix_devices.ALL}),
        ("torch", {*matrix_devices.ALL}),
    ],
)
def test_kernels_that_are_bound_to_some_gpus(matrix: Matrix, kernel: str, runs_on: set[str]) -> None:
    found = {name for name in matrix_devices.ALL if matrix.backend("gptqmodel", device(name), kernel).runs}
    assert found == runs_on


@pytest.mark.parametrize(
    ("kernel", "capability", "runs"),
    [
        ("machete", (8, 9), False),
        ("machete", (9, 0), True),
        ("machete", (10, 0), False),
        ("swordfish", (9, 0), False),
        ("swordfish", (10, 0), True),
        ("swordfish", (10, 3), True),
        ("swordfish", (11, 0), True),
        ("swordfish", (12, 0), False),
        ("swordfish", (12, 1), False),
        ("marlin-gptq", (7, 2), False),
        ("marlin-gptq", (7, 5), True),
        ("marlin-awq", (7, 5), False),
        ("marlin-awq", (8, 0), True),
    ],
)
def test_kernels_by_compute_capability(matrix: Matrix, kernel: str, capability: tuple[int, int], runs: bool) -> None:
    found = replace(device("H100"), compute_capability=capability)
    support = matrix.backend("gptqmodel", found, kernel)
    assert support.runs == runs
    assert runs or support.needed


def test_qqq_multiplies_in_int8_from_80(matrix: Matrix) -> None:
    for name, status in {"T4": "dequantized", "A100": "native", "MI300X": "native", "Ice Lake": "dequantized"}.items():
        assert matrix.backend("gptqmodel", device(name), "qqq").status == status


def test_gptq_on_turing_says_that_marlin_is_fp16_only_and_awq_that_there_is_none(matrix: Matrix) -> None:
    assert "fp16 only" in matrix.support(registry.get("gptq"), device("T4")).reason
    assert "8.0 for AWQ" in matrix.support(registry.get("awq"), device("T4")).reason


@pytest.mark.parametrize("name", ["L4", "L40S", "RTX 4090"])
def test_fbgemm_does_not_use_adas_fp8_units(matrix: Matrix, name: str) -> None:
    assert matrix.units("fp8", device(name)).status == "native"
    support = matrix.support(Format("fp8@fbgemm", backend="fbgemm-fp8", numeric="fp8", **FP8), device(name))
    assert support.status == "unsupported"
    assert "9.0" in support.needed
    assert matrix.backend("fbgemm-fp8", device("H100"), "fp8").status == "native"
    assert matrix.support(registry.get("fp8"), device(name)).status == "native", "torchao's does"


@pytest.mark.parametrize("name", ["B200", "B300", "RTX 5090", "GB10"])
def test_int8_on_blackwell_is_a_matter_of_wiring(matrix: Matrix, name: str) -> None:
    assert matrix.units("int8", device(name)).status == "native"
    for format in ("int8", "w8a8"):
        assert matrix.support(registry.get(format), device(name)).status == "native"
    support = matrix.support(Format("w8a8@vllm", backend="vllm", numeric="int8", **W8A8), device(name))
    assert support.status == "unsupported"
    assert "wiring, not of hardware" in support.reason
    assert "vllm-project/vllm#54316" in support.needed
    assert matrix.backend("vllm", device("H100"), "w8a8").status == "native"


def test_fnuz_on_gfx942_against_ocp_on_gfx950_and_gfx12(matrix: Matrix) -> None:
    for numeric in ("fp8", "fp8_e5m2"):
        assert "FNUZ" in matrix.units(numeric, device("MI300X")).reason
        for name in ("MI355X", matrix_devices.RDNA4):
            reason = matrix.units(numeric, device(name)).reason
            assert "OCP" in reason
            assert "FNUZ" not in reason
    for format in ("fp8", "fp8-weight-only"):
        assert "FNUZ" in matrix.support(registry.get(format), device("MI300X")).reason
    assert "FNUZ" not in matrix.backend("torchao", device("MI355X"), "fp8").reason


def test_torchao_refuses_rdna4_that_has_the_units(matrix: Matrix) -> None:
    found = device(matrix_devices.RDNA4)
    assert matrix.units("fp8", found).status == "native"
    support = matrix.support(registry.get("fp8"), found)
    assert support.status == "unsupported"
    assert "RDNA4 has the units" in support.reason
    assert "MI300" in support.needed


def test_mps_has_no_fp8_at_all(matrix: Matrix) -> None:
    found = device(matrix_devices.APPLE)
    assert matrix.units("fp8", found).status == "unsupported"
    fp8 = [name for name in registry.formats() if name.startswith("fp8")]
    assert len(fp8) >= 5
    for name in fp8:
        for require_native in (None, False):
            assert not matrix.support(registry.get(name), found, require_native=require_native).runs, name
    for name in ("nf4", "int4@quanto", "int8-weight-only@quanto", "gptq", "gguf"):
        assert matrix.support(registry.get(name), found).runs, name


def test_hopper_and_blackwell_have_no_int4_units(matrix: Matrix) -> None:
    assert matrix.units("int4", device("A10G")).status == "native"
    for name in ("H100", "B200", "RTX 5090"):
        assert matrix.units("int4", device(name)).status == "dequantized"
    for name in matrix_devices.ALL:
        for format in ("int4@quanto", "gptq", "awq", "w4a16", "gguf"):
            assert matrix.support(registry.get(format), device(name)).status == "dequantized", (format, name)


def test_torchaos_int8_falls_back_silently(matrix: Matrix) -> None:
    below = matrix.support(registry.get("w8a8"), device("V100"), require_native=False)
    assert below.status == "dequantized"
    assert "silently" in matrix.backend("torchao", device("V100"), "w8a8").reason
    assert not matrix.support(registry.get("w8a8"), device("V100")).runs
    for name in ("Haswell", "Graviton2", "Graviton3"):
        assert matrix.support(registry.get("w8a8"), device(name)).status == "dequantized"
        assert "scalar" in matrix.backend("torchao", device(name), "w8a8").reason
