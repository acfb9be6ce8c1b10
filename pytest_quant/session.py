"""What one run knows: its device, the models it holds, the measurements it made. No pytest in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_quant import room
from pytest_quant.distribution.one_at_a_time import turn
from pytest_quant.engines.memory import drop_frames, first_line, give_back, origin_out_of_memory, recover
from pytest_quant.errors import NotMeasured, QuantError
from pytest_quant.formats import registry
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Measurement
from pytest_quant.measuring import Measuring, Question
from pytest_quant.model import ModelHandle
from pytest_quant.models import Models, check
from pytest_quant.progress import Progress
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.accuracy import Accuracy
    from pytest_quant.checkpoints.shelf import Checkpoint
    from pytest_quant.continuations import Continuations
    from pytest_quant.difference import Difference
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.explaining import Explainer
    from pytest_quant.formats.format import Format
    from pytest_quant.formats.rounding import Rounding
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Matrix, Support
    from pytest_quant.memory import Memory
    from pytest_quant.metrics.engine_floor import EngineFloor
    from pytest_quant.metrics.keeping import Budget, Kept
    from pytest_quant.metrics.sensitivity import Scan
    from pytest_quant.population import Population
    from pytest_quant.quality import Quality
    from pytest_quant.quantizing import Quantizing
    from pytest_quant.room import Need
    from pytest_quant.samples import Sample
    from pytest_quant.sensitivity import Sensitivity
    from pytest_quant.speed import Speed
    from pytest_quant.turns import Turns

Result = TypeVar("Result")


def _unknown() -> None:
    """What is needed, where nobody can tell."""


class Session:
    """Answers every question once: which device, may it run, what did it measure."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self.progress = progress
        self._scans: dict[tuple[ModelSpec, str | Rounding, str, int], Scan] = {}
        self._fingerprints: dict[ModelSource, str] = {}
        self._floors: dict[ModelSpec, EngineFloor] = {}

    @cached_property
    def device(self) -> Device:
        from pytest_quant.hardware import detect

        found = detect()
        if self.settings.lane is not None and found.count > 1:
            from pytest_quant.distribution import devices

            devices.assign(found.kind, self.settings.lane, devices.entries(found))
        return found

    @cached_property
    def measured_device(self) -> Device:
        """The device with its memory bandwidth, measured (half a second) where no specification tells it."""
        if self.device.bandwidth is not None or self.device.kind != "cpu":
            return self.device
        from pytest_quant.engines import probe

        known = probe.measure(self.device, probe.BEYOND_CACHES, ())
        return replace(self.device, bandwidth=known.bandwidth, bandwidth_source=known.bandwidth_source)

    @cached_property
    def matrix(self) -> Matrix:
        from pytest_quant.hardware import matrix

        return matrix.load(self.settings.matrix)

    @cached_property
    def models(self) -> Models:
        return Models(self.device, self.matrix, self.progress, self._checkpoint)

    @cached_property
    def quantizing(self) -> Quantizing:
        from pytest_quant.quantizing import Quantizing

        return Quantizing(self.settings, self.device, self.fingerprint, self.progress)

    @cached_property
    def population(self) -> Population:
        from pytest_quant.population import Population

        return Population(self.settings)

    @cached_property
    def quality(self) -> Quality:
        from pytest_quant.quality import Quality

        return Quality(self.settings, self.device, self.population, self.turns, self.fingerprint, self.progress)

    @cached_property
    def turns(self) -> Turns:
        from pytest_quant.turns import Turns

        return Turns(lambda: self.models, lambda spec: self.difference.note(spec))

    @cached_property
    def difference(self) -> Difference:
        from pytest_quant.difference import Difference

        return Difference(self.models, self._stream)

    @cached_property
    def memory(self) -> Memory:
        from pytest_quant.memory import Memory

        return Memory(self.device, self.models, self._stream)

    @cached_property
    def accuracy(self) -> Accuracy:
        from pytest_quant.accuracy import Accuracy

        return Accuracy(self.settings, self.device, self.turns, self.fingerprint, self.progress)

    @cached_property
    def continuations(self) -> Continuations:
        from pytest_quant.continuations import Continuations

        return Continuations(self.settings, self.population, self.turns, self.progress)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        from pytest_quant.sensitivity import Sensitivity

        return Sensitivity(self.settings, self.device, self.population, self.model, self.progress)

    @cached_property
    def _explainer(self) -> Explainer:
        from pytest_quant.explaining import Explainer

        return Explainer(self.settings, self.device, self.population, self.quality, self.model, self.check)

    @cached_property
    def _measuring(self) -> Measuring:
        return Measuring(self)

    @cached_property
    def speed(self) -> Speed:
        from pytest_quant.speed import Speed

        return Speed(self.settings, self.device, self.matrix, self.models, self._stream, self.progress)

    def close(self) -> None:
        """Give back every model; engines in processes of their own are ended."""
        if "models" in self.__dict__:
            self.models.keep(())

    def check(self, spec: ModelSpec, format_name: str) -> Support:
        """May this format run here? Raises :class:`~pytest_quant.errors.Unsupported`; loads nothing."""
        format = registry.get(format_name)
        support = check(spec, format, self.device, self.matrix)
        self.quantizing.check(spec, format)
        return support

    def model(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in a format, loaded at the first call."""
        return self.models.get(spec, format_name)

    def expect(self, spec: ModelSpec, format_name: str, gate: Gate) -> None:
        """Say beforehand what will be asked, so that nothing is measured twice."""
        self.quality.expect(spec, format_name, gate)

    def measure(
        self,
        spec: ModelSpec,
        format_name: str,
        gate: Gate,
        *,
        enough: Callable[[Measurement], bool] = lambda _: True,
        questions: int | None = None,
    ) -> Measurement:
        """The gate's metric of the format.

        Quality is measured window by window (item by item, prompt by prompt) until the gate's limits and ``enough`` are
        decided, or all are scored; without limits all are. Speed, energy and cost are timed round by round in the same
        way, until the budget is spent. ``questions`` share the error of the gate's confidence: one for each limit, and
        what ``enough`` decides. Memory is measured at the first call.
        Raises :class:`~pytest_quant.errors.NotMeasured`, ``Unsupported`` or ``UsageError``.
        """
        alpha = (1.0 - self.settings.confidence) / (questions or max(len(gate.limits), 1))
        asked = Question(spec, format_name, gate, enough, alpha)

        def needed() -> Need | None:
            return self.memory.needed(spec, format_name, gate)

        if gate.is_quality:
            return self._in_memory(gate.metric, lambda: self._measuring.windows(asked))
        if gate.is_sampled:
            return self._in_memory(gate.metric, lambda: self._measuring.units(asked))
        if gate.is_timed:
            return self._in_memory(gate.metric, lambda: self._measuring.rounds(asked), needed)
        if gate.is_scan:
            return self._in_memory(gate.metric, lambda: self._measuring.layers(asked))
        return self._in_memory(gate.metric, lambda: self._measuring.bytes(asked), needed)

    def scan(self, spec: ModelSpec, asked: str | Rounding, of: str, windows: int) -> Scan:
        """What each layer costs that is put into a format, or rounded, alone; made once."""
        self.require_unchanged(spec)
        self.sensitivity.check(spec, asked, of, windows)
        key = (spec, asked, of, windows)
        if key not in self._scans:
            work = partial(self.sensitivity.scan, spec, asked, of=of, windows=windows)
            self._scans[key] = self._in_memory("the scan", work)
        return self._scans[key]

    def keep(self, spec: ModelSpec, asked: str | Rounding, scan: Scan, budget: Budget) -> Kept:
        """Of a scan's layers, sorted by KL or by nats, the fewest that must stay wide for a budget."""
        self.require_unchanged(spec)
        return self._in_memory("what to keep wide", partial(self.sensitivity.keep, spec, asked, scan, budget))

    def sample(self, spec: ModelSpec, format_name: str, gate: Gate) -> Sample:
        """The population of a gate that is answered from items or prompts, as far as it was drawn."""
        room = self.accuracy if gate.metric == "task_accuracy" else self.continuations
        return room.sample(spec, format_name, gate)

    def explain(
        self, spec: ModelSpec, format_name: str, gate: Gate, *, before: Sequence[float] | None = None
    ) -> Mapping[str, Any] | None:
        """What is behind a broken quality gate, as plain data; None where nothing was scored for it. ``before`` is what
        each window got in the baseline, where that is what broke it. Raises nothing."""
        try:
            found = self._explainer.explain(spec, format_name, gate, before=before)
        finally:
            self.progress.clear()
        return None if found is None else found.record()

    def drop_changed(self) -> list[str]:
        """Give back every model that a test's body changed, and forget what it answered; returns their formats."""
        changed = self.models.drop_changed()
        for spec, _ in changed:
            for asked in (self.quality, self.speed, self.memory, self.accuracy, self.continuations, self.difference):
                asked.forget(spec)
            self._scans = {key: scan for key, scan in self._scans.items() if key[0] != spec}
        return [name for _, name in changed]

    def is_changed(self, spec: ModelSpec) -> bool:
        """Whether somebody changed one of the spec's models that are held."""
        return "models" in self.__dict__ and any(of == spec for of, _ in self.models.changed())

    def require_unchanged(self, spec: ModelSpec) -> None:
        """:class:`NotMeasured` where a test changed a model that is to be scored: its word would be kept for others."""
        if changed := [name for of, name in self.models.changed() if of == spec]:
            raise NotMeasured(
                f"the test's body changed the {' and the '.join(changed)} model that its gates would measure (modules, "
                f"hooks, mode or weights); change a copy"
            )

    def recover(self) -> None:
        """After a test: give back what its own code held when it ran out of memory."""
        recover(self.device)

    def build_reference(self, spec: ModelSpec) -> tuple[Path, float]:
        """Score the reference on every window and store it; its path, and its floor in nats a token."""
        path = self._in_memory("the reference", lambda: self.quality.build_reference(spec))
        return path, self._in_memory("the reference again", lambda: self.quality.floor(spec))

    def engine_floor(self, spec: ModelSpec) -> EngineFloor:
        """What the engines of the reference and of the formats make of the same weights; measured once."""
        if spec not in self._floors:
            self._floors[spec] = self._in_memory("the floor between engines", lambda: self.quality.engine_floor(spec))
        return self._floors[spec]

    def reference_now(self, spec: ModelSpec, count: int) -> list[float]:
        """NLL of the first windows as the reference gives it now, whatever was stored. Raises :class:`NotMeasured` and
        the like where it cannot be had."""
        return self._in_memory("the reference again", lambda: self.quality.reference_now(spec, count))

    def _in_memory(self, what: str, work: Callable[[], Result], needed: Callable[[], Need | None] = _unknown) -> Result:
        """Do it, then take its progress from the screen; :class:`NotMeasured` with the figures, among them what was
        ``needed`` at least, where memory does not suffice. What the failure held is given back then."""
        try:
            return work()
        except Exception as error:
            if isinstance(error, QuantError) or (cause := origin_out_of_memory(error)) is None:
                raise
            said = first_line(cause)
            drop_frames(error)
            give_back(self.device)
            there = room.explain(self.device, self.models.held_bytes(), needed())
            raise NotMeasured(
                f"out of memory while measuring {what}: {said}; after it was given back {there}"
            ) from None
        finally:
            self.progress.clear()

    def _checkpoint(self, spec: ModelSpec, format: Format) -> Checkpoint | None:
        return self.quantizing.get(spec, format)

    def _stream(self, handle: ModelHandle, spec: ModelSpec) -> NDArray[np.int64]:
        return self.population.stream(spec.source, handle.loaded.vocabulary)

    def fingerprint(self, source: ModelSource) -> str:
        """Hash of the model's files."""
        from pytest_quant.engines.fingerprint import fingerprint

        if source not in self._fingerprints:
            self.progress.show(f"hashing {source.short}")
            with turn(self.settings.together, "fingerprint"):
                self._fingerprints[source] = fingerprint(source, self.settings.cache_dir)
        return self._fingerprints[source]
