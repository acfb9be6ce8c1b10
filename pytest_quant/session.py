"""What one run knows: its device, the models it holds, the measurements it made. No pytest in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.memory import give_back, is_out_of_memory
from pytest_quant.errors import NotFinite, NotMeasured, QuantError, UsageError
from pytest_quant.formats import registry
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Measurement
from pytest_quant.model import ModelHandle
from pytest_quant.models import Models, check
from pytest_quant.progress import Progress
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.corpora.protocols import Windows
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Matrix, Support
    from pytest_quant.metrics.perplexity import Scores

_PROBE_TOKENS = 32


@dataclass(frozen=True)
class Settings:
    """How a run measures."""

    corpus: str = "python-docs"
    protocol: str = "gptq-2048"
    max_windows: int | None = None
    confidence: float = 0.99
    matrix: str = "corrected"
    cache_dir: Path = Path()


class Session:
    """Answers every question once: which device, may it run, what did it measure."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self._progress = progress
        self._streams: dict[ModelSource, NDArray[np.int64]] = {}
        self._scores: dict[tuple[ModelSpec, str], Scores] = {}
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
        return Models(self.device, self.matrix, self._progress)

    def check(self, spec: ModelSpec, format_name: str) -> Support:
        """May this format run here? Raises :class:`~pytest_quant.errors.Unsupported`; loads nothing."""
        return check(spec, registry.get(format_name), self.device, self.matrix)

    def model(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in a format, loaded at the first call."""
        return self.models.get(spec, format_name)

    def measure(self, spec: ModelSpec, format_name: str, gate: Gate) -> Measurement:
        """The gate's metric of the format, measured at the first call.

        Raises :class:`~pytest_quant.errors.NotMeasured`, ``Unsupported`` or ``UsageError``.
        """
        question = Gate(gate.metric, (("with_reference", float(gate.needs_reference)),), gate.parameters)
        key = (spec, format_name, question)
        if key not in self._measured:
            measurers: dict[str, Callable[[ModelSpec, str, Gate], Measurement]] = {
                "perplexity_delta": self._perplexity_delta,
                "throughput_ratio": self._throughput_ratio,
                "memory_budget": self._memory_budget,
            }
            try:
                self._measured[key] = measurers[gate.metric](spec, format_name, gate)
            except Exception as error:
                if isinstance(error, QuantError) or not is_out_of_memory(error):
                    raise
                give_back(self.device)
                raise NotMeasured(f"out of memory while measuring {gate.metric}: {str(error).strip()[:200]}") from None
            finally:
                self._progress.clear()
        return self._measured[key]

    def _perplexity_delta(self, spec: ModelSpec, format_name: str, gate: Gate) -> Measurement:
        from pytest_quant.metrics.perplexity import perplexity_delta

        self._compare_with_reference(spec, format_name)
        windows = self._windows(spec, self.model(spec, format_name))
        reference = self._score(spec, spec.reference, windows)
        scores = self._score(spec, format_name, windows)
        quantities, figures = perplexity_delta(scores, reference, format_name, spec.reference)
        used = len(windows.drawn)
        return replace(
            self._measurement(spec, format_name, gate, "delta", quantities, figures, protocol=windows.identity),
            windows=(used, used),
            scores=scores.nll,
            reference_scores=reference.nll,
            tokens=scores.tokens,
        )

    def _throughput_ratio(self, spec: ModelSpec, format_name: str, gate: Gate) -> Measurement:
        from pytest_quant.metrics.throughput import Workload, throughput_ratio

        self._compare_with_reference(spec, format_name)
        model, reference = self.model(spec, format_name), self.model(spec, spec.reference)
        work = Workload(**dict(gate.parameters))
        quantities, figures = throughput_ratio(
            model.loaded,
            reference.loaded,
            self._stream(spec, model),
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
        stream = None if asked["of"] == "weights" else self._stream(spec, model)
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
        tokens = self._stream(spec, model)[:_PROBE_TOKENS]
        ours, theirs = model.loaded.probe_logits(tokens), reference.loaded.probe_logits(tokens)
        if not np.isfinite(theirs).all():
            raise NotMeasured(
                f"the {spec.reference} reference answers NaN or infinity: nothing can be said of {format_name}"
            )
        if not np.isfinite(ours).all():
            raise NotFinite(f"the {format_name} model answers NaN or infinity")
        model.loaded.proof = model.proof.compared(float(np.abs(ours - theirs).max()), spec.reference)

    def _score(self, spec: ModelSpec, format_name: str, windows: Windows) -> Scores:
        from pytest_quant.metrics.perplexity import score

        key = (spec, format_name)
        if key not in self._scores:
            told = self._told(f"{format_name}: scoring {spec.source.short}", "windows")
            self._scores[key] = score(self.model(spec, format_name).loaded, windows, told)
        return self._scores[key]

    def _windows(self, spec: ModelSpec, model: ModelHandle) -> Windows:
        from pytest_quant.corpora import protocols

        corpus = self._corpus
        return protocols.cut(
            self._stream(spec, model),
            protocols.parse(self.settings.protocol),
            corpus={"name": corpus.name, "sha256": corpus.sha256},
            max_windows=self.settings.max_windows,
        )

    def _stream(self, spec: ModelSpec, model: ModelHandle) -> NDArray[np.int64]:
        from pytest_quant.engines.loading import tokenize

        if spec.source not in self._streams:
            stream = tokenize(model.tokenizer, self._corpus.text)
            known = model.loaded.vocabulary
            if stream.max() >= known:
                raise UsageError(
                    f"the tokenizer of {model.name} gives token {stream.max()}, but the model knows {known}: "
                    f"they do not belong together"
                )
            self._streams[spec.source] = stream
        return self._streams[spec.source]

    @cached_property
    def _corpus(self) -> Any:
        from pytest_quant.corpora import texts

        return texts.load(self.settings.corpus)

    def _measurement(
        self,
        spec: ModelSpec,
        format_name: str,
        gate: Gate,
        main: str,
        quantities: Any,
        figures: Any,
        protocol: Any = None,
    ) -> Measurement:
        format = registry.get(format_name)
        described = registry.describe(format)
        if format.quantized:
            described["compute_dtype"] = spec.compute_dtype
        identity: dict[str, Any] = {
            "engine": spec.engine,
            "format": described,
            "metric": {"name": gate.metric, **dict(gate.parameters)},
            "model": {"fingerprint": self._fingerprint(spec)},
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
            proof=self.model(spec, format_name).proof.figures(),
        )

    def _fingerprint(self, spec: ModelSpec) -> str:
        from pytest_quant.engines.fingerprint import fingerprint

        if spec.source not in self._fingerprints:
            self._progress.show(f"hashing {spec.source.short}")
            self._fingerprints[spec.source] = fingerprint(spec.source, self.settings.cache_dir)
        return self._fingerprints[spec.source]

    def _told(self, what: str, unit: str) -> Callable[[int, int], None]:
        return lambda done, there: self._progress.show(f"{what} {done}/{there} {unit}")
