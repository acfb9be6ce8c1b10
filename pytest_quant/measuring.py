"""The measurement that answers a gate: as much is scored, timed or asked as its verdict needs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant import samples
from pytest_quant.errors import NotMeasured, QuantError
from pytest_quant.gates.gate import LIMITS, Gate, decided
from pytest_quant.gates.measurement import Measurement
from pytest_quant.gates.narrow import is_narrow
from pytest_quant.identity import identity, served
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.quality import Pair
    from pytest_quant.samples import Sample
    from pytest_quant.session import Session
    from pytest_quant.speed import Found


@dataclass(frozen=True)
class Question:
    """A gate on one format of a model."""

    spec: ModelSpec
    format: str
    gate: Gate
    enough: Callable[[Measurement], bool]
    """Whether a baseline's part of the verdict needs no more."""
    alpha: float
    """Error rate of each interval."""


class Measuring:
    """Asks the rooms of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._settings = session.settings
        self._progress = session.progress

    def windows(self, asked: Question) -> Measurement:
        """Quality, window by window until the gate's limits are decided and ``enough`` is; all where it has none."""
        from pytest_quant.stats.sequence import MIN_WINDOWS, next_look

        spec, quality = asked.spec, self._session.quality
        # what cannot run here is skipped before anything is scored
        model = self._session.turns.format(spec, asked.format)
        away = model.loaded.offload
        slow = "" if away is None else f", slowly: {away}"
        del model
        self._session.require_unchanged(spec)
        pair, total = quality.pair(spec, asked.format, asked.gate), quality.total(spec)
        early = bool(asked.gate.limits) and not self._settings.full
        look = min(MIN_WINDOWS, total) if early else total
        shown = ""
        with self._saving(spec):
            while True:
                while len(pair.scores) < look:
                    quality.extend(spec, asked.format, pair, look)
                    scored = f"{len(pair.scores)}/{total} windows"
                    self._progress.show(f"{asked.format}: scoring {spec.source.short} {scored}{shown}{slow}")
                if len(pair.scores) < total and early:
                    measured = self._from_windows(asked, pair, at_the_end=False)
                    if not _settled(asked, measured):
                        shown = f", {asked.gate.metric} {measured.quantity}"
                        look = min(next_look(len(pair.scores)), total)
                        continue
                return self._from_windows(asked, pair, at_the_end=True)

    def units(self, asked: Question) -> Measurement:
        """Items of a task or prompts, in the same way."""
        self._session.turns.format(asked.spec, asked.format)
        self._session.require_unchanged(asked.spec)
        sample = self._session.sample(asked.spec, asked.format, asked.gate)
        early = bool(asked.gate.limits) and not self._settings.full
        look = min(samples.FIRST_LOOK, sample.total) if early else sample.total
        shown = ""
        while True:
            while sample.drawn < look:
                self._progress.show(
                    f"{asked.format}: {asked.gate.metric} of {asked.spec.source.short} "
                    f"{sample.drawn}/{sample.total} {sample.noun}{shown}"
                )
                sample.extend(min(look - sample.drawn, _AT_ONCE))
            measured = self._from_units(asked, sample)
            if sample.drawn == sample.total or (early and sample.telling and _settled(asked, measured)):
                break
            shown = f", {measured.quantity}"
            look = min(samples.next_look(sample.drawn), sample.total)
        here = self._session.models.find(asked.spec, asked.spec.reference) is not None
        if here or self._session.difference.is_noted(asked.spec):  # the same words prove nothing
            proven = self._session.difference.prove(asked.spec, asked.format)
            measured = replace(measured, proof=proven.figures())
        return replace(measured, detail=dict(sample.detail()))

    def rounds(self, asked: Question) -> Measurement:
        """Speed, energy and cost, round by round in the same way, until the budget is spent."""
        spec, session = asked.spec, self._session
        proof = session.difference.prove(spec, asked.format).figures()  # later it may be loaded anew, in turns

        def settled(found: Found) -> bool:
            now = self._from_rounds(asked, found)
            clear = decided(now, asked.gate.limits) if asked.gate.limits else is_narrow(now)
            return clear and asked.enough(now)

        found = session.speed.measure(spec, asked.format, asked.gate, asked.alpha, settled)
        return replace(self._from_rounds(asked, found), proof=proof)

    def layers(self, asked: Question) -> Measurement:
        """What the worst layer costs, of all windows that the gate names."""
        from pytest_quant.formats.rounding import Rounding
        from pytest_quant.metrics.sensitivity import answer

        told = dict(asked.gate.parameters)
        numeric, strategy, size = (told.get(name) for name in ("numeric", "strategy", "group_size"))
        rounding = None if numeric is None else Rounding.asked(numeric, strategy, size)
        scan = self._session.scan(asked.spec, rounding or asked.format, told["of"], told["windows"])
        found = answer(scan, "kl" if {name for name, _ in asked.gate.limits} == {"max_kl"} else "nats")
        proof: Mapping[str, Any] | None = None if rounding is None else {}
        measured = self._measurement(asked, found.main, found.quantities, found.figures, scan.identity, proof=proof)
        if rounding is not None:  # whatever the test's format is, it plays no part
            identity = {**measured.identity, "format": {"name": rounding.name}}
            measured = replace(measured, format=rounding.name, identity=identity)
        return replace(
            measured,
            windows=(scan.sample.used, scan.sample.total),
            alpha=asked.alpha,
            detail={name: value for name, value in scan.record().items() if name in _OF_A_SCAN},
        )

    def bytes(self, asked: Question) -> Measurement:
        """Memory, at the first call."""
        proof = self._session.turns.format(
            asked.spec, asked.format
        ).figures()  # later the reference may be in its place
        quantities, figures = self._session.memory.measure(asked.spec, asked.format, asked.gate)
        return self._measurement(asked, "bytes", quantities, figures, proof=proof)

    @contextlib.contextmanager
    def _saving(self, spec: ModelSpec) -> Iterator[None]:
        """Keep what was learned of the reference, also where the work was interrupted; then without a word."""
        quality = self._session.quality
        try:
            yield
        except BaseException:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                quality.save(spec)
            raise
        quality.save(spec)

    def _from_windows(self, asked: Question, pair: Pair, *, at_the_end: bool) -> Measurement:
        """The measurement that the windows scored so far give; at the end with everything that is reported."""
        from pytest_quant.metrics.answer import answer

        spec, quality = asked.spec, self._session.quality
        evidence = quality.evidence(spec, asked.format, pair)
        evidence.check()
        found = answer(asked.gate, evidence, asked.alpha, all_quantities=at_the_end)
        known = quality.known(spec)
        source, instead = "the stored reference", f"let the {spec.reference} reference be loaded"
        if not spec.in_process:
            source, instead = "the predictions of vllm", 'ask it with engine="transformers"'
        caveat = (
            f"from {source} only a lower bound is known (over its top {known.top_k} tokens); limit that with "
            f"max_bound, or {instead}"
        )
        measured = self._measurement(
            asked,
            found.main,
            found.quantities,
            found.figures,
            protocol=quality.identity(spec),
            detail={"bound": {"top_k": known.top_k}} if found.main == "bound" else {},
        )
        if at_the_end and spec.mixes_engines:
            measured = self._with_floor(asked, measured, pair)
        return replace(
            measured,
            windows=(len(evidence.scores), evidence.total),
            confidence=None if evidence.complete else self._settings.confidence,
            alpha=asked.alpha,
            scores=tuple(found.scores),
            reference_scores=tuple(evidence.reference_nll),
            weights=tuple(float(weight) for weight in found.weights),
            reference_stored=0 if pair.beside else min(known.stored, len(evidence.scores)),
            lower_bounds=found.lower_bounds,
            caveat=caveat if found.lower_bounds else "",
        )

    def _with_floor(self, asked: Question, measured: Measurement, pair: Pair) -> Measurement:
        """What the engines alone make, where the reference ran on another one. :class:`ProofFailed` where the format
        answers as the reference's own weights do on its engine."""
        spec = asked.spec
        try:
            floor = self._session.engine_floor(spec)
        except QuantError as error:
            return replace(measured, engines=f"{measured.engines}; what they alone make is not known: {error}")
        self._session.quality.require_difference(spec, asked.format, pair)
        figures = {"engine_floor": floor.mean, "engine_floor_worst": floor.worst}
        told = (
            f"{measured.engines}; the same {spec.reference} weights are {floor.mean:+.2g} nats a token apart "
            f"({floor.perplexity:+.2g} of perplexity, at most {floor.worst:.2g} nats in one of {floor.windows} windows)"
        )
        return replace(measured, figures={**measured.figures, **figures}, engines=told)

    def _from_units(self, asked: Question, sample: Sample) -> Measurement:
        """The measurement that the units answered so far give."""
        found = sample.answer(asked.alpha)
        limited = {LIMITS[asked.gate.metric][name].quantity for name, _ in asked.gate.limits}
        if not limited <= found.quantities.keys():
            raise NotMeasured(
                f"the {asked.spec.reference} reference has none of the {sample.total} {sample.noun} right, so there is "
                f"nothing to recover; choose a task that it can do"
            )
        measured = self._measurement(
            asked, found.main, found.quantities, found.figures, protocol=dict(sample.identity())
        )
        return replace(
            measured,
            windows=(sample.drawn, sample.total),
            noun=sample.noun,
            reference_stored=sample.reference_stored,
            confidence=None if sample.drawn == sample.total else self._settings.confidence,
            alpha=asked.alpha,
            scores=tuple(found.scores),
            reference_scores=None if found.reference_scores is None else tuple(found.reference_scores),
            weights=tuple(float(weight) for weight in found.weights),
        )

    def _from_rounds(self, asked: Question, found: Found) -> Measurement:
        """The measurement that the rounds played so far give, but for the proof."""
        measured = self._measurement(asked, found.main, found.quantities, found.figures, detail=found.detail, proof={})
        return replace(
            measured,
            confidence=self._settings.confidence,
            alpha=asked.alpha,
            rounds=found.rounds,
            spent=found.spent,
            bounds=found.bounds,
            conditions=found.conditions,
            remark=found.remark,
        )

    def _measurement(
        self,
        asked: Question,
        main: str,
        quantities: Any,
        figures: Any,
        protocol: Any = None,
        detail: Mapping[str, Any] = MappingProxyType({}),
        proof: Mapping[str, Any] | None = None,
    ) -> Measurement:
        spec, gate = asked.spec, asked.gate
        if proof is None:
            corpus = (protocol or {}).get("corpus", {}).get("sha256")
            proof = self._session.turns.format(spec, asked.format).figures(corpus)
        fingerprint = self._session.fingerprint(spec.source)
        device = self._session.device
        told = served(spec, asked.format, device)
        of_reference = served(spec, spec.reference, device) if spec.mixes_engines else {}
        where = f"{spec.reference} on {spec.reference_engine}, {asked.format} on {spec.engine}"
        return Measurement(
            metric=gate.metric,
            model=spec.source.short,
            format=asked.format,
            engine=spec.engine,
            main=main,
            quantities=quantities,
            identity=identity(spec, asked.format, gate, fingerprint, detail, protocol, told, of_reference),
            reference=spec.reference if gate.needs_reference else None,
            figures=figures,
            proof=proof,
            engines=f"engines differ: {where}" if spec.mixes_engines and gate.needs_reference else "",
        )


_OF_A_SCAN = ("whole", "layers", "kinds", "depths", "left_out", "smaller_groups", "reused", "seconds")
"""Of a scan, what no other field of the measurement says."""
_AT_ONCE = 32
"""Units between two signs of progress."""


def _settled(asked: Question, measured: Measurement) -> bool:
    """Whether more windows or units could not change the verdict."""
    return decided(measured, asked.gate.limits) and asked.enough(measured)
