"""The layers of a loaded model that can be put into a format one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.shape import eligible
from pytest_quant.errors import NotFinite, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.proof import is_excluded
from pytest_quant.formats.rounding import Rounding, rounded
from pytest_quant.formats.storage import footprint

if TYPE_CHECKING:
    import torch

    from pytest_quant.engines.transformers import TransformersModel
    from pytest_quant.formats.backend import Backend
    from pytest_quant.model import ModelHandle

KINDS = ("attention", "mlp", "other", "embedding", "head")
BLOCK = "block"
TABLES = ("embedding", "head")
_WIDE = 16
"""Bits of a weight from which on it is in no quantized format."""
_ATTENTION = ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv", "query_key_value")
_MLP = ("mlp", "ffn", "feed_forward", "feedforward", "moe", "expert", "fc1", "fc2", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Layer:
    """One thing that a scan puts into the format by itself: a linear layer, a table, or all of a decoder block."""

    name: str
    kind: str
    """``attention``, ``mlp``, ``embedding``, ``head`` or ``other``; ``block`` for a whole one."""
    depth: int | None
    """Which decoder block it is in, from 0; None outside of them."""
    weights: int
    bytes_saved: int | None
    """By putting it into the format; None where that is not known."""
    modules: tuple[str, ...]
    """Full names of its modules: one, unless it is a block."""


@dataclass(frozen=True)
class Candidates:
    """What a scan tries, and what it cannot."""

    layers: tuple[Layer, ...]
    """In the order in which the model runs them."""
    stand_ins: Mapping[str, Any]
    """For each module, by full name, what stands in for it in the format."""
    left_out: tuple[str, ...] = ()
    """Matrices that a product uses and that are no module of their own, such as fused experts."""
    head: str | None = None
    """Full name of the output head."""
    roundings: Mapping[str, Rounding] = field(default_factory=lambda: MappingProxyType({}))
    """For each module, by full name, its rounding: with smaller groups where those asked for do not fit."""

    def __len__(self) -> int:
        return len(self.layers)


def blocks(model: Any) -> tuple[str, Sequence[Any]] | None:
    """Full name and modules of the list of decoder blocks; None where there is no list of as many modules as the config
    has hidden layers."""
    import torch

    text = model.config.get_text_config()
    count = getattr(text, "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    inside = {id(module) for module in decoder.modules()} if decoder is not None else set()
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    lists.sort(key=lambda found: (id(found[1]) not in inside, found[0].count(".")))
    return (lists[0][0], list(lists[0][1])) if lists else None


def of_format(reference: ModelHandle, quantized: ModelHandle) -> Candidates:
    """The layers of the reference for which the modules of the same name in a quantized model can stand in: all that
    its format did not leave wide, whatever type that model computes in."""
    ours, theirs = dict(reference.model.named_modules()), dict(quantized.model.named_modules())
    wide = {name.rpartition(".")[0] for name in quantized.proof.left_out}
    backend = registry.backend(quantized.format)
    casts = _casts(reference.model, quantized.model)
    names, absent = [], []
    for weight in eligible(reference.model):
        name = weight.rpartition(".")[0]
        if not _is_linear(ours[name]) or name not in theirs:
            absent.append(weight)
        elif name in wide or is_excluded(weight, quantized.format):
            continue
        elif _differs(ours[name], theirs[name]):
            names.append(name)
    tables = (name for name in _tables(reference.model, ours) if name in theirs)
    names += [name for name in tables if _is_narrow(theirs[name], backend) and _differs(ours[name], theirs[name])]
    tied = _tied(reference.model, ours)
    saved = {name: footprint(ours[name]).total - footprint(theirs[name]).total for name in names if name not in tied}
    stand_ins = {name: _Cast(theirs[name], *casts) if casts else theirs[name] for name in names}
    layers = _layers(reference.model, ours, names, saved)
    return Candidates(layers, stand_ins, tuple(absent), _head(reference.model, ours))


def of_rounding(reference: ModelHandle | TransformersModel, rounding: Rounding) -> Candidates:
    """Every linear layer, the input embedding and the output head of a model, each with its weight rounded when it is
    asked for. Tables that are tied are rounded in one of their uses only, which saves nothing. :class:`UsageError`
    where no size of groups divides a layer's rows."""
    model = reference.model
    ours = dict(model.named_modules())
    weights = {weight: weight.rpartition(".")[0] for weight in eligible(model)}
    absent = [weight for weight, name in weights.items() if not _is_linear(ours[name])]
    names = [name for name in weights.values() if _is_linear(ours[name])]
    names += _tables(model, ours)
    roundings = {name: _fitted(name, ours[name], rounding) for name in names}
    stand_ins = _Rounded({name: ours[name] for name in names}, roundings)
    saved = {}
    for name in set(names) - _tied(model, ours):
        weight, bits = ours[name].weight, roundings[name].bits(columns(ours[name]))
        saved[name] = round(weight.numel() * (weight.element_size() - bits / 8))
    layers = _layers(model, ours, names, saved)
    return Candidates(layers, stand_ins, tuple(absent), _head(model, ours), roundings)


def columns(module: Any) -> int:
    """Inputs of a linear layer, or a table's width: the length of the rows that are rounded."""
    return int(module.weight.shape[0 if _is_transposed(module) else -1])


def _fitted(name: str, module: Any, rounding: Rounding) -> Rounding:
    try:
        return rounding.fitted(columns(module))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def put_back(reference: ModelHandle, quantized: ModelHandle, names: Sequence[str]) -> dict[str, Any]:
    """The reference's modules of these names, to stand in for a quantized model's."""
    modules = dict(reference.model.named_modules())
    casts = _casts(quantized.model, reference.model)
    return {name: _Cast(modules[name], *casts) if casts else modules[name] for name in names}


def chosen(found: Candidates, of: str, only: Sequence[str]) -> Candidates:
    """The layers that match one of the patterns (full names, their last parts, or with ``*``; all where there is none),
    put together by block where ``of`` is ``block``; then tables and what is in no block stay out."""
    layers = [layer for layer in found.layers if not only or any(_matches(layer.name, pattern) for pattern in only)]
    if of == BLOCK:
        by_depth: dict[int, list[Layer]] = {}
        for layer in layers:
            if layer.depth is not None:
                by_depth.setdefault(layer.depth, []).append(layer)
        layers = [_together(depth, parts) for depth, parts in sorted(by_depth.items())]
    return replace(found, layers=tuple(layers))


def _together(depth: int, parts: Sequence[Layer]) -> Layer:
    first = parts[0].name.split(".")
    number = first.index(str(depth))
    saved = [layer.bytes_saved for layer in parts]
    return Layer(
        name=".".join(first[: number + 1]),
        kind=BLOCK,
        depth=depth,
        weights=sum(layer.weights for layer in parts),
        bytes_saved=None if None in saved else sum(count or 0 for count in saved),
        modules=tuple(name for layer in parts for name in layer.modules),
    )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.endswith(f".{pattern}")


def _layers(
    model: Any, modules: Mapping[str, Any], names: Sequence[str], saved: Mapping[str, int]
) -> tuple[Layer, ...]:
    found = blocks(model)
    prefixes = {} if found is None else {f"{found[0]}.{depth}.": depth for depth in range(len(found[1]))}
    order = {name: place for place, name in enumerate(modules)}
    made = []
    for name in names:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        made.append(
            Layer(
                name=name,
                kind=_kind(model, modules[name], name.removeprefix(prefix)),
                depth=prefixes.get(prefix),
                weights=modules[name].weight.numel(),
                bytes_saved=saved.get(name),
                modules=(name,),
            )
        )
    return tuple(sorted(made, key=lambda layer: order[layer.name]))


def _kind(model: Any, module: Any, name: str) -> str:
    """By the name within the block, in which the first word that tells decides."""
    if module is model.get_input_embeddings():
        return "embedding"
    if module is model.get_output_embeddings():
        return "head"
    for part in name.lower().split("."):
        if any(word in part for word in _ATTENTION):
            return "attention"
        if any(word in part for word in _MLP):
            return "mlp"
    return "other"


def _tables(model: Any, modules: Mapping[str, Any]) -> list[str]:
    """Names of the input embedding and the output head."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    named = ((name, module) for table in tables for name, module in modules.items() if module is table)
    return [name for name, module in named if getattr(module, "weight", None) is not None]


def _tied(model: Any, modules: Mapping[str, Any]) -> set[str]:
    """Names of the tables that share a weight: to put one of its uses into a format saves nothing."""
    tables = _tables(model, modules)
    weights = [modules[name].weight for name in tables]
    return set(tables) if len(weights) == 2 and weights[0] is weights[1] else set()


def _head(model: Any, modules: Mapping[str, Any]) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in modules.items() if module is head), None)


def _is_narrow(module: Any, backend: Backend) -> bool:
    """Whether a format's backend says that a module is stored in it, and its bytes where they are the only proof."""
    stored = backend.stored(module)
    if stored is None or stored.num_bits >= _WIDE:
        return False
    return not backend.by_bytes or 8 * footprint(module).total < _WIDE * module.weight.numel()


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear) or _is_transposed(module)


def _is_transposed(module: Any) -> bool:
    """Whether it is GPT-2's linear layer, which keeps its weight as (in, out)."""
    return type(module).__name__ == "Conv1D"


def _differs(ours: Any, theirs: Any) -> bool:
    """Whether a module of the quantized model is another than the reference's, in its class or its values."""
    import torch

    if type(ours) is not type(theirs):
        return True
    mine, other = ours.weight, theirs.weight
    if mine.shape != other.shape or type(mine.data) is not type(other.data):
        return True
    with torch.inference_mode():
        return not torch.equal(mine, other.to(mine.dtype))


def _casts(reference: Any, quantized: Any) -> tuple[Any, Any] | None:
    """The types that the quantized model and the reference compute in, where they are not the same."""
    theirs, ours = quantized.dtype, reference.dtype
    return None if theirs == ours else (theirs, ours)


class _Cast:
    """A module of a model that computes in another type, to be called from one that computes in its own."""

    def __init__(self, module: Any, inside: torch.dtype, outside: torch.dtype) -> None:
        self._module = module
        self._inside = inside
        self._outside = outside

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        given = states.to(self._inside) if states.is_floating_point() else states
        found: torch.Tensor = self._module(given)
        return found.to(self._outside)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


_KEPT = 1 << 30
"""Bytes of rounded weights that are kept from one window to the next; beyond, each is rounded anew."""


class _Rounded(Mapping[str, Any]):
    """A twin of each module with its weight rounded; the module itself is left as it is."""

    def __init__(self, modules: Mapping[str, Any], roundings: Mapping[str, Rounding]) -> None:
        self._modules = modules
        self._roundings = roundings
        self._kept: dict[str, Any] = {}
        self._bytes = 0

    def __getitem__(self, name: str) -> Any:
        if name in self._kept:
            return self._kept[name]
        try:
            twin = _twin(self._modules[name], self._roundings[name])
        except NotFinite as error:
            raise NotFinite(f"{name}: {error}") from None
        size = twin.weight.numel() * twin.weight.element_size()
        if self._bytes + size <= _KEPT:
            self._kept[name] = twin
            self._bytes += size
        return twin

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def _twin(module: Any, rounding: Rounding) -> Any:
    import torch

    weight = module.weight.detach()
    rows = weight.T if _is_transposed(module) else weight
    found = rounded(rows.contiguous(), rounding)
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)
    twin._parameters = {
        **module._parameters,
        "weight": torch.nn.Parameter(found.T if _is_transposed(module) else found, requires_grad=False),
    }
    return twin
