"""Formats of a test suite: those that we know with other parameters, and those that only the suite can load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pytest_quant.errors import UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix_rows import Support

Loader = Callable[[Asked, FromPretrained], Any]


def variant(of: str, name: str, *, exclude: Sequence[str] = (), **parameters: Any) -> Format:
    """A format under another name, with other ``parameters`` of its backend (``bnb_4bit_use_double_quant=False``,
    ``group_size=32``), and patterns of modules that stay wide (``"*.down_proj"``, or ``"down_proj"``).

    A model that is loaded with other parameters than these does not prove itself. :class:`UsageError` for an unknown
    format.
    """
    if isinstance(exclude, str):
        raise UsageError(f'exclude={exclude!r}: give a list of patterns, ["{exclude}"]')
    base = registry.get(of)
    if size := parameters.get("group_size"):
        base = _grouped(base, size)
    return replace(
        base,
        name=name,
        parameters=MappingProxyType({**base.parameters, **parameters}),
        exclude=(*base.exclude, *exclude),
        variant_of=base.variant_of or base.name,
    )


def _grouped(base: Format, size: int) -> Format:
    """A format with groups of another size."""
    weights = replace(base.weights, group_size=size)
    usual = base.group_sizes[0] if base.group_sizes else base.weights.group_size
    if usual is None:  # a scale in FP32 and a zero point for each group, where rows had one
        return replace(base, weights=weights, scale_bits=base.scale_bits + (32 + 8) / size, row_bits=0, wide_row_bits=0)
    more = usual / size  # as many more scales
    return replace(
        base,
        weights=weights,
        scale_bits=base.scale_bits * more,
        wide_scale_bits=base.wide_scale_bits * more,
        group_sizes=(),
    )


def custom(
    name: str,
    load: Loader,
    *,
    num_bits: int,
    type: str = "int",
    strategy: str = "channel",
    group_size: int | None = None,
    symmetric: bool = True,
    scale_bits: float = 0.0,
    input_activations: QuantizationArgs | None = None,
    requires: Sequence[str] = (),
    stored: Callable[[Any], Stored | None] | None = None,
) -> tuple[Format, Backend]:
    """A format that the test suite loads itself.

    ``load(asked, from_pretrained)`` gives the model on ``asked.place``; ``from_pretrained(asked.model, dtype=...)``
    opens the base model there. The rest says what it claims to be, in compressed-tensors' words. It is proven by bytes:
    a weight of a matrix product may take no more than ``num_bits + scale_bits`` a weight and some slack; with
    ``stored``, which tells of a module how it holds its weight, by that too.
    """
    weights = QuantizationArgs(num_bits, type, strategy, group_size, symmetric)
    made = Format(name, weights, backend=name, numeric=name, input_activations=input_activations, scale_bits=scale_bits)
    return made, _Custom(made, load, tuple(requires), stored)


class _Custom(Backend):
    """The backend of one format of a test suite."""

    install = "what the test suite's conftest.py needs"
    by_bytes = True

    def __init__(
        self,
        format: Format,
        load: Loader,
        requires: tuple[str, ...],
        stored: Callable[[Any], Stored | None] | None,
    ) -> None:
        self.name = format.name
        self.requires = requires
        self.formats = (format,)
        self._load = load
        self._stored = stored

    def support(self, format: Format, device: Device) -> Support | None:
        return Support("dequantized", f"{format.name} is a format of this test suite, which knows", "the test suite")

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        return self._load(asked, from_pretrained)

    def stored(self, module: Any) -> Stored | None:
        if self._stored is not None:
            return self._stored(module)
        weights = self.formats[0].weights
        return Stored(weights.num_bits, weights.type)

    def weight(self, module: Any, name: str) -> Any:
        return module  # whatever it holds stands for its weight
