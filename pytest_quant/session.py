"""What one run knows: its device, the models it holds, the measurements it made. No pytest in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_quant import room
from pytest_quant.engines.memory import drop_frames, first_line, give_back, origin_out_of_memory, recover
from pytest_quant.errors import NotMeasured, QuantError
from pytest_quant.formats import registry
from pytest_quant.gates.gate import Gate, decided
from pytest_quant.gates.measurement import Measurement
from pytest_quant.gates.narrow import is_narrow
from pytest_quant.identity import identity
from pytest_quant.model import ModelHandle
from pytest_quant.models import Models, check
from pytest_quant.progress import Progress
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.checkpoints.shelf import Checkpoint
    from pytest_quant.difference import Difference
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.formats.format import Format
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Matrix, Support
    from pytest_quant.memory import Memory
    from pytest_quant.population import Population
    from pytest_quant.quality import Pair, Quality
    from pytest_quant.quantizing import Quantizing
    from pytest_quant.room import Need
    from pytest_quant.speed import Found, Speed

Result = TypeVar("Result")


def _unknown() -> None:
    """What is needed, where nobody can tell."""


class Session:
    """Answers every question once: which device, may it run, what did it measure."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self._progress = progress
        self._fingerprints: dict[ModelSource, str] = {}

    @cached_property
    def device(self) -> Device:
        from pytest_quant.hardware import detect

        return detect()

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
        return Models(self.device, self.matrix, self._progress, self._checkpoint)

    @cached_property
    def quantizing(self) -> Quantizing:
        from pytest_quant.quantizing import Quantizing

        return Quantizing(self.settings, self.device, self._fingerprint, self._progress)

    @cached_property
    def population(self) -> Population:
        from pytest_quant.population import Population

        return Population(self.settings)

    @cached_property
    def quality(self) -> Quality:
        from pytest_quant.quality import Quality

        return Quality(self.settings, self.device, self.population, self.model, self._fingerprint, self._progress)

    @cached_property
    def difference(self) -> Difference:
        from pytest_quant.difference import Difference

        return Difference(self.models, self._stream)

    @cached_property
    def memory(self) -> Memory:
        from pytest_quant.memory import Memory

        return Memory(self.device, self.models, self._stream)

    @cached_property
    def speed(self) -> Speed:
        from pytest_quant.speed import Speed

        return Speed(self.settings, self.device, self.matrix, self.models, self._stream, self._progress)

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

        Quality is measured window by window until the gate's limits and ``enough`` are decided, or all windows are
        scored; without limits all are. Speed, energy and cost are timed round by round in the same way, until the
        budget is spent. ``questions`` share the error of the gate's confidence: one for each limit, and what ``enough``
        decides. Memory is measured at the first call.
        Raises :class:`~pytest_quant.errors.NotMeasured`, ``Unsupported`` or ``UsageError``.
        """
        shares = questions or max(len(gate.limits), 1)

        def needed() -> Need | None:
            return self.memory.needed(spec, format_name, gate)

        if gate.is_quality:
            return self._in_memory(gate.metric, lambda: self._quality(spec, format_name, gate, enough, shares))
        if gate.is_timed:
            return self._in_memory(gate.metric, lambda: self._timed(spec, format_name, gate, enough, shares), needed)
        return self._in_memory(gate.metric, lambda: self._memory_budget(spec, format_name, gate), needed)

    def drop_changed(self) -> list[str]:
        """Give back every model that a test's body changed, and forget what it answered; returns their formats."""
        changed = self.models.drop_changed()
        for spec, _ in changed:
            self.quality.forget(spec)
            self.speed.forget(spec)
            self.memory.forget(spec)
        return [name for _, name in changed]

    def recover(self) -> None:
        """After a test: give back what its own code held when it ran out of memory."""
        recover(self.device)

    def build_reference(self, spec: ModelSpec) -> tuple[Path, float]:
        """Score the reference on every window and store it; its path, and its floor in nats a token."""
        path = self._in_memory("the reference", lambda: self.quality.build_reference(spec))
        return path, self._in_memory("the reference again", lambda: self.quality.floor(spec))

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
            self._progress.clear()

    def _quality(
        self, spec: ModelSpec, format_name: str, gate: Gate, enough: Callable[[Measurement], bool], questions: int
    ) -> Measurement:
        from pytest_quant.stats.sequence import MIN_WINDOWS, next_look

        self.model(spec, format_name)  # a format that cannot run here is skipped before anything is scored
        self._require_unchanged(spec)
        pair = self.quality.pair(spec, format_name, gate)
        total = self.quality.total(spec)
        alpha = (1.0 - self.settings.confidence) / questions
        early = bool(gate.limits) and not self.settings.full
        look = min(MIN_WINDOWS, total) if early else total
        shown = ""
        with self._saving(spec):
            while True:
                while len(pair.scores) < look:
                    self.quality.extend(spec, format_name, pair)
                    scored = f"{len(pair.scores)}/{total} windows"
                    self._progress.show(f"{format_name}: scoring {spec.source.short} {scored}{shown}")
                if len(pair.scores) < total and early:
                    measured = self._from_windows(spec, format_name, gate, pair, alpha, at_the_end=False)
                    if not (decided(measured, gate.limits) and enough(measured)):
                        shown = f", {gate.metric} {measured.quantity}"
                        look = min(next_look(len(pair.scores)), total)
                        continue
                return self._from_windows(spec, format_name, gate, pair, alpha, at_the_end=True)

    def _require_unchanged(self, spec: ModelSpec) -> None:
        """:class:`NotMeasured` where a test changed a model that is to be scored: its word would be kept for others."""
        if changed := [name for of, name in self.models.changed() if of == spec]:
            raise NotMeasured(
                f"the test's body changed the {' and the '.join(changed)} model that its gates would measure (modules, "
                f"hooks, mode or weights); change a copy"
            )

    @contextlib.contextmanager
    def _saving(self, spec: ModelSpec) -> Iterator[None]:
        """Keep what was learned of the reference, also where the work was interrupted; then without a word."""
        try:
            yield
        except BaseException:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.quality.save(spec)
            raise
        self.quality.save(spec)

    def _from_windows(
        self, spec: ModelSpec, format_name: str, gate: Gate, pair: Pair, alpha: float, *, at_the_end: bool
    ) -> Measurement:
        """The measurement that the windows scored so far give; at the end with everything that is reported."""
        from pytest_quant.metrics.answer import answer

        evidence = self.quality.evidence(spec, format_name, pair)
        evidence.check()
        found = answer(gate, evidence, alpha, all_quantities=at_the_end)
        known = self.quality.known(spec)
        caveat = (
            f"from the stored reference only a lower bound is known (over its top {known.top_k} tokens); limit that "
            f"with max_bound, or let the {spec.reference} reference be loaded"
        )
        measured = self._measurement(
            spec,
            format_name,
            gate,
            found.main,
            found.quantities,
            found.figures,
            protocol=self.quality.identity(spec),
            detail={"bound": {"top_k": known.top_k}} if found.main == "bound" else {},
        )
        return replace(
            measured,
            windows=(len(evidence.scores), evidence.total),
            confidence=None if evidence.complete else self.settings.confidence,
            alpha=alpha,
            scores=tuple(found.scores),
            reference_scores=tuple(evidence.reference_nll),
            weights=tuple(float(weight) for weight in found.weights),
            reference_stored=0 if pair.beside else min(known.stored, len(evidence.scores)),
            lower_bounds=found.lower_bounds,
            caveat=caveat if found.lower_bounds else "",
        )

    def _timed(
        self, spec: ModelSpec, format_name: str, gate: Gate, enough: Callable[[Measurement], bool], questions: int
    ) -> Measurement:
        proof = self.difference.prove(spec, format_name).figures()  # later it may be loaded anew, in turns
        alpha = (1.0 - self.settings.confidence) / questions

        def settled(found: Found) -> bool:
            now = self._from_rounds(spec, format_name, gate, found, alpha)
            clear = decided(now, gate.limits) if gate.limits else is_narrow(now)
            return clear and enough(now)

        found = self.speed.measure(spec, format_name, gate, alpha, settled)
        return replace(self._from_rounds(spec, format_name, gate, found, alpha), proof=proof)

    def _from_rounds(self, spec: ModelSpec, format_name: str, gate: Gate, found: Found, alpha: float) -> Measurement:
        """The measurement that the rounds played so far give, but for the proof."""
        measured = self._measurement(
            spec, format_name, gate, found.main, found.quantities, found.figures, detail=found.detail, proof={}
        )
        return replace(
            measured,
            confidence=self.settings.confidence,
            alpha=alpha,
            rounds=found.rounds,
            spent=found.spent,
            bounds=found.bounds,
            conditions=found.conditions,
            remark=found.remark,
        )

    def _memory_budget(self, spec: ModelSpec, format_name: str, gate: Gate) -> Measurement:
        self.model(spec, format_name)
        quantities, figures = self.memory.measure(spec, format_name, gate)
        return self._measurement(spec, format_name, gate, "bytes", quantities, figures)

    def _measurement(
        self,
        spec: ModelSpec,
        format_name: str,
        gate: Gate,
        main: str,
        quantities: Any,
        figures: Any,
        protocol: Any = None,
        detail: Mapping[str, Any] = MappingProxyType({}),
        proof: Mapping[str, Any] | None = None,
    ) -> Measurement:
        if proof is None:
            corpus = None if protocol is None else protocol["corpus"]["sha256"]
            proof = self.model(spec, format_name).figures(corpus)
        return Measurement(
            metric=gate.metric,
            model=spec.source.short,
            format=format_name,
            engine=spec.engine,
            main=main,
            quantities=quantities,
            identity=identity(spec, format_name, gate, self._fingerprint(spec.source), detail, protocol),
            reference=spec.reference if gate.needs_reference else None,
            figures=figures,
            proof=proof,
        )

    def _checkpoint(self, spec: ModelSpec, format: Format) -> Checkpoint | None:
        return self.quantizing.get(spec, format)

    def _stream(self, handle: ModelHandle, spec: ModelSpec) -> NDArray[np.int64]:
        return self.population.stream(spec.source, handle.loaded.vocabulary)

    def _fingerprint(self, source: ModelSource) -> str:
        from pytest_quant.engines.fingerprint import fingerprint

        if source not in self._fingerprints:
            self._progress.show(f"hashing {source.short}")
            self._fingerprints[source] = fingerprint(source, self.settings.cache_dir)
        return self._fingerprints[source]
