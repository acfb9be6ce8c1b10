"""How a run measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Calibration:
    """A calibration set: ``mix`` as ``python-docstrings`` or ``0.5*domain.jsonl,0.5*wikitext2``."""

    mix: str = "python-docstrings"
    """Not the corpus that perplexity is measured on by default: what a quantizer saw flatters it."""
    samples: int = 128
    tokens: int = 2048
    """Of a window; a model that cannot take as many gets what it can."""
    seed: int = 0
    chat_template: bool = False


@dataclass(frozen=True)
class Settings:
    """Everything that a run's measurements depend on besides model and format."""

    corpus: str = "python-docs"
    protocol: str = "gptq-2048"
    chat_template: bool = False
    max_windows: int | None = None
    confidence: float = 0.99
    full: bool = False
    """Score all windows, whatever is decided before."""
    matrix: str = "corrected"
    cache_dir: Path = Path()
    speed_budget: float = 60.0
    """Seconds that one workload of one format is timed for at most, unless fewer rounds than bound an interval fit."""
    price: float | None = None
    """Dollars an hour of the device."""
    accept: tuple[str, ...] = ()
    """Conditions that are usual here, and do not keep a measurement from becoming a baseline."""
    workers: int = 0
    """pytest workers that share the machine, this one included."""
    lane: int | None = None
    """Of several workers, which device is this one's."""
    together: Path | None = None
    """A folder that the workers of one run share. The file ``alone`` is in it once all others have ended."""
    checkpoints: tuple[tuple[str, str], ...] = ()
    """Format and place of each checkpoint that was made beforehand; a marker may name others."""
    quantize: bool = False
    """Make checkpoints that are not there."""
    tasks: Path | None = None
    """Folder of lm-eval tasks of one's own."""
    calibration: Calibration | None = None
    """None: whatever a checkpoint in the cache was calibrated on; :class:`Calibration`'s defaults where one is made."""

    @property
    def company(self) -> int:
        """How many workers share the machine at this moment, this one included."""
        alone = self.together is not None and (self.together / "alone").exists()
        return 1 if alone else self.workers
