"""KV cache formats: the part of a format's name behind ``+`` (``nf4+kv-int4``), and the proof that a cache is in it.

transformers' quantized cache returns the keys and values of its first forward as they came, and stores them quantized
for the next. Later ones it keeps as they are until ``residual_length`` of them are there, then it quantizes the whole
cache anew. So one forward over a window reads nothing that was quantized; scoring feeds windows in steps instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import ProofFailed, Unsupported, UsageError
from pytest_quant.formats.backend import missing_packages
from pytest_quant.formats.backends.quanto import no_compiler
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import Device

if TYPE_CHECKING:
    import torch

FIRST = 16
"""Tokens of the first step: the prompt, after which all is read from the cache."""
_STEP = 128
_RESIDUAL = 128
_GROUP = 64
_GROUPS = (16, 32, 64, 128)
_OFFERED = {
    "int8": ("hqq",),
    "int4": ("quanto", "hqq"),
    "int2": ("quanto", "hqq"),
    "int1": ("hqq",),
    "fp8": ("transformers",),
}
"""Libraries by type, the default one first. HQQ's 3 bits cannot be unpacked from a cache grouped along the heads."""
_BACKENDS = {"quanto": "quanto", "hqq": "hqq", "transformers": "torch_native"}
_AXES = {"quanto": 0, "hqq": 1}
"""Which of its axes each library must be told, to group values of one token's head."""
_SUFFIX = re.compile(r"kv-(?P<type>[a-z]+[0-9]+)(-g(?P<group>[0-9]+))?(@(?P<library>\w+))?")
_SLACK = 1.1


@dataclass(frozen=True)
class KVCache:
    """How keys and values are kept."""

    stored: QuantizationArgs
    library: str
    """``quanto``, ``hqq`` or ``transformers``, whose own code it is."""
    residual_length: int
    """Of the newest tokens up to so many, less one, are kept as they came; 0: none are."""

    @property
    def depends_on_company(self) -> bool:
        """Whether what is stored of a sequence depends on the others of its batch: HQQ improves its scales until the
        mean error of all grows, FP8 has one scale for all."""
        return self.library != "quanto"

    def described(self) -> dict[str, Any]:
        """As it goes into a measurement's identity, with the steps that windows are fed in."""
        found: dict[str, Any] = {
            "num_bits": self.stored.num_bits,
            "type": self.stored.type,
            "strategy": self.stored.strategy,
            "library": self.library,
            "residual_length": self.residual_length,
            "first_step": FIRST,
            "step": _STEP,
        }
        if self.stored.group_size is not None:
            found["group_size"] = self.stored.group_size
        return found

    def steps(self, length: int) -> list[int]:
        """In which pieces a sequence is fed: a prompt, then as many tokens as are kept unquantized at most. Every token
        reads then what it would read if all after the prompt were fed one by one."""
        sizes = [min(FIRST, length)]
        while (left := length - sum(sizes)) > 0:
            sizes.append(min(_STEP, left))
        return sizes

    def unquantized(self, length: int) -> int:
        """How many of the newest tokens are kept as they came, after a sequence was fed in steps."""
        return (length - FIRST) % self.residual_length if self.residual_length and length > FIRST else 0

    def check_length(self, longest: int) -> None:
        """:class:`UsageError` where no window is long enough for anything to be read from the cache; ``longest`` counts
        a window's tokens."""
        if longest - 1 <= FIRST:
            raise UsageError(
                f"windows of {longest} tokens read nothing from a KV cache that is filled by their first {FIRST}; take "
                f"longer ones (--quant-protocol)"
            )

    def fullest(self, length: int) -> list[int]:
        """Pieces after which the cache takes the most that it ever does with so many tokens: the newest are not
        quantized yet."""
        residual = min(max(self.residual_length - 1, 0), length - 1)
        return [size for size in (length - residual, residual) if size]

    def new(self, config: Any) -> Any:
        """An empty cache of transformers. ``ValueError`` where it has none for such a model."""
        from transformers import QuantizedCache

        if self.library == "transformers":
            return QuantizedCache("fp8", config)
        axis = _AXES[self.library]
        return QuantizedCache(
            self.library,
            config,
            nbits=self.stored.num_bits,
            axis_key=axis,
            axis_value=axis,
            q_group_size=self.stored.group_size,
            residual_length=self.residual_length,
        )


def with_cache(base: Format, suffix: str) -> Format:
    """The format with its KV cache in the one that ``suffix`` names, ``kv-int4`` for instance; :class:`UsageError`
    where there is none of that name."""
    kv_cache = _parse(suffix)
    instead = [f"{name}+{suffix}" for name in base.instead] + [f"{base.name}+{other}" for other in _others(kv_cache)]
    return replace(base, name=f"{base.name}+{suffix}", kv_cache=kv_cache, instead=tuple(instead))


def _parse(suffix: str) -> KVCache:
    found = _SUFFIX.fullmatch(suffix)
    offered = _OFFERED.get(found["type"], ()) if found else ()
    library = (found["library"] or next(iter(offered), None)) if found else None
    if found is None or library not in offered:
        raise UsageError(f"there is no KV cache format {suffix!r}; there are {', '.join(_names())}")
    if found["type"] == "fp8":
        if found["group"]:
            raise UsageError(f"{suffix!r}: FP8 has one scale for the whole cache, no groups; write kv-fp8")
        return KVCache(QuantizationArgs(8, "float", "tensor", dynamic=True), library, 0)
    group = int(found["group"] or _GROUP)
    if group not in _GROUPS:
        sizes = ", ".join(str(size) for size in _GROUPS)
        raise UsageError(f"{suffix!r}: groups of {group} values; there are those of {sizes}")
    bits = int(found["type"].removeprefix("int"))
    stored = QuantizationArgs(bits, "int", "group", group_size=group, symmetric=False, dynamic=True)
    return KVCache(stored, library, _RESIDUAL)


def _others(kv_cache: KVCache) -> list[str]:
    """The same type and groups by other libraries."""
    kind = f"{'fp' if kv_cache.stored.type == 'float' else 'int'}{kv_cache.stored.num_bits}"
    grouped = "" if kv_cache.stored.group_size in (None, _GROUP) else f"-g{kv_cache.stored.group_size}"
    return [f"kv-{kind}{grouped}@{library}" for library in _OFFERED[kind] if library != kv_cache.library]


def _names() -> list[str]:
    plain = [f"kv-{kind}" for kind in _OFFERED]
    return plain + [f"kv-{kind}@{library}" for kind, libraries in _OFFERED.items() for library in libraries[1:]]


def trouble(format: Format, device: Device) -> Unsupported | None:
    """Why the installed libraries cannot hold the format's KV cache on the device; ``None`` if they can, or if it has
    none. Imports none of them."""
    if format.kv_cache is None:
        return None
    library = format.kv_cache.library
    backend = import_module(f"pytest_quant.formats.backends.{_BACKENDS[library]}").BACKEND
    if absent := missing_packages(format, backend):
        return absent
    return no_compiler(format, device) if library == "quanto" else None


def check_model(format: Format, model: Any, plain: Any) -> None:
    """:class:`Unsupported` where the format's cache cannot hold what the model keeps: ``plain`` is transformers' own
    cache after a forward of the model, ``None`` where it takes none."""
    kv_cache, asked = format.kv_cache, f"the KV cache of {format.name}"
    if kv_cache is None:
        return
    name = type(model).__name__
    try:
        kv_cache.new(model.config)
    except ValueError as error:
        needed = "a model whose layers all attend to every token before, and a transformers that has this cache"
        raise Unsupported(asked, f"{name}, which transformers quantizes no cache for: {error}", needed) from error
    layers = [] if plain is None else plain.layers
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise Unsupported(asked, f"{name}, which does not keep keys and values", "a model of attention layers only")
    group, bits = kv_cache.stored.group_size, kv_cache.stored.num_bits
    if group is None:
        return
    for kept in (tensor for layer in layers for tensor in (layer.keys, layer.values)):
        heads, values = kept.shape[1], kept.shape[-1]
        if values % group:
            fitting = [str(size) for size in _GROUPS if values % size == 0]
            needed = f"groups of {' or '.join(fitting)}, such as kv-int{bits}-g{fitting[-1]}" if fitting else "others"
            raise Unsupported(asked, f"{name} with heads of {values} values, not divided by groups of {group}", needed)
        groups, packed = heads * values // group, 8 // bits
        if kv_cache.library == "hqq" and groups % packed:
            found = (
                f"{name} with {groups} groups in a token's keys: HQQ packs {packed} together, and fails at odd lengths"
            )
            quanto = f", or kv-int{bits}@quanto" if "quanto" in _OFFERED[f"int{bits}"] else ""
            raise Unsupported(asked, found, f"a number of groups that {packed} divides{quanto}")


def prove(format: Format, cache: Any, plain: Any) -> Mapping[str, Any]:
    """That ``cache`` holds, in every layer, what the unquantized cache ``plain`` holds of the same tokens, in the
    format: bits, groups and bytes, from the stored tensors. Returns the figures; :class:`ProofFailed` otherwise."""
    assert format.kv_cache is not None
    wanted = _figures(format.kv_cache)
    values = stored_bytes = 0
    scale = 0.0
    for number, (layer, reference) in enumerate(zip(cache.layers, plain.layers, strict=True)):
        for what in ("keys", "values"):
            where = f"the {what} of layer {number}"
            kept = getattr(layer, f"_quantized_{what}", None)
            found = _stored(kept)
            if found is None:
                raise ProofFailed(f"not in {format.name}: {where} are a {type(kept).__name__}, not quantized")
            if wrong := [key for key in wanted if found.get(key) != wanted[key]]:
                told = ", ".join(f"{key} is {found.get(key)!r}, asked for {wanted[key]!r}" for key in wrong)
                raise ProofFailed(f"not in {format.name}: in {where} {told}")
            whole = getattr(reference, what)
            residual = getattr(layer, what)
            held = tuple(found["shape"])
            waiting = residual.shape[-2] if residual.numel() else 0
            unquantized = format.kv_cache.unquantized(whole.shape[-2])
            if waiting != unquantized or (*held[:-2], held[-2] + waiting, held[-1]) != tuple(whole.shape):
                raise ProofFailed(
                    f"not in {format.name}: of {whole.shape[-2]} tokens {where} hold {held[-2]} quantized and "
                    f"{waiting} as they came, of which there should be {unquantized}"
                )
            count = whole[..., : held[-2], :].numel()
            values += count
            stored_bytes += footprint(kept).total
            scale += count * (_scale_bits(format.kv_cache, whole.dtype))
    expected = format.kv_cache.stored.num_bits + scale / values
    bits = 8.0 * stored_bytes / values
    if bits > expected * _SLACK:
        raise ProofFailed(
            f"not in {format.name}: its quantized keys and values take {bits:.2f} bits each, not {expected:.2f}"
        )
    return {**wanted, "library": format.kv_cache.library, "bits_per_value": bits, "layers": len(cache.layers)}


def _figures(kv_cache: KVCache) -> dict[str, Any]:
    found: dict[str, Any] = {"num_bits": kv_cache.stored.num_bits, "type": kv_cache.stored.type}
    if kv_cache.stored.group_size is not None:
        found["group_size"] = kv_cache.stored.group_size
    return found


def _scale_bits(kv_cache: KVCache, dtype: torch.dtype) -> float:
    """Bits that a scale and a zero point add to each value."""
    group = kv_cache.stored.group_size
    return 2 * 8 * dtype.itemsize / group if group is not None else 0.0


def _stored(kept: Any) -> dict[str, Any] | None:
    """How keys or values of a layer are stored, from the tensors: bits from the packed bytes, groups from the scales.
    ``None`` where they are not."""
    import torch

    if type(kept).__name__ == "WeightQBitsTensor":
        values, packed, scales = kept.numel(), kept._data._data, kept._scale
        return {"type": "int", "shape": kept.shape, **_packing(values, packed, scales)}
    if not isinstance(kept, tuple) or len(kept) != 2 or not isinstance(kept[0], torch.Tensor):
        return None
    packed, scale = kept
    if isinstance(scale, Mapping) and {"shape", "scale"} <= scale.keys():
        shape = scale["shape"]
        return {"type": "int", "shape": shape, **_packing(shape.numel(), packed, scale["scale"])}
    if packed.dtype is torch.float8_e4m3fn:
        return {"type": "float", "shape": packed.shape, "num_bits": 8}
    return None


def _packing(values: int, packed: torch.Tensor, scales: torch.Tensor) -> dict[str, Any]:
    """Packing fills up the last byte, so that a few bits more are rounded away. Scales of values that are not of one
    head would stand in one row."""
    return {
        "num_bits": round(8 * packed.numel() * packed.itemsize / values),
        "group_size": round(values / len(scales)),
    }
