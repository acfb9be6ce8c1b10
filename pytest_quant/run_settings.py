"""How a run measures, from what it was told."""

from __future__ import annotations

from pathlib import Path

from pytest_quant.options import Options
from pytest_quant.settings import Settings


def settings_of(told: Options, *, workers: int = 0, lane: int | None = None, together: Path | None = None) -> Settings:
    """The settings that options ask for; ``workers``, ``lane`` and ``together`` are of a worker of xdist."""
    return Settings(
        corpus=told.corpus,
        protocol=told.protocol,
        chat_template=told.chat_template,
        max_windows=told.max_windows,
        confidence=told.confidence,
        full=told.full,
        matrix=told.matrix,
        cache_dir=told.cache_dir,
        checkpoints=told.checkpoints,
        quantize=told.quantize,
        calibration=told.calibration,
        speed_budget=told.speed_budget,
        price=told.price,
        accept=told.accept,
        tasks=told.tasks,
        workers=workers,
        lane=lane,
        together=together,
    )
