"""A stamp of a loaded model, cheap enough to take before every measurement."""

from __future__ import annotations

from typing import Any

_SAMPLES = 16
"""Values that are looked at of each parameter."""


def stamp(model: Any) -> tuple[object, ...]:
    """Equal stamps: the same modules with the same hooks in the same mode, the same parameters and buffers in the same
    place, and the same values at a few places of each. A change of single weights may go unseen; one of a layer, a
    scale, a hook or a mode does not."""
    import torch

    modules = tuple(
        (name, type(module).__qualname__, module.training, *_hooks(module)) for name, module in model.named_modules()
    )
    with torch.inference_mode():
        parameters = tuple(
            (name, part.data_ptr(), str(part.dtype), tuple(part.shape), _values(part))
            for name, parameter in (*model.named_parameters(), *model.named_buffers())
            for part in _parts(parameter)
        )
    return modules, parameters


def _hooks(module: Any) -> tuple[object, ...]:
    """What stands between a call of a module and its class's forward."""
    return tuple(module._forward_hooks), tuple(module._forward_pre_hooks), id(vars(module).get("forward"))


def _parts(tensor: Any) -> list[Any]:
    """A tensor subclass's inner tensors, which it is made of; any other tensor itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    inner = flatten()[0] if flatten is not None else []
    return [part for name in inner for part in _parts(getattr(tensor, name))] or [tensor]


def _values(parameter: Any) -> tuple[str, ...]:
    if parameter.device.type == "meta":  # offloaded: its values come anew with each forward
        return ()
    flat = parameter.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLES)
    picked = flat[::step][:_SAMPLES].float().cpu()
    return tuple(repr(value) for value in picked.tolist())  # NaN equals itself only in words
