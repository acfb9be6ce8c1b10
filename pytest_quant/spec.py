"""What a test says about its model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quant.engines.source import ModelSource
from pytest_quant.placement import Placement

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class ModelSpec:
    """What a test says about its model, its format apart."""

    source: ModelSource
    reference: str = "fp16"
    engine: str = "transformers"
    engine_args: tuple[tuple[str, str], ...] = ()
    """What the engine is told besides, by name: values as JSON."""
    reference_engine: str | None = None
    """What executes the reference, where that is not the engine of the formats."""
    checkpoints: tuple[tuple[str, str], ...] = ()
    """Format and place of each checkpoint that the test itself names."""
    quantize: bool | None = None
    """Whether to make a checkpoint that is not there; None: as the run is told."""
    require_native: bool | None = None
    """None: formats that quantize activations need native units; True: every format does; False: none."""

    placement: Placement | None = None
    """Where the parts of the model go; None: all on the first device."""

    @property
    def compute_dtype(self) -> str:
        """What quantized formats compute in: the reference's type, so that quantization is the only difference."""
        return _DTYPES.get(self.reference, "float16")

    @property
    def mixes_engines(self) -> bool:
        """Whether the reference runs on another engine than the formats."""
        return self.reference_engine is not None

    @property
    def in_process(self) -> bool:
        """Whether both models are here, and all that they predict."""
        return {self.engine, self.engine_of(self.reference)} == {"transformers"}

    @property
    def spreads(self) -> bool:
        """Whether it says itself on which devices a model goes, so that one device of several is not enough."""
        told = self.arguments()
        parallel = (told.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
        return self.placement is not None or any(size != 1 for size in parallel)

    def engine_of(self, format_name: str) -> str:
        """What executes the model in a format."""
        return self.reference_engine or self.engine if format_name == self.reference else self.engine

    def arguments(self) -> dict[str, Any]:
        """What the engine of the formats is told besides."""
        return {name: json.loads(value) for name, value in self.engine_args}


def packed(arguments: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Engine arguments as a spec keeps them. :class:`TypeError` for a value that is no plain data."""
    return tuple((name, json.dumps(arguments[name], sort_keys=True)) for name in sorted(arguments))
