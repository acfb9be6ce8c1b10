"""What a worker of vLLM tells of the model that it has loaded. Runs in the workers (``worker_extension_cls``).

The answers are plain data; what they prove is :mod:`.proof`'s to say.
"""

from __future__ import annotations

from typing import Any

_SIZES = ("input_size", "output_size")
_HEADS = ("total_num_heads", "total_num_kv_heads", "head_size", "v_head_size")
"""What a layer of queries, keys and values knows; more workers than KV heads have a copy of one each."""


class Inspection:
    """Mixed into vLLM's worker class."""

    model_runner: Any

    def pytest_quant_inspect(self) -> dict[str, Any]:
        """Modules with a quantization method, attention layers, the KV cache and the memory of this worker's part."""
        model = self.model_runner.get_model()
        modules = list(model.named_modules())
        usage = getattr(self.model_runner, "model_memory_usage", None)
        return {
            "modules": [_module(name, module) for name, module in modules if _method(module) is not None],
            "attention": [
                {"name": name, "dtype": str(module.kv_cache_dtype)}
                for name, module in modules
                if isinstance(getattr(module, "kv_cache_dtype", None), str) and hasattr(module, "kv_cache")
            ],
            "kv_cache": _kv_cache(getattr(self.model_runner, "kv_cache_config", None)),
            "memory_bytes": int(usage) if usage else None,
            "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "dtype": str(self.model_runner.model_config.dtype).removeprefix("torch."),
        }


def _method(module: Any) -> Any:
    method = getattr(module, "quant_method", None)
    return method if hasattr(method, "process_weights_after_loading") or hasattr(method, "apply") else None


def _module(name: str, module: Any) -> dict[str, Any]:
    method, scheme = _method(module), getattr(module, "scheme", None)
    return {
        "name": name,
        "classes": [kind.__name__ for kind in type(module).__mro__],
        "method": type(method).__name__,
        "scheme": None if scheme is None else type(scheme).__name__,
        "bits": _bits(scheme, method),
        "kernel": _kernel(scheme, method),
        "weights": _weights(module),
        "parameters": {
            key: [str(parameter.dtype).removeprefix("torch."), list(parameter.shape)]
            for key, parameter in module.named_parameters(recurse=False)
        },
        "bytes": sum(p.numel() * p.element_size() for p in module.parameters(recurse=False)),
    }


def _bits(scheme: Any, method: Any) -> int | None:
    """Bits of a weight, where the scheme or the method says so in a number."""
    places = (scheme, method, getattr(method, "quant_config", None), getattr(scheme, "weight_quant", None))
    for place in places:
        for key in ("num_bits", "weight_bits"):
            found = getattr(place, key, None)
            if isinstance(found, int) and found:
                return found
    for place in places:
        found = getattr(getattr(place, "quant_type", None), "size_bits", None)
        if isinstance(found, int):
            return found
    return None


def _kernel(scheme: Any, method: Any) -> str | None:
    """The class of the kernel that the matrix products run in, where it is kept."""
    for place in (scheme, method):
        for key in ("kernel", "fp8_linear"):
            found = getattr(place, key, None)
            if found is not None:
                return type(found).__name__
    return None


def _weights(module: Any) -> int | None:
    """Weights of the whole layer, whatever part of it this worker has; ``None`` where that is not known."""
    sizes = [getattr(module, key, None) for key in _SIZES]
    heads = [getattr(module, key, None) for key in _HEADS]
    if all(isinstance(size, int) for size in (sizes[0], *heads)):  # the output's size counts replicated KV heads again
        queries, kept, size, of_values = heads
        sizes[1] = queries * size + kept * (size + of_values)  # type: ignore[operator]
    if all(isinstance(size, int) for size in sizes):
        return int(sizes[0] * sizes[1])  # type: ignore[operator]
    experts = getattr(module, "global_num_experts", None)
    config = getattr(module, "moe_config", None)
    hidden, inner = getattr(config, "hidden_dim", None), getattr(config, "intermediate_size", None)
    if inner is None:
        part = getattr(module, "intermediate_size_per_partition", None)
        inner = None if part is None else part * getattr(module, "tp_size", 1)
    if all(isinstance(size, int) for size in (experts, hidden, inner)):
        return int(3 * experts * hidden * inner)  # type: ignore[operator]
    return None


def _kv_cache(config: Any) -> dict[str, Any] | None:
    """Pages of the KV cache by layer; ``None`` where the worker has none."""
    if config is None:
        return None
    layers = []
    for group in config.kv_cache_groups:
        for name in group.layer_names:
            spec = group.kv_cache_spec
            spec = getattr(spec, "kv_cache_specs", {}).get(name, spec)
            layers.append(
                {
                    "name": name,
                    "kind": type(spec).__name__,
                    "block_size": int(spec.block_size),
                    "page_bytes": int(spec.page_size_bytes),
                    "values": _values(spec),
                    "dtype": str(getattr(spec, "dtype", "")).removeprefix("torch.") or None,
                    "window": getattr(spec, "sliding_window", None),
                }
            )
    return {"blocks": int(config.num_blocks), "layers": layers}


def _values(spec: Any) -> int | None:
    """Keys and values in a page; ``None`` for a cache that keeps something else."""
    heads, size = getattr(spec, "num_kv_heads", None), getattr(spec, "head_size", None)
    if heads is None or size is None or "MLA" in type(spec).__name__:
        return None
    return int(spec.block_size * heads * (size + (getattr(spec, "head_size_v", None) or size)))
