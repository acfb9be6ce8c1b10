"""An output head that is nothing but a linear layer: how two of its distributions differ, from their hidden states.

With logits ``z = W h + b``, NLL differs by ``d - W_label (h' - h)`` and ``KL(p || p')`` is ``d - e (h' - h)``: ``d`` is
the difference of the logarithms of the sums of ``exp(z)``, and ``e = sum_v p_v W_v`` the mean of W's rows under the
reference's distribution ``p``, taken once. So the product with the whole vocabulary is needed for ``d`` alone: the sum
of ``exp(z' - lse)``, which is about 1, with the reference's own ``lse``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_quant.engines import packed
from pytest_quant.hardware import Device

if TYPE_CHECKING:
    import torch

_COLUMNS = 2048
"""Words of the vocabulary that a CPU looks at together: their logits stay in its cache."""
_LOGITS = 1 << 26
"""Logits at a time elsewhere: 256 MB."""
_ROWS = 1 << 24
"""Logits at a time where whole rows are needed."""


class PlainHead:
    """A linear layer in FP32, made ready for many products."""

    def __init__(self, head: Any, device: Device, *, pack: bool = True) -> None:
        self._head = head
        self._on_cpu = device.kind == "cpu"
        size = head.weight.numel() * head.weight.element_size()
        self._packed = pack and self._on_cpu and packed.can_pack(device, size)
        self._ready: list[Callable[[torch.Tensor], torch.Tensor]] = []

    def base(self, states: torch.Tensor, labels: torch.Tensor) -> Base:
        """What is needed of the reference: its hidden states ``(rows, H)``, the tokens that came ``(rows,)``."""
        import torch

        levels, expected = [], []
        for some in torch.split(states, max(1, _ROWS // len(self._head.weight))):
            logits = self._head(some)
            level = logits.logsumexp(-1, keepdim=True)
            levels.append(level)
            expected.append((logits.sub_(level).exp_() @ self._head.weight).double())
        return Base(self, states, torch.cat(levels), torch.cat(expected), self._head.weight[labels].double())

    def mass(self, states: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Sum of ``exp(z - level)`` over the vocabulary, ``(rows,)`` in double precision."""
        import torch

        total = torch.zeros(len(states), dtype=torch.float64, device=states.device)
        for product in self._products(len(states)):
            total += product(states).sub_(levels).exp_().sum(-1)
        return total

    def _products(self, rows: int) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Each gives the logits of some words of the vocabulary."""
        if self._ready and self._on_cpu:
            return self._ready
        width = _COLUMNS if self._on_cpu else max(1, _LOGITS // max(rows, 1))
        weight, bias = self._head.weight.detach(), self._head.bias
        parts = weight.split(width)
        biases = [None] * len(parts) if bias is None else bias.detach().split(width)
        make = packed.product if self._packed else _product
        self._ready = [make(part, some) for part, some in zip(parts, biases, strict=True)]
        return self._ready


def plain_head(head: Any) -> bool:
    """Whether a head, as the engine found it, is a linear layer in FP32 and nothing else."""
    import torch

    return type(head) is torch.nn.Linear and head.weight.dtype == torch.float32


class Base:
    """What a reference says of some rows, for others to be compared with."""

    def __init__(
        self,
        head: PlainHead,
        states: torch.Tensor,
        levels: torch.Tensor,
        expected: torch.Tensor,
        label_rows: torch.Tensor,
    ) -> None:
        self._head = head
        self._states = states.double()
        self._levels = levels
        self._expected = expected
        self._label_rows = label_rows
        self._mass = head.mass(states, levels)  # 1, but for rounding

    def compare(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """By how much the NLL of other hidden states is higher, and KL(reference || other), nats, ``(rows,)`` each in
        double precision; None where they are so far off that the sums are no numbers."""
        import torch

        growth = (self._head.mass(states, self._levels) / self._mass).log_()
        if not bool(torch.isfinite(growth).all()):
            return None
        moved = states.double() - self._states
        nats = growth - (self._label_rows * moved).sum(-1)
        return nats, growth - (self._expected * moved).sum(-1)


def _product(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    return lambda states: torch.nn.functional.linear(states, weight, bias)
