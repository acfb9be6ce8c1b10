"""What one run knows: its device, the models it holds, the measurements it made. No pytest in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_quant.engines.memory import give_back, is_out_of_memory
from pytest_quant.errors import NotFinite, NotMeasured, QuantError, UsageError
from pytest_quant.formats import registry
from pytest_quant.gates.gate import Gate, decided
from pytest_quant.gates.measurement import Measurement
from pytest_quant.model import ModelHandle
from pytest_quant.models import Models, check
from pytest_quant.progress import Progress
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_quant.checkpoints.shelf import Checkpoint
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.formats.format import Format
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Matrix, Support
    from pytest_quant.population import Population
    from pytest_quant.quality import Pair, Quality
    from pytest_quant.quantizing import Quantizing

_PROBE_TOKENS = 32
Result = TypeVar("Result")


class Session:
    """Answers every question once: which device, may it run, what did it measure."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self._progress = progress
        self._measured: dict[tuple[ModelSpec, str, Gate], Measurement] = {}
        self._fingerprints: dict[ModelSource, str] = {}

    @cached_property
    def device(self) -> Device:
        from pytest_quant.hardware import detect

        return detect()

    @cached_property
    def measured_device(self) -> Device:
        """The device with its memory bandwidth, measured (a fifth of a second) where no specification tells it."""
        if self.device.bandwidth is not None or self.device.kind != "cpu":
            return self.device
        from pytest_quant.hardware.probe import measure_bandwidth

        return replace(
            self.device, bandwidth=measure_bandwidth(), bandwidth_source="measured: one thread copying memory"
        )

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
        scored; without limits all are. ``questions`` share the error of the gate's confidence: one for each limit, and
        what ``enough`` decides. Speed and memory are measured at the first call.
        Raises :class:`~pytest_quant.errors.NotMeasured`, ``Unsupported`` or ``UsageError``.
        """
        if gate.is_quality:
            shares = questions or max(len(gate.limits), 1)
            return self._in_memory(gate.metric, lambda: self._quality(spec, format_name, gate, enough, shares))
        return self._in_memory(gate.metric, lambda: self._once(spec, format_name, gate))

    def drop_changed(self) -> list[str]:
        """Give back every model that a test's body changed, and forget what it answered; returns their formats."""
        changed = self.models.drop_changed()
        for spec, _ in changed:
            self.quality.forget(spec)
        return [name for _, name in changed]

    def build_reference(self, spec: ModelSpec) -> tuple[Path, float]:
        """Score the reference on every window and store it; its path, and its floor in nats a token."""
        path = self._in_memory("the reference", lambda: self.quality.build_reference(spec))
        return path, self._in_memory("the reference again", lambda: self.quality.floor(spec))

    def reference_now(self, spec: ModelSpec, count: int) -> list[float]:
        """NLL of the first windows as the reference gives it now, whatever was stored. Raises :class:`NotMeasured` and
        the like where it cannot be had."""
        return self._in_memory("the reference again", lambda: self.quality.reference_now(spec, count))

    def _in_memory(self, what: str, work: Callable[[], Result]) -> Result:
        """Do it, then take its progress from the screen; :class:`NotMeasured` where memory does not suffice."""
        try:
            return work()
        except Exception as error:
            if isinstance(error, QuantError) or not is_out_of_memory(error):
                raise
            give_back(self.device)
            raise NotMeasured(f"out of memory while measuring {what}: {str(error).strip()[:200]}") from None
        finally:
            self._progress.clear()

    def _once(self, spec: ModelSpec, format_name: str, gate: Gate) -> Measurement:
        question = Gate(gate.metric, (("with_reference", float(gate.needs_reference)),), gate.parameters)
        key = (spec, format_name, question)
        if key not in self._measured:
            measure = self._throughput_ratio if gate.metric == "throughput_ratio" else self._memory_budget
            self._measured[key] = measure(spec, format_name, gate)
        return self._measured[key]

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

    def _throughput_ratio(self, spec: ModelSpec, format_name: str, gate: Gate) -> Measurement:
        from pytest_quant.metrics.throughput import Workload, throughput_ratio

        self._compare_with_reference(spec, format_name)
        model, reference = self.model(spec, format_name), self.model(spec, spec.reference)
        work = Workload(**dict(gate.parameters))
        quantities, figures = throughput_ratio(
            model.loaded,
            reference.loaded,
            self.population.stream(spec.source, model.loaded.vocabulary),
            work,
            self.settings.confidence,
            self._told(f"{format_name}: timing {work.phase} against {spec.reference}", "rounds"),
        )
        measured = self._measurement(spec, format_name, gate, "ratio", quantities, figures)
        return replace(measured, confidence=self.settings.confidence)

    def _memory_budget(self, spec: ModelSpec, format_name: str, gate: Gate) -> Measurement:
        from pytest_quant.metrics import memory

        asked = dict(gate.parameters)
        model = self.model(spec, format_name)
        stream = None if asked["of"] == "weights" else self.population.stream(spec.source, model.loaded.vocabulary)
        used = memory.used_bytes(model.loaded, tokens=stream, **asked)
        of_reference = None
        if gate.needs_reference:
            of_reference = memory.used_bytes(self.model(spec, spec.reference).loaded, tokens=stream, **asked)
        quantities, figures = memory.memory_budget(used, of_reference)
        return self._measurement(spec, format_name, gate, "bytes", quantities, figures)

    def _compare_with_reference(self, spec: ModelSpec, format_name: str) -> None:
        """The last part of the proof: the format does not answer as the reference does."""
        import numpy as np

        if format_name == spec.reference:
            raise UsageError(f"{format_name} is the reference itself: its difference from the reference is 0")
        model, reference = self.model(spec, format_name), self.model(spec, spec.reference)
        if model.proof.reference_difference is not None:
            return
        tokens = self.population.stream(spec.source, model.loaded.vocabulary)[:_PROBE_TOKENS]
        ours, theirs = model.loaded.probe_logits(tokens), reference.loaded.probe_logits(tokens)
        if not np.isfinite(theirs).all():
            raise NotMeasured(
                f"the {spec.reference} reference answers NaN or infinity: nothing can be said of {format_name}"
            )
        if not np.isfinite(ours).all():
            raise NotFinite(f"the {format_name} model answers NaN or infinity")
        model.loaded.proof = model.proof.compared(float(np.abs(ours - theirs).max()), spec.reference)

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
    ) -> Measurement:
        format = registry.get(format_name)
        described = registry.describe(format)
        if format.weights.num_bits < 16:
            described["compute_dtype"] = spec.compute_dtype
        places = dict(spec.checkpoints)
        if place := places.get(format.name) or places.get(format.base):
            described["checkpoint"] = place.replace("\\", "/").rpartition("/")[2]  # of several in one suite
        identity: dict[str, Any] = {
            "engine": spec.engine,
            "format": described,
            "metric": {"name": gate.metric, **dict(gate.parameters), **detail},
            "model": {"fingerprint": self._fingerprint(spec.source)},
        }
        if gate.metric != "memory_budget":
            identity["reference"] = {"name": spec.reference}
        if protocol is not None:
            identity["protocol"] = dict(protocol)
        return Measurement(
            metric=gate.metric,
            model=spec.source.short,
            format=format_name,
            engine=spec.engine,
            main=main,
            quantities=quantities,
            identity=identity,
            reference=spec.reference if gate.needs_reference else None,
            figures=figures,
            proof=self.model(spec, format_name).figures(None if protocol is None else protocol["corpus"]["sha256"]),
        )

    def _checkpoint(self, spec: ModelSpec, format: Format) -> Checkpoint | None:
        return self.quantizing.get(spec, format)

    def _fingerprint(self, source: ModelSource) -> str:
        from pytest_quant.engines.fingerprint import fingerprint

        if source not in self._fingerprints:
            self._progress.show(f"hashing {source.short}")
            self._fingerprints[source] = fingerprint(source, self.settings.cache_dir)
        return self._fingerprints[source]

    def _told(self, what: str, unit: str) -> Callable[[int, int], None]:
        return lambda done, there: self._progress.show(f"{what} {done}/{there} {unit}")
