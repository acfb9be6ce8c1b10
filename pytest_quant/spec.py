"""What a test says about its model."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quant.engines.source import ModelSource

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class ModelSpec:
    """What a test says about its model, its format apart."""

    source: ModelSource
    reference: str = "fp16"
    engine: str = "transformers"
    checkpoints: tuple[tuple[str, str], ...] = ()
    """Format and place of each checkpoint that the test itself names."""
    quantize: bool | None = None
    """Whether to make a checkpoint that is not there; None: as the run is told."""
    require_native: bool | None = None
    """None: formats that quantize activations need native units; True: every format does; False: none."""

    @property
    def compute_dtype(self) -> str:
        """What quantized formats compute in: the reference's type, so that quantization is the only difference."""
        return _DTYPES.get(self.reference, "float16")
