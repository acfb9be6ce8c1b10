"""From a model, a format and what the user asks of the engine to the arguments of ``vllm.LLM``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.vllm import support
from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device

MOST_TOP = 1024
"""Log-probabilities at one position that may be asked for."""
_OFFLOADING = (
    "weights outside of the device are fetched anew for each step, which the limits of speed and the bytes that are "
    "reported would not know of; use a narrower format, tensor_parallel_size, or device_map with engine transformers"
)
_OURS = {
    "model": "the model is quant_model's, or the fixture's",
    "tokenizer": "the tokenizer is the model's",
    "revision": "the revision is the model's",
    "trust_remote_code": "it is quant_trust_remote_code's to say",
    "dtype": 'the type is the format\'s: formats=["bf16"], reference="fp32"',
    "quantization": 'the quantization is the format\'s: formats=["fp8"]',
    "quantization_config": 'the quantization is the format\'s: formats=["fp8"]',
    "load_format": "it follows from the format",
    "max_logprobs": "scoring needs as many as it asks for",
    "logprobs_mode": "losses are of the plain softmax of the logits",
    "generation_config": "nothing of the model's generation config may change what is measured",
    "override_generation_config": "nothing of the model's generation config may change what is measured",
    "logits_processors": "losses are of the plain softmax of the logits",
    "worker_extension_cls": "the proof of the format looks into the workers with it",
    "enable_prefix_caching": "a window or a prompt that is read again must be read again",
    "async_scheduling": "each step is timed by itself, and nothing may run between two of them",
    "seed": "runs must repeat themselves",
    "skip_tokenizer_init": "texts are generated too",
    "disable_log_stats": "nobody reads them",
    "data_parallel_size": "one engine is measured at a time",
    "offload_backend": _OFFLOADING,
    "cpu_offload_gb": _OFFLOADING,
    "cpu_offload_params": _OFFLOADING,
    "offload_group_size": _OFFLOADING,
    "offload_num_in_group": _OFFLOADING,
    "offload_prefetch_step": _OFFLOADING,
    "offload_params": _OFFLOADING,
}
"""Arguments that are not the user's to give, and where they come from."""
_OF_THE_MACHINE = (
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "num_gpu_blocks_override",
    "distributed_executor_backend",
    "download_dir",
    "hf_token",
    "device_ids",
    "master_addr",
    "master_port",
    "distributed_timeout_seconds",
    "max_parallel_loading_workers",
    "ray_workers_use_nsight",
    "safetensors_load_strategy",
    "safetensors_prefetch_num_threads",
    "safetensors_prefetch_block_size",
    "use_tqdm_on_load",
    "log_level",
    "log_config_file",
    "logging_config",
    "otlp_traces_endpoint",
    "numa_bind",
    "numa_bind_nodes",
    "numa_bind_cpus",
)
"""Arguments that differ from machine to machine and change no answer."""
_PATHS = ("/", "~", "./", "../")
"""How a path begins that is no hub id."""
_FOLDERS = ("cache_dir", "dump_path", "profiler_dir")
"""How the names of arguments end, of arguments within others too, that say where something is put."""
_SHARE = 0.45
"""Of a GPU's memory, for each engine: a format and its reference are there together while their speeds are compared."""
_EXTENSION = "pytest_quant.engines.vllm.inspection.Inspection"


def check(engine_args: Mapping[str, Any]) -> None:
    """:class:`UsageError` where the user gives what is not theirs to give."""
    for name in engine_args:
        if not isinstance(name, str) or not name.isidentifier():
            raise UsageError(f"an engine argument is called {name!r}: vLLM's have underscores, as in max_model_len")
        if name in _OURS:
            raise UsageError(f"the engine argument {name!r} cannot be given: {_OURS[name]}")
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = engine_args.get(name, 1)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"the engine argument {name}={size!r} must be 1 or more")


def check_parallel(engine_args: Mapping[str, Any], device: Device) -> None:
    """:class:`Unsupported` where the engine is to be spread over more devices than there are, or over Ray, which is
    missing."""
    ray = engine_args.get("distributed_executor_backend") == "ray"
    if ray and not support.installed("ray"):
        raise Unsupported('distributed_executor_backend="ray"', "ray not installed", "pip install ray")
    sizes = {name: engine_args.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    needed = sizes["tensor_parallel_size"] * sizes["pipeline_parallel_size"]
    if needed > device.count and device.kind != "cpu" and not ray:  # on a CPU processes share it; Ray has other nodes
        raise Unsupported(
            asked=", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1),
            found=f"{device.count} visible device{'s' if device.count > 1 else ''} ({device.name})",
            needed=f"{needed} devices of one kind",
        )


def kv_cache_dtype(format: Format, engine_args: Mapping[str, Any], *, is_reference: bool) -> str | None:
    """What the KV cache is to be stored in: as the format's name says, or the user's ``kv_cache_dtype``, which no
    reference takes; ``None``: in the model's own type. :class:`UsageError` where both say something,
    :class:`Unsupported` where vLLM has no such cache."""
    told = engine_args.get("kv_cache_dtype")
    told = None if is_reference or told == "auto" else told
    if told is not None and not isinstance(told, str):
        raise UsageError(f"the engine argument kv_cache_dtype={told!r} is no name of a type, such as fp8")
    if format.kv_cache is None:
        return told
    if told is not None:
        raise UsageError(
            f"{format.name} says already how keys and values are kept, and so does the engine argument "
            f"kv_cache_dtype={told!r}: leave out one of them"
        )
    if (format.kv_cache.stored.type, format.kv_cache.stored.num_bits) != ("float", 8):
        raise Unsupported(
            asked=f"{format.name} with engine vllm",
            found="a KV cache that vLLM does not have: transformers' own",
            needed=f"{format.base}+kv-fp8, or engine transformers",
        )
    return "fp8"


def arguments(
    source: ModelSource,
    format: Format,
    compute_dtype: str,
    device: Device,
    checkpoint: str | None = None,
    engine_args: Mapping[str, Any] | None = None,
    *,
    is_reference: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of ``vllm.LLM``. ``compute_dtype`` is torch's name of the type that is computed in; the engine
    may insist on another (:func:`support.computes_in`). Raises what :func:`check`, :func:`check_parallel` and
    :func:`kv_cache_dtype` do."""
    told = dict(engine_args or {})
    check(told)
    check_parallel(told, device)
    cache = kv_cache_dtype(format, told, is_reference=is_reference)
    told.pop("kv_cache_dtype", None)
    found: dict[str, Any] = {"gpu_memory_utilization": _SHARE} if device.kind != "cpu" else {"enforce_eager": True}
    found |= told
    found |= {
        "model": checkpoint or source.name,
        "dtype": support.computes_in(format, device, compute_dtype),
        "trust_remote_code": source.trust_remote_code,
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "max_logprobs": MOST_TOP,
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
        "seed": 0,
        "worker_extension_cls": _EXTENSION,
    }
    if checkpoint is None and source.revision is not None:
        found["revision"] = source.revision
    if checkpoint is not None:
        found["tokenizer"] = source.name
        if source.revision is not None:
            found["tokenizer_revision"] = source.revision
    if (quantization := support.quantization(format, device)) is not None:
        found["quantization"] = quantization
    if cache is not None:
        found["kv_cache_dtype"] = cache
    return found


def identity(
    format: Format,
    device: Device,
    engine_args: Mapping[str, Any] | None = None,
    *,
    is_reference: bool = False,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What of the engine belongs to a measurement's identity, as plain JSON: how it quantizes, what the user asked for
    and changes answers or speeds, and the environment's ``numbers``. What only says where things are is left out: of
    a path its last name stays, of a folder for caches nothing."""
    kept = {
        name: _plain(value)
        for name, value in sorted((engine_args or {}).items())
        if name not in (*_OF_THE_MACHINE, "kv_cache_dtype") and not name.endswith(_FOLDERS)
    }
    found: dict[str, Any] = {"name": "vllm"}
    if (quantization := support.quantization(format, device)) is not None:
        found["quantization"] = quantization
    if (cache := kv_cache_dtype(format, engine_args or {}, is_reference=is_reference)) is not None:
        kept["kv_cache_dtype"] = cache
    if kept:
        found["args"] = dict(sorted(kept.items()))
    if environment:
        found["environment"] = dict(sorted(environment.items()))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {str(key): each for key, each in value.items() if not str(key).endswith(_FOLDERS)}
        return {key: _plain(each) for key, each in sorted(kept.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and value.startswith(_PATHS)):
        return PurePath(value).name
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
