"""Reads ``specs.toml`` and checks it: what one row holds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

SOURCE = "specification table (pytest_quant/hardware/specs.toml)"


@dataclass(frozen=True)
class Spec:
    """One GPU as its vendor describes it. Rates are dense (no sparsity), in 10**12 operations a second."""

    name: str
    """The name as the driver reports it, e.g. ``NVIDIA H100 80GB HBM3``."""
    memory_gb: float
    """Nameplate memory, counted in GiB as GPU vendors do."""
    evidence: str
    aliases: tuple[str, ...] = ()
    """Other reported names of the same hardware."""
    short: tuple[str, ...] = ()
    """What people call it; understood when planning only."""
    vgpu: tuple[str, ...] = ()
    """Beginnings of its vGPU guests' names, e.g. ``GRID A100DX`` of ``GRID A100DX-80C``."""
    cc: tuple[int, int] | None = None
    """NVIDIA's compute capability."""
    gfx: str | None = None
    """AMD's architecture."""
    memory_mib: int | None = None
    """What the driver reports as the total, in MiB (on GDDR boards ECC takes a sixteenth)."""
    bandwidth_tb_s: float | None = None
    """10**12 bytes a second."""
    fp16_tflops: float | None = None
    """Also bf16, where the hardware has it."""
    fp8_tflops: float | None = None
    int8_tops: float | None = None
    int4_tops: float | None = None
    fp4_tflops: float | None = None
    unsure: tuple[str, ...] = ()
    """The fields that rest on memory or on disagreeing sources, or that are absent because nobody said."""

    @property
    def architecture(self) -> str:
        """``sm_90`` or ``gfx942``."""
        return self.gfx or "unknown" if self.cc is None else "sm_{}{}".format(*self.cc)

    @property
    def memory_bytes(self) -> int:
        """What can be counted on: the driver's total where that is known, else the nameplate."""
        return self.memory_mib << 20 if self.memory_mib else round(self.memory_gb * 2**30)

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second of the whole board."""
        return None if self.bandwidth_tb_s is None else self.bandwidth_tb_s * 1e12


@lru_cache(maxsize=1)
def load() -> tuple[Spec, ...]:
    """All rows, in the file's order. Raises ``ValueError`` for a file that is not as described in its head."""
    from importlib.resources import files

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    text = files(__package__).joinpath("specs.toml").read_text(encoding="utf-8")
    return tuple(parse(row) for row in tomllib.loads(text)["gpu"])


def parse(row: Mapping[str, Any]) -> Spec:
    """One row, checked: every key known, either ``cc`` or ``gfx``, and positive numbers."""
    known = {field.name for field in fields(Spec)}
    wrong = sorted(set(row) - known) + sorted(set(row.get("unsure", ())) - known)
    if wrong:
        raise ValueError(f"specs.toml: {row.get('name')}: unknown field {', '.join(wrong)}")
    if ("cc" in row) == ("gfx" in row):
        raise ValueError(f"specs.toml: {row.get('name')}: needs one of cc and gfx")
    for key, value in row.items():
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"specs.toml: {row.get('name')}: {key} must be above 0, found {value}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Spec(**values)
