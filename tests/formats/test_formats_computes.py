"""In which type kernels multiply what they unpacked: it decides which units bound them."""

from __future__ import annotations

import pytest

from pytest_quant.formats import registry
from pytest_quant.hardware import Device

OLD = Device("cpu", "intel", "an older CPU", "x86_64", features=frozenset({"avx2", "avx512"}))
NEW = Device("cpu", "amd", "a newer CPU", "x86_64", features=frozenset({"avx2", "avx512", "avx512_bf16"}))
GPU = Device("cuda", "nvidia", "NVIDIA H200", "sm_90", compute_capability=(9, 0))


def computes(name: str, device: Device, asked: str = "float32") -> str:
    format = registry.get(name)
    return registry.backend(format).computes_in(format, device, asked)


@pytest.mark.parametrize("name", ["nf4", "fp4", "gptq", "awq"])
def test_four_bits_are_multiplied_in_bf16_where_a_cpu_has_it(name):
    """bitsandbytes repacks at the first forward, gptqmodel's fused kernels round; whatever was asked for."""
    assert computes(name, NEW) == "bfloat16"
    assert computes(name, OLD) == "float32"
    assert computes(name, GPU, "float16") == "float16"


@pytest.mark.parametrize("name", ["int8", "fp32", "int8-weight-only", "int4@hqq"])
def test_other_kernels_do_as_they_are_told(name):
    assert computes(name, NEW) == "float32"


def test_a_library_that_insists_gets_its_way():
    assert computes("int4", GPU, "float16") == "bfloat16"
