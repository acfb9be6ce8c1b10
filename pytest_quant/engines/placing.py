"""A model of which parts are on several devices, or on none: where they go, and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quant.engines import memory
from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats.offloading import hooks
from pytest_quant.hardware import Device
from pytest_quant.placement import Place, Placement


def check(placement: Placement, device: Device) -> None:
    """:class:`UsageError` where a map names devices that are not there."""
    count = visible(device)
    if absent := [place for place in placement.accelerators if place >= count]:
        there = f"{count} ({device.name})" if count else f"none: it runs on {device.name}"
        raise UsageError(f"{placement} names the device {absent[0]}, but the run sees {there}")
    if "mps" in placement.places and device.kind != "mps":
        raise UsageError(f"{placement} names mps, but the run is on {device.name}")


def visible(device: Device) -> int:
    """Accelerators that torch can use, whatever their names."""
    import torch

    if device.kind in ("cuda", "rocm"):
        return int(torch.cuda.device_count())
    return int(torch.xpu.device_count()) if device.kind == "xpu" else 0


def resolve(placement: Placement, model: Any) -> str | dict[str, Place]:
    """What ``from_pretrained`` is told: a word, or a place for each of the largest parts that are at one place.

    ``model`` is the architecture without weights. A part and what is within it cannot both be named there: accelerate
    would put the whole at one place. :class:`UsageError` where a name matches nothing, or a weight has no place.
    """
    if isinstance(placement.map, str):
        return placement.map
    asked = dict(placement.map)
    kinds = (model.named_parameters, model.named_buffers)
    tensors = [name for named in kinds for name, _ in named(remove_duplicate=False)]  # tied ones have a place each
    known = {"", *tensors, *(name for name, _ in model.named_modules())}
    if unknown := sorted(asked.keys() - known):
        raise UsageError(f"{placement}: {unknown[0]!r} is no part of the model, which has {_children(model)}")
    found = {name: _nearest(name, asked) for name in tensors}
    if missing := [name for name, place in found.items() if place is None]:
        raise UsageError(f'{placement} gives {missing[0]} no place; add "" for all that it does not name')
    _check_tied(placement, model, found)
    parts: dict[str, Place] = {}
    _divide(model, "", {name: place for name, place in found.items() if place is not None}, parts)
    return parts


def _check_tied(placement: Placement, model: Any, found: Mapping[str, Place | None]) -> None:
    """:class:`UsageError` where a weight that two parts share is at two places of which one offloads it: accelerate
    then looks for it under the wrong name."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    for shared in names.values():
        places = {found[name] for name in shared}
        if len(places) > 1 and any(isinstance(place, str) for place in places):
            raise UsageError(f"{placement}: {' and '.join(shared)} are one tensor; give them the same place")


def _nearest(name: str, asked: Mapping[str, Place]) -> Place | None:
    while name and name not in asked:
        name = name.rpartition(".")[0]
    return asked.get(name)


def _divide(module: Any, name: str, tensors: Mapping[str, Place], parts: dict[str, Place]) -> None:
    prefix = f"{name}." if name else ""
    inside = {place for tensor, place in tensors.items() if tensor.startswith(prefix)}
    if len(inside) == 1:
        parts[name] = next(iter(inside))
    elif inside:
        for kind in (module.named_parameters, module.named_buffers):
            parts.update(
                {prefix + own: tensors[prefix + own] for own, _ in kind(recurse=False, remove_duplicate=False)}
            )
        for child, part in module.named_children():
            _divide(part, prefix + child, tensors, parts)


def _children(model: Any) -> str:
    names = [f"{name}.{child}" for name, part in model.named_children() for child, _ in part.named_children()]
    return ", ".join(names or [name for name, _ in model.named_children()])


def free_bytes(placement: Placement, device: Device) -> int | None:
    """Bytes that a model may still take on the devices that the map may use; ``None`` where that cannot be told, or
    part of the model is to be elsewhere anyway."""
    limits = dict(placement.max_memory)
    if not placement.spills and "disk" in placement.places:
        return None
    if device.kind not in ("cuda", "rocm"):
        free = memory.free_bytes(device)
        return free if free is None or not limits else min(free, limits.get("cpu", 0))
    if not placement.spills and any(isinstance(place, str) for place in placement.places):
        return None
    numbers = placement.accelerators or tuple(range(visible(device)))
    return sum(min(memory.free_on(number), limits.get(number, 1 << 62)) for number in numbers)


def execution_device(module: Any) -> Any:
    """The device that a module's inputs must be on."""
    hook = getattr(module, "_hf_hook", None)
    asked = next((found for one in hooks(hook) if (found := getattr(one, "execution_device", None)) is not None), None)
    if asked is None:
        return next(iter([*module.parameters(recurse=False), *module.buffers(recurse=False)])).device
    return _device(asked)


def devices(model: Any) -> tuple[str, ...]:
    """The devices that compute the model, each once, in the order of its modules."""
    found: dict[str, None] = {}
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(tensor.device.type == "meta" for tensor in own):
            found[str(execution_device(module))] = None
        else:
            found.update({str(tensor.device): None for tensor in own})
    return tuple(found)


def _device(place: Any) -> Any:
    import torch

    if isinstance(place, int):
        return torch.device("xpu" if torch.xpu.is_available() else "cuda", place)
    return torch.device(place)


def check_placed(model: Any, placement: Placement, asked: str) -> None:
    """:class:`Unsupported` where a loader left out what the map needs: parts elsewhere than it says, or without what
    brings their inputs to them."""
    if len(devices(model)) == 1 and _is_plain(model):
        return
    modules = dict(model.named_modules())
    for name in getattr(model, "hf_device_map", {}):
        if name in modules and any(True for _ in modules[name].parameters()) and not hasattr(modules[name], "_hf_hook"):
            raise Unsupported(
                asked=f"{asked} with {placement}",
                found=f"its loader replaced {name}, and nothing brings its inputs to it any more",
                needed="a device_map that does not cut through layers, or one device for all",
            )


def _is_plain(model: Any) -> bool:
    return len(set(map(str, getattr(model, "hf_device_map", {}).values()))) <= 1
