"""How a run measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
