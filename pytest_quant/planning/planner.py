"""A whole plan: every format asked whether it runs, those that do predicted, one recommended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import Unsupported
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Support
from pytest_quant.planning.advice import Advice, advise
from pytest_quant.planning.need import Need
from pytest_quant.planning.predict import Load, Machine, Prediction, predict, products_in
from pytest_quant.roofline.shape import ModelShape

Check = Callable[[Format], Support]
"""Whether a format runs; raises :class:`Unsupported` where it does not."""
NOMINAL = (("FP32", 32), ("FP16", 16), ("INT8", 8), ("4-bit", 4))


@dataclass(frozen=True)
class Question:
    """What is planned for."""

    source: ModelSource
    """Without a name for a mere number of parameters."""
    shape: ModelShape
    load: Load
    need: Need
    compute: Format
    """The unquantized format whose type everything else has."""


@dataclass(frozen=True)
class Nominal:
    """The bits alone: no scales, nothing left wide, no KV cache."""

    name: str
    bits: int
    bytes: float
    seconds: float | None
    """Bytes over bandwidth; ``None`` where that is not known."""


@dataclass(frozen=True)
class Plan:
    """All that the command prints."""

    question: Question
    machine: Machine
    nominal: tuple[Nominal, ...]
    rows: tuple[Prediction, ...]
    refused: tuple[tuple[str, Unsupported], ...]
    """Formats that cannot run."""
    advice: Advice


def ask(
    formats: Iterable[Format], may: Check
) -> tuple[list[tuple[Format, Support]], tuple[tuple[str, Unsupported], ...]]:
    """The formats that run, with how, and those that do not, with why."""
    running, refused = [], []
    for format in formats:
        try:
            running.append((format, may(format)))
        except Unsupported as reason:
            refused.append((format.name, reason))
    return running, tuple(refused)


def numerics(running: Iterable[tuple[Format, Support]], device: Device, compute: Format) -> Collection[str]:
    """In what the products of these formats run: the rates that bound them."""
    return tuple(dict.fromkeys(products_in(format, support, device, compute) for format, support in running))


def make(
    question: Question,
    running: Sequence[tuple[Format, Support]],
    refused: tuple[tuple[str, Unsupported], ...],
    machine: Machine,
) -> Plan:
    """Predictions for all that run, and the advice."""
    rows = tuple(
        predict(format, support, question.shape, question.load, machine, question.compute)
        for format, support in running
    )
    nominal = () if question.source.name else _nominal(question.shape, machine)
    return Plan(question, machine, nominal, rows, refused, advise(rows, question.need, question.compute.name))


def _nominal(shape: ModelShape, machine: Machine) -> tuple[Nominal, ...]:
    bandwidth = machine.together.bandwidth
    return tuple(
        Nominal(name, bits, count := shape.parameters * bits / 8, count / bandwidth if bandwidth else None)
        for name, bits in NOMINAL
    )
