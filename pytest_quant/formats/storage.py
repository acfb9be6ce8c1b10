"""True bytes: what a model's tensors really occupy.

``numel() * element_size()`` lies twice: a tensor subclass reports its unquantized shape and type, and
scales live outside the parameters. So every tensor that can be reached is followed down to its untyped
storage, and each storage is counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_DEPTH = 6
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type)


@dataclass(frozen=True)
class Footprint:
    """Bytes of unique storages, in all, by dtype and by device."""

    total: int
    by_dtype: Mapping[str, int]
    by_device: Mapping[str, int]


def footprint(*roots: Any) -> Footprint:
    """The bytes that everything reachable from ``roots`` occupies: parameters, buffers (the non-persistent
    too), the inner tensors of subclasses, quantizer state and tensors in dicts or lists on modules."""
    storages: dict[tuple[str, int], tuple[int, str]] = {}
    seen: set[int] = set()
    for root in roots:
        _visit(root, storages, seen, _DEPTH)
    by_dtype: Counter[str] = Counter()
    by_device: Counter[str] = Counter()
    for (device, _), (size, dtype) in storages.items():
        by_dtype[dtype] += size
        by_device[device] += size
    return Footprint(sum(by_dtype.values()), dict(sorted(by_dtype.items())), dict(sorted(by_device.items())))


def _visit(value: Any, storages: dict[tuple[str, int], tuple[int, str]], seen: set[int], depth: int) -> None:
    if isinstance(value, _PLAIN) or id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    for child, reach in _children(value, storages, depth):
        _visit(child, storages, seen, reach)


def _children(value: Any, storages: dict[tuple[str, int], tuple[int, str]], depth: int) -> Iterable[tuple[Any, int]]:
    """What to look into next, and how deep from there. Modules may nest as deep as they like."""
    import torch

    if isinstance(value, torch.Tensor):
        flatten = getattr(value, "__tensor_flatten__", None)
        inner = flatten()[0] if flatten is not None else []
        if inner:
            yield from ((getattr(value, name), depth) for name in inner)
        else:
            _note(value, storages)
        yield from ((child, depth - 1) for child in vars(value).values())
    elif isinstance(value, torch.nn.Module):
        # what accelerate keeps of offloaded weights is not on the module's device
        yield from ((child, _DEPTH) for name, child in vars(value).items() if name != "_hf_hook")
    elif isinstance(value, Mapping):
        yield from ((child, depth) for child in value.values())
    elif isinstance(value, (list, tuple, set)):
        yield from ((child, depth) for child in value)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from ((child, depth - 1) for child in vars(value).values())


def _note(tensor: Any, storages: dict[tuple[str, int], tuple[int, str]]) -> None:
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return
    storage = tensor.untyped_storage()
    dtype = str(tensor.dtype).removeprefix("torch.")
    storages.setdefault((str(tensor.device), storage.data_ptr()), (storage.nbytes(), dtype))
