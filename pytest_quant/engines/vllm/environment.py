"""The environment variables that an engine's process is started with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest_quant

_ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that the steps of a decode can be taken one by one
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "1",  # from Python 3.11 on: no modules from the folder that a run is in
}
_UNLESS_SET = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}
_ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # 4-bit weights would be multiplied by 8-bit activations on machines with AMX, and by wider ones on others
    "VLLM_CPU_INT4_W4A8": "0",
}
NUMBERS = (
    "VLLM_B12X_MOE_FP4_FORCE_A16",
    "VLLM_BATCH_INVARIANT",
    "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER",
    "VLLM_CPU_ATTN_SPLIT_KV",
    "VLLM_CPU_INT4_W4A8",
    "VLLM_DEEPEPLL_NVFP4_DISPATCH",
    "VLLM_DISABLED_KERNELS",
    "VLLM_ENABLE_FLA_PACKED_RECURRENT_DECODE",
    "VLLM_FLASHINFER_MOE_A2A_LOW_PRECISION_COMBINE",
    "VLLM_FLOAT32_MATMUL_PRECISION",
    "VLLM_GDN_DECODE_KERNEL",
    "VLLM_MARLIN_INPUT_DTYPE",
    "VLLM_MARLIN_USE_ATOMIC_ADD",
    "VLLM_MLA_DISABLE",
    "VLLM_MOE_ROUTING_SIMULATION_STRATEGY",
    "VLLM_MOE_USE_DEEP_GEMM",
    "VLLM_MXFP4_EMULATION_DEQUANT_AT_LOAD",
    "VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD",
    "VLLM_ROCM_FP8_MFMA_PAGE_ATTN",
    "VLLM_ROCM_USE_SKINNY_GEMM",
    "VLLM_USE_DEEP_GEMM",
    "VLLM_USE_DEEP_GEMM_E8M0",
    "VLLM_USE_DEEP_GEMM_TMA_ALIGNED_SCALES",
    "VLLM_USE_FLASHINFER_MOE_INT4",
    "VLLM_USE_FUSED_MOE_GROUPED_TOPK",
    "VLLM_USE_HW_AGNOSTIC",
    "VLLM_USE_OINK_OPS",
    "VLLM_USE_TRITON_AWQ",
    "VLLM_USE_V2_MODEL_RUNNER",
    "VLLM_XPU_INC_WNA16_BACKEND",
    "VLLM_ZENTORCH_WEIGHT_PREPACK",
)
"""Variables of vLLM 0.32 (its envs.py) that choose a kernel, a type or an order of sums, and so what a model answers:
those that are set belong to a measurement's identity."""
_FAMILIES = ("VLLM_HUMMING_", "VLLM_ROCM_QUICK_REDUCE_", "VLLM_ROCM_USE_AITER")
"""How the names of more of them begin."""


def environment(given: Mapping[str, str], kind: str, threads: int | None = None) -> dict[str, str]:
    """The variables for an engine on a device of a kind, from those of this process. On a CPU it computes with
    ``threads`` threads. What somebody has set stays, except for what the engine could not be driven with."""
    found = {**_UNLESS_SET, **(_ON_CPU if kind == "cpu" else {}), **given, **_ALWAYS}
    if kind == "cpu" and threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    package = str(Path(pytest_quant.__file__).parent.parent)
    path = given.get("PYTHONPATH", "")
    if package not in path.split(":"):
        found["PYTHONPATH"] = f"{package}:{path}" if path else package
    return found


def numbers(environment: Mapping[str, str]) -> dict[str, str]:
    """Of the variables, those that change what a model answers."""
    return {name: value for name, value in sorted(environment.items()) if name in NUMBERS or name.startswith(_FAMILIES)}
