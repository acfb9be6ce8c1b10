"""Proof of quantization from what vLLM's workers tell (:mod:`.inspection`). Pure.

vLLM fuses matrices (queries, keys and values; gate and up), so weights are compared by their number, not by name. On a
CPU it repacks them and empties the parameters: bytes are then those of the checkpoint, as they are loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quant.engines.vllm import support
from pytest_quant.engines.vllm.stored import Tensor, bytes_of, loaded_bytes
from pytest_quant.errors import ProofFailed
from pytest_quant.formats.format import Format
from pytest_quant.formats.proof import MIN_SHARE, Proof, is_excluded, matching_nothing

_SCHEME = re.compile(r"W(?P<bits>\d+|N)A(?P<activations>\d+|N)(?P<type>Int|Fp|Nv|Mx)?", re.IGNORECASE)
_TYPES = (("fp8", (8, "float")), ("mxfp4", (4, "float")), ("nvfp4", (4, "float")), ("int8", (8, "int")))
_BY_BITS = (("awq", "int"), ("gptq", "int"), ("bitsandbytes", "float"))


def prove(
    workers: Sequence[Mapping[str, Any]],
    format: Format,
    eligible: Mapping[str, int],
    *,
    dtype: str,
    kv_cache_dtype: str | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    tied: bool = False,
    on_cpu: bool = False,
) -> Proof:
    """The proof of a model in ``format``, computing in ``dtype``.

    ``eligible`` gives the number of weights of each parameter that a matrix product uses, by name, embeddings and head
    apart; ``tensors`` are those of the checkpoint, if it is at hand. Raises :class:`ProofFailed` with the figures.
    """
    if unknown := matching_nothing(format, list(eligible)):
        raise ProofFailed(f"{format.name} excludes {', '.join(unknown)}, which matches no weight of the model")
    asked = {name: count for name, count in eligible.items() if not is_excluded(name, format)}
    modules = _matrices(workers)
    kernels = Counter(_kernel(module) for module in modules)
    plain = support.is_plain(format)
    fitting = [module for module in modules if _fits(module, format, plain=plain)]
    share = _share(fitting, asked, format, plain=plain)
    made = on_cpu and not plain and not format.from_checkpoint  # the checkpoint's bytes are those of the base model
    held = bool(modules) and all(module["bytes"] for module in modules)
    by_dtype = _bytes(workers, None if made and held else tensors, dtype, tied=tied, on_cpu=on_cpu)
    proof = Proof(
        format=format.name,
        quantized_weight_share=share,
        bits_per_weight=_bits_per_weight(modules, workers, asked, format, tensors, dtype, on_cpu=on_cpu),
        weight_bytes=sum(by_dtype.values()),
        bytes_by_dtype=by_dtype,
        kernels=dict(kernels),
        left_out=tuple(module["name"] for module in modules if module not in fitting),
        parameters=_told(fitting, of_files=on_cpu and tensors is not None and not (made and held)),
        kv_cache=_kv_cache(workers, format, kv_cache_dtype),
    )
    _check(proof, modules, workers, format, dtype, plain=plain)
    return proof


def representation(module: Mapping[str, Any]) -> tuple[int, str] | None:
    """Bits and type of a module's weights from the classes that hold and multiply them; ``None`` where they are not
    quantized, or in a way that is not known."""
    if module["method"].startswith("Unquantized"):
        return None
    found = _SCHEME.search(module["scheme"] or "")
    if found is not None:
        bits = module["bits"] if found["bits"] in "Nn" else int(found["bits"])
        kind = (found["type"] or "int").lower()
        return (bits, "int" if kind == "int" else "float") if bits else None
    name = (module["scheme"] or module["method"]).lower()
    for word, answer in _TYPES:
        if word in name:
            return answer
    for word, kind in _BY_BITS:
        if word in name:
            bits = module["bits"] or 4
            return bits, "int" if bits == 8 else kind
    if "fp8" in name or "ptpc" in name:
        return 8, "float"
    return None


def activation_bits(module: Mapping[str, Any]) -> int | None:
    """Bits of the activations that a scheme of compressed-tensors multiplies with; ``None`` where it does not say."""
    found = _SCHEME.search(module["scheme"] or "")
    return int(found["activations"]) if found is not None and found["activations"].isdigit() else None


def kv_bytes(kv_cache: Sequence[Mapping[str, Any] | None], sequences: int, tokens: int) -> int:
    """Bytes of the pages that the workers' KV caches (:mod:`.inspection`) give to so many sequences of so many tokens:
    whole pages, and of a layer with a sliding window those that a window may touch."""
    total = 0
    for cache in kv_cache:
        for layer in cache["layers"] if cache else ():
            window, size = layer["window"], layer["block_size"]
            pages = -(-tokens // size)
            if window:
                pages = min(pages, -(-window // size) + 1)
            total += pages * layer["page_bytes"]
    return sequences * total


def kv_room(kv_cache: Sequence[Mapping[str, Any] | None]) -> int:
    """Tokens that the smallest of the workers' KV caches has room for."""
    rooms = [
        cache["blocks"] * min(layer["block_size"] for layer in cache["layers"])
        for cache in kv_cache
        if cache and cache["layers"]
    ]
    return min(rooms, default=0)


def _matrices(workers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Modules that multiply, embeddings, head and attention apart; each once, though several workers have parts."""
    found: dict[str, Mapping[str, Any]] = {}
    for worker in workers:
        for module in worker["modules"]:
            if module["weights"] and "VocabParallelEmbedding" not in module["classes"]:
                found.setdefault(module["name"], module)
    return list(found.values())


def _share(fitting: Sequence[Mapping[str, Any]], asked: Mapping[str, int], format: Format, *, plain: bool) -> float:
    """Share of the weights asked for that are in the format. :class:`ProofFailed` where more are than were asked for,
    which would hide others that are not; a plain model may have more that are plain."""
    found, wanted = sum(module["weights"] or 0 for module in fitting), sum(asked.values())
    if found > wanted and not plain:
        raise ProofFailed(
            f"whether the model is in {format.name} is not known: vLLM holds {found:,} weights in it, but only "
            f"{wanted:,} are asked for; the share of these cannot be told"
        )
    return min(1.0, found / wanted) if wanted else 0.0


def _fits(module: Mapping[str, Any], format: Format, *, plain: bool) -> bool:
    stored = representation(module)
    if plain:
        return bool(module["method"].startswith("Unquantized"))
    if format.base == "gguf":
        return "gguf" in module["method"].lower()
    if stored != (format.weights.num_bits, format.weights.type):
        return False
    wanted, found = format.parameters.get("activation_bits"), activation_bits(module)
    return wanted is None or found is None or wanted == found


def _kernel(module: Mapping[str, Any]) -> str:
    doing = module["scheme"] or module["method"]
    return f"{module['classes'][0]} {doing}" + (f" {module['kernel']}" if module["kernel"] else "")


def _bytes(
    workers: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, Tensor] | None,
    dtype: str,
    *,
    tied: bool,
    on_cpu: bool,
) -> dict[str, int]:
    """True bytes of the weights: what loading them took on the devices, or on a CPU those of the checkpoint."""
    if not on_cpu and all(worker["memory_bytes"] for worker in workers):
        return {"device": sum(worker["memory_bytes"] for worker in workers)}
    if tensors:
        return loaded_bytes(tensors, dtype, tied=tied)
    return {"parameters": sum(worker["parameter_bytes"] for worker in workers)}


def _bits_per_weight(
    modules: Sequence[Mapping[str, Any]],
    workers: Sequence[Mapping[str, Any]],
    eligible: Mapping[str, int],
    format: Format,
    tensors: Mapping[str, Tensor] | None,
    dtype: str,
    *,
    on_cpu: bool,
) -> float:
    weights = sum(eligible.values())
    if not weights:
        return 0.0
    if on_cpu:
        if tensors and (format.from_checkpoint or support.is_plain(format)):
            return 8.0 * bytes_of(tensors, list(eligible), dtype) / weights
        bits = [found[0] for module in modules if (found := representation(module)) is not None]
        return float(max(bits, default=0))
    names = {module["name"] for module in modules}
    held = sum(module["bytes"] for worker in workers for module in worker["modules"] if module["name"] in names)
    return float(8.0 * held / weights)


def _told(modules: Sequence[Mapping[str, Any]], *, of_files: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    schemes = {module["scheme"] or module["method"] for module in modules}
    if len(schemes) == 1:
        found["scheme"] = next(iter(schemes))
    if of_files:
        found["bytes"] = "of the checkpoint, for vLLM repacks the weights"
    return found


def _kv_cache(workers: Sequence[Mapping[str, Any]], format: Format, asked: str | None) -> dict[str, Any]:
    """The figures of the KV cache, where one was asked for. :class:`ProofFailed` where it is in another type."""
    kept = {layer["dtype"] for worker in workers for layer in worker["attention"]}
    other = sorted(name for name in kept if not _same_cache(name, asked))
    if other or (asked is not None and not kept):
        raise ProofFailed(
            f"not in {format.name}: the KV cache is in {', '.join(other) or 'no attention layer'}, not in "
            f"{asked or 'the type that is computed in'}"
        )
    if asked is None:
        return {}
    layers = [layer for worker in workers for layer in (worker["kv_cache"] or {"layers": ()})["layers"]]
    found: dict[str, Any] = {"dtype": asked, "library": "vllm", "layers": len({layer["name"] for layer in layers})}
    if layers and all(layer["values"] for layer in layers):
        bits = 8.0 * sum(layer["page_bytes"] for layer in layers) / sum(layer["values"] for layer in layers)
        found["bits_per_value"] = bits
        if bits >= 16:
            raise ProofFailed(f"not in {format.name}: keys and values take {bits:.1f} bits each, asked for {asked}")
    return found


def _same_cache(kept: str, asked: str | None) -> bool:
    if asked is None:
        return kept in ("auto", "float16", "bfloat16", "float32")
    return kept == asked or {kept, asked} == {"fp8", "fp8_e4m3"}


def _check(
    proof: Proof,
    modules: Sequence[Mapping[str, Any]],
    workers: Sequence[Mapping[str, Any]],
    format: Format,
    dtype: str,
    *,
    plain: bool,
) -> None:
    if wrong := {worker["dtype"] for worker in workers} - {dtype}:
        raise ProofFailed(f"loaded as {format.name}, but vLLM computes in {', '.join(wrong)}, not in {dtype}")
    kernels = ", ".join(f"{name} {number}" for name, number in sorted(proof.kernels.items())) or "none"
    if plain and proof.left_out:
        raise ProofFailed(f"not in {format.name}: it is quantized; kernels {kernels}")
    if not plain and all(module["method"].startswith("Unquantized") for module in modules):
        raise ProofFailed(
            f"not in {format.name}: nothing was quantized, all {len(modules)} matrices are multiplied as they came; "
            f"kernels {kernels}"
        )
    if proof.quantized_weight_share < MIN_SHARE:
        raise ProofFailed(
            f"not in {format.name}: {proof.quantized_weight_share:.1%} of the eligible weights are (at least "
            f"{MIN_SHARE:.0%} must be); kernels {kernels}; left out: {', '.join(proof.left_out[:3]) or 'none known'}"
        )
