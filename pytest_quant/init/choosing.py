"""Which formats a first test is written for, and against what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_quant.errors import Unsupported
from pytest_quant.hardware import Device

CANDIDATES: tuple[tuple[str, ...], ...] = (("fp8", "int8", "int8-weight-only"), ("nf4", "int4", "int4-unpacked"))
"""Of eight bits and of four, the format that is tried first first; none needs a checkpoint."""


@dataclass(frozen=True)
class Choice:
    """Formats that run here, and why others that were thought of do not."""

    formats: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    """Format and reason."""


def choose(named: Sequence[str], usual: Sequence[str], check: Callable[[str], object]) -> Choice:
    """The formats that were named, else those of the project's configuration (``usual``), else one of eight bits and
    one of four, as ``check`` lets run.

    Raises what ``check`` raises for one that was named, and :class:`Unsupported` where none runs.
    """
    if named:
        for name in named:
            check(name)
        return Choice(tuple(named))
    groups = tuple((name,) for name in usual) or CANDIDATES
    formats, left_out = [], []
    for group in groups:
        reasons = []
        for name in group:
            try:
                check(name)
            except Unsupported as reason:
                reasons.append((name, str(reason)))
                continue
            formats.append(name)
            break
        else:
            left_out += reasons
    if not formats:
        raise Unsupported(
            asked=f"a format to test, of {', '.join(name for group in groups for name in group)}",
            found="none of them runs here: " + "; ".join(f"{name}: {reason}" for name, reason in left_out),
            needed="one of these libraries (`pytest-quant doctor` tells all), or --formats with what runs here",
        )
    return Choice(tuple(formats), tuple(left_out))


def reference_for(device: Device, configured: str) -> str:
    """The type that the device runs well: what the project says, but FP32 where that is the plugin's own default and
    a CPU would compute in it slowly."""
    return "fp32" if device.kind == "cpu" and configured == "fp16" else configured
