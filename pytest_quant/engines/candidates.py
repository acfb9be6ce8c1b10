"""The layers of a loaded model that can be put into a format one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.shape import eligible
from pytest_quant.formats.rounding import Rounding, rounded
from pytest_quant.formats.storage import footprint

if TYPE_CHECKING:
    import torch

    from pytest_quant.model import ModelHandle

KINDS = ("attention", "mlp", "other", "embedding", "head")
BLOCK = "block"
TABLES = ("embedding", "head")
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
    its format did not leave wide."""
    ours, theirs = dict(reference.model.named_modules()), dict(quantized.model.named_modules())
    wide = {name.rpartition(".")[0] for name in quantized.proof.left_out}
    casts = _casts(reference.model, quantized.model)
    names, absent = [], []
    for weight in eligible(reference.model):
        name = weight.rpartition(".")[0]
        if not _is_linear(ours[name]) or name not in theirs:
            absent.append(weight)
        elif name not in wide and _differs(ours[name], theirs[name]):
            names.append(name)
    names += [name for name in _tables(reference.model, ours) if name in theirs and _differs(ours[name], theirs[name])]
    saved = {name: footprint(ours[name]).total - footprint(theirs[name]).total for name in names}
    stand_ins = {name: _Cast(theirs[name], *casts) if casts else theirs[name] for name in names}
    return Candidates(_layers(reference.model, ours, names, saved), stand_ins, tuple(absent))


def of_rounding(reference: ModelHandle, rounding: Rounding) -> Candidates:
    """Every linear layer, the input embedding and the output head of the reference, each with its weight rounded when
    it is asked for. Tables that are tied are rounded in one of their uses only."""
    ours = dict(reference.model.named_modules())
    weights = {weight: weight.rpartition(".")[0] for weight in eligible(reference.model)}
    absent = [weight for weight, name in weights.items() if not _is_linear(ours[name])]
    names = [name for name in weights.values() if _is_linear(ours[name])]
    names += _tables(reference.model, ours)
    stand_ins = _Rounded({name: ours[name] for name in names}, rounding)
    saved = {}
    for name in names:
        weight = ours[name].weight
        columns = weight.shape[0 if _is_transposed(ours[name]) else -1]
        bits = rounding.fitted(columns).bits(columns)
        saved[name] = round(weight.numel() * (weight.element_size() - bits / 8))
    return Candidates(_layers(reference.model, ours, names, saved), stand_ins, tuple(absent))


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
    return Candidates(tuple(layers), found.stand_ins, found.left_out)


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

    def __init__(self, modules: Mapping[str, Any], rounding: Rounding) -> None:
        self._modules = modules
        self._rounding = rounding
        self._kept: dict[str, Any] = {}
        self._bytes = 0

    def __getitem__(self, name: str) -> Any:
        if name in self._kept:
            return self._kept[name]
        twin = _twin(self._modules[name], self._rounding)
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
    found = rounded(rows.contiguous(), rounding.fitted(rows.shape[-1]))
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)
    twin._parameters = {
        **module._parameters,
        "weight": torch.nn.Parameter(found.T if _is_transposed(module) else found, requires_grad=False),
    }
    return twin
