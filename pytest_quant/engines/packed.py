"""Linear layers of a model on a CPU, with their weights packed for oneDNN while much is to be computed.

torch multiplies FP32 matrices by MKL, which on CPUs of another maker than Intel runs at less than half of what oneDNN
does with packed weights. The packed copy takes as much memory as the weights, so it is made for a stretch of work only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.memory import free_bytes
from pytest_quant.hardware import Device

if TYPE_CHECKING:
    import torch

_SPARE = 3
"""Of free memory, the packed copy takes one part at most."""
_TOKENS = 512
"""What weights are packed for; any other number of rows is possible too."""


@contextlib.contextmanager
def packed(model: Any, device: Device) -> Iterator[None]:
    """The model with its plain linear layers in FP32 computed by oneDNN, up to the rounding of FP32 sums; nothing is
    changed where the device is no CPU, the model in another type, or memory does not suffice. Restored afterwards."""
    import torch

    head = model.get_output_embeddings()
    layers = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear
        and module is not head
        and module.weight.dtype == torch.float32
        and type(module.weight.data) is torch.Tensor
    ]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    with contextlib.ExitStack() as held:
        if can_pack(device, size):
            for layer in layers:
                held.enter_context(own_forward(layer, product(layer.weight, layer.bias)))
        yield


def can_pack(device: Device, size: int) -> bool:
    """Whether so many bytes of weights can be packed here."""
    import torch

    if device.kind != "cpu" or not torch._C._has_mkldnn:
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    free = free_bytes(device)
    return free is not None and size <= free // _SPARE


def product(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """``states @ weight.T + bias`` with the weight packed."""
    import torch

    with torch.inference_mode():
        ready = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TOKENS)

    def multiply(states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, ready, bias, "none", [], "")
        return found

    return multiply


@contextlib.contextmanager
def own_forward(module: Any, forward: Any) -> Iterator[None]:
    """The module with a ``forward`` of its own; afterwards with what it had before."""
    had, before = "forward" in vars(module), vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.forward
