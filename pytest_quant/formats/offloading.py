"""Weights of a loaded model that are on no device between two forwards: which, how many bytes, and as the forward has
them.

transformers spreads a model with accelerate, whose hooks (``AlignDevicesHook``, as ``_hf_hook`` on a module) move the
inputs to each part. Offloaded weights are on the meta device between two forwards; the hook of their module brings them
from a map in host memory or from files. Read from accelerate 1.15 and transformers 5.23.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quant.formats.storage import footprint


@dataclass(frozen=True)
class Offload:
    """What of a loaded model is on no device that computes it."""

    bytes: Mapping[str, int]
    """Of weights, by where they are: ``cpu`` or ``disk``."""
    layers: Mapping[str, int]
    """How many decoder layers have weights there."""
    of: int
    """Decoder layers of the model."""
    by_dtype: Mapping[str, int]
    """The same bytes by type."""

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def __str__(self) -> str:
        parts = [f"{count} of {self.of} layers offloaded to {place}" for place, count in sorted(self.layers.items())]
        sizes = [f"{size / 1e9:.3g} GB on {place}" for place, size in sorted(self.bytes.items())]
        return f"{', '.join(parts) or 'weights beside the layers offloaded'} ({', '.join(sizes)})"


def hooks(hook: Any) -> Iterator[Any]:
    """A hook of accelerate, or those that one stands for."""
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def _source(module: Any) -> Any:
    """Where the hook of an offloaded module has its weights from, by their names in the module; None for others."""
    found = hooks(getattr(module, "_hf_hook", None))
    return next((hook.weights_map for hook in found if getattr(hook, "offload", False)), None)


@contextlib.contextmanager
def onloaded(module: Any) -> Iterator[bool]:
    """The module with its weights as its forward has them; whether they were offloaded, and are again afterwards."""
    import torch

    hook = getattr(module, "_hf_hook", None)
    if _source(module) is None or hook is None:
        yield False
        return
    with torch.no_grad():
        hook.pre_forward(module)
    try:
        yield True
    finally:
        hook.post_forward(module, torch.empty(0))


def offload(model: Any) -> Offload | None:
    """What of the model is offloaded; ``None`` where all of it is on the devices that compute it.

    Bytes in host memory are those of the tensors that are kept there. On disk a weight is counted as it comes to the
    device, in the type that it is multiplied in, and once where two modules share it.
    """
    kept: list[Any] = []
    on_disk: dict[tuple[str, str], tuple[int, str]] = {}
    at: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        source = _source(module)
        if source is None:
            continue
        for own, tensor in module.named_parameters(recurse=False):
            held, entry = _found(source, own)
            if held is not None:
                kept.append(held)
            else:
                size = tensor.numel() * tensor.element_size()
                on_disk[entry] = size, str(tensor.dtype).removeprefix("torch.")
            at.setdefault(name, set()).add("cpu" if held is not None else "disk")
    if not at:
        return None
    in_memory = footprint(kept)
    sizes = {"cpu": in_memory.total, "disk": sum(size for size, _ in on_disk.values())}
    by_dtype = Counter(in_memory.by_dtype)
    for size, dtype in on_disk.values():
        by_dtype[dtype] += size
    prefix, layers = _layers(model)
    counted: Counter[str] = Counter()
    for number in range(layers):
        inside = [places for name, places in at.items() if name.startswith(f"{prefix}.{number}.")]
        counted.update(set().union(*inside))
    return Offload({place: size for place, size in sizes.items() if size}, dict(counted), layers, dict(by_dtype))


def _found(source: Any, name: str) -> tuple[Any, tuple[str, str]]:
    """The tensor that a map of accelerate holds in memory, or None with the file and the name in it."""
    prefix = getattr(source, "prefix", "")
    dataset = getattr(source, "dataset", source)
    full = prefix + name
    states = getattr(dataset, "state_dict", dataset if isinstance(dataset, Mapping) else {})
    if full in states:
        return states[full], ("", full)
    entry = (getattr(dataset, "index", None) or {}).get(full, {})
    return None, (str(entry.get("safetensors_file", "")), str(entry.get("weight_name", full)))


def _layers(model: Any) -> tuple[str, int]:
    """Name of the list of decoder layers, and how many there are; 0 where none can be told."""
    import torch

    config = getattr(model, "config", None)
    count = getattr(config.get_text_config(), "num_hidden_layers", None) if config is not None else None
    lists = (
        name for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList) and len(part) == count
    )
    name = next(lists, None)
    return ("", 0) if name is None else (name, int(count or 0))
