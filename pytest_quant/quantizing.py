"""Checkpoints of a run: found where the test suite names them or in the cache, or made there, and checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quant.checkpoints import making, shelf
from pytest_quant.checkpoints.making import Base
from pytest_quant.checkpoints.shelf import Checkpoint
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.progress import Progress
from pytest_quant.settings import Calibration, Settings
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.corpora.calibration import CalibrationSet

LOCK_SECONDS = 24 * 3600.0
"""A second process waits for the first one to have quantized a model of 70B."""


class Quantizing:
    """Knows for each model and format where its checkpoint lies."""

    def __init__(
        self, settings: Settings, device: Device, fingerprint: Callable[[ModelSource], str], progress: Progress
    ) -> None:
        self._settings = settings
        self._device = device
        self._fingerprint = fingerprint
        self._progress = progress
        self._drawn: dict[tuple[ModelSource, Calibration], CalibrationSet] = {}

    @property
    def shelf(self) -> Path:
        """The folder of the cache that holds checkpoints."""
        return self._settings.cache_dir / "checkpoints"

    def named(self, spec: ModelSpec, format: Format) -> Checkpoint | None:
        """The checkpoint that the test or the run names for the format. :class:`UsageError` where the format takes
        none, :class:`NotMeasured` where its record speaks against it."""
        places = dict(self._settings.checkpoints) | dict(spec.checkpoints)
        place = places.get(format.name) or places.get(format.base)
        if place is None:
            return None
        backend = registry.backend(format)
        if not (format.from_checkpoint or backend.takes_checkpoints):
            raise UsageError(
                f"a checkpoint is named for {format.name}, which is quantized while the base model is loaded; name one "
                f"of {', '.join(name for name, each in registry.formats().items() if each.from_checkpoint)}"
            )
        fingerprint = self._fingerprint(spec.source)
        return shelf.checked(shelf.named(place), format, backend.recipe, fingerprint, spec.source.name)

    def find(self, spec: ModelSpec, format: Format) -> Checkpoint | None:
        """The checkpoint of a format, if there is one. Loads no model; raises what :meth:`named` raises."""
        if (found := self.named(spec, format)) is not None or not format.from_checkpoint:
            return found
        plain = _without_cache_format(format)
        return shelf.kept(self.shelf, plain, self._fingerprint(spec.source), self._asked_calibration(spec, plain))

    def check(self, spec: ModelSpec, format: Format) -> None:
        """:class:`Unsupported` where there is no checkpoint and none may be made."""
        found = self.find(spec, format)
        if found is not None or not format.from_checkpoint or self._may_make(spec, format):
            return
        name = _without_cache_format(format).name
        making = f", or make it: --quant-quantize, or {shelf.command(spec.source.name, format)}"
        other = shelf.of_another_base(self.shelf, _without_cache_format(format), spec.source.short)
        raise Unsupported(
            asked=f"{spec.source.short} in {format.name}",
            found="no checkpoint of it"
            + (f" (that in {other.place} is of another state of the model)" if other else ""),
            needed=(
                f'quant(checkpoints={{"{name}": PATH}}) or --quant-checkpoints={name}=PATH'
                + (making if registry.backend(format).makes else "")
            ),
        )

    def get(self, spec: ModelSpec, format: Format) -> Checkpoint | None:
        """The checkpoint of a format, made where it is not there and may be made; ``None`` where the format needs none.
        Raises what :meth:`check`, :meth:`find` and :func:`pytest_quant.checkpoints.making.make` raise."""
        found = self.find(spec, format)
        if found is None and format.from_checkpoint:
            self.check(spec, format)
            found = self.make(spec, _without_cache_format(format))
        return found

    def make(self, spec: ModelSpec, format: Format, target: Path | None = None) -> Checkpoint:
        """Quantize the model now, into ``target`` or the cache; where another process made it meanwhile, that one."""
        from pytest_quant.engines import loading
        from pytest_quant.reference.files import locked

        backend = registry.backend(format)
        drawn = self.calibration_set(spec.source) if backend.calibrates(format) else None
        base = Base(spec.source.short, self._fingerprint(spec.source))
        name = making.digest(base, format, drawn.identity if drawn is not None else None)
        with locked(self.shelf / f"{name}.lock", LOCK_SECONDS):
            if target is None:
                found = shelf.kept(self.shelf, format, base.fingerprint, drawn.identity if drawn is not None else None)
                if found is not None:
                    return found
            loading.require_torch_for(self._device, f"quantizing {spec.source.short}")
            asked = loading.ask(spec.source, format, spec.compute_dtype, self._device)
            return self._make(base, asked, drawn, target or self.shelf / name)

    def calibration_set(self, source: ModelSource, told: Calibration | None = None) -> CalibrationSet:
        """The windows that a quantizer of this model would be shown."""
        from pytest_quant.corpora import calibration
        from pytest_quant.engines.loading import open_tokens

        wanted = told or self._settings.calibration or Calibration()
        if (source, wanted) in self._drawn:
            return self._drawn[source, wanted]
        tokens, longest = open_tokens(source)
        drawn = self._drawn[source, wanted] = calibration.draw(
            calibration.parse(wanted.mix),
            tokens,
            samples=wanted.samples,
            length=min(wanted.tokens, longest or wanted.tokens),
            seed=wanted.seed,
            chat_template=wanted.chat_template,
        )
        return drawn

    def _make(self, base: Base, asked: Asked, drawn: CalibrationSet | None, target: Path) -> Checkpoint:
        what = f"quantizing {base.name} to {asked.format.name}"

        def tell(text: str) -> None:
            self._progress.show(f"{what}: {text}" if text else what)

        tell("")
        try:
            return making.make(base, asked, registry.backend(asked.format), drawn, target, tell, time.time())
        finally:
            self._progress.clear()

    def _may_make(self, spec: ModelSpec, format: Format) -> bool:
        told = self._settings.quantize if spec.quantize is None else spec.quantize
        return told and registry.backend(format).makes

    def _asked_calibration(self, spec: ModelSpec, format: Format) -> dict[str, object] | None:
        """The calibration set that a checkpoint in the cache must have been made with; None where none is told."""
        if self._settings.calibration is None or not registry.backend(format).calibrates(format):
            return None
        return self.calibration_set(spec.source).identity


def settings_of(
    mix: str | None, samples: int | None, tokens: int | None, place: Callable[[str], str] = str
) -> Calibration | None:
    """What a run was told of its calibration set; None if nothing. ``place`` makes paths of files out of names.
    :class:`UsageError` for a malformed mix."""
    from pytest_quant.corpora import calibration

    if mix is None and samples is None and tokens is None:
        return None
    told = Calibration()
    if mix is not None:
        parts = tuple((place(name), share) for name, share in calibration.parse(mix).parts)
        told = replace(told, mix=str(calibration.Mix(parts)))
    if samples is not None:
        told = replace(told, samples=samples)
    if tokens is not None:
        if tokens < 2:
            raise UsageError("a calibration window needs at least 2 tokens")
        told = replace(told, tokens=tokens)
    return told


def _without_cache_format(format: Format) -> Format:
    return format if format.name == format.base else registry.get(format.base)
