"""Quantizing on the spot: the base model goes in, a checkpoint with its record comes out, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant import environment
from pytest_quant.atomic import cause
from pytest_quant.checkpoints import record as records
from pytest_quant.checkpoints.record import Record
from pytest_quant.checkpoints.shelf import Checkpoint
from pytest_quant.errors import NotMeasured, QuantError, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked, Backend, missing_packages
from pytest_quant.formats.format import Format

if TYPE_CHECKING:
    from pytest_quant.corpora.calibration import CalibrationSet


@dataclass(frozen=True)
class Base:
    """The model that is quantized."""

    name: str
    """For people."""
    fingerprint: str


def digest(base: Base, format: Format, calibration: Mapping[str, Any] | None) -> str:
    """The name of a checkpoint's folder in the cache."""
    key = json.dumps([base.fingerprint, registry.describe(format), calibration], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def make(
    base: Base,
    asked: Asked,
    backend: Backend,
    calibration: CalibrationSet | None,
    target: Path,
    tell: Callable[[str], None],
    started: float,
) -> Checkpoint:
    """Quantize into the folder ``target``, which must not exist or must be a checkpoint of ours that is replaced.

    Raises :class:`Unsupported` where the backend's libraries are missing, :class:`UsageError` where the recipe or
    the target does not do, :class:`NotMeasured` where the library or the system fails; then nothing is left behind.
    """
    if absent := missing_packages(asked.format, backend):
        raise absent
    if target.exists() and not (target / records.FILE).is_file():
        raise UsageError(f"{target}: exists and is no checkpoint of pytest-quant; give another folder")
    if backend.calibrates(asked.format) and calibration is None:
        raise UsageError(f"{asked.format.name} needs a calibration set")
    with _in_place_of(target) as folder:
        try:
            recipe = backend.make(asked, list(calibration.windows) if calibration is not None else [], folder, tell)
        except QuantError:
            raise
        except Exception as error:
            said = (str(error) or type(error).__name__).strip().splitlines()[0][:300]
            raise NotMeasured(f"{backend.name} could not make {base.name} into {asked.format.name}: {said}") from error
        made = Record(
            base=base.fingerprint,
            base_name=base.name,
            format={**registry.describe(asked.format), "name": asked.format.variant_of or asked.format.base},
            recipe=dict(recipe),
            calibration=None if calibration is None else calibration.identity,
            versions=environment.packages(),
            made=environment.timestamp(started),
        )
        (folder / records.FILE).write_text(records.text(made), encoding="utf-8")
    return Checkpoint(str(target), made, of_this_base=True)


@contextlib.contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place at the end, or is gone where anything failed."""
    temporary = target.parent / f".making-{target.name}-{secrets.token_hex(4)}"
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary.mkdir()
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except OSError as error:
        raise NotMeasured(f"{target}: cannot be written: {cause(error)}; what was there is untouched") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sweep(target: Path) -> None:
    """What a killed process left beside the target: the checkpoint that it was about to replace comes back."""
    for leftover in target.parent.glob(f".making-{target.name}-*"):
        if leftover.suffix == ".old" and not target.exists():
            leftover.rename(target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)
