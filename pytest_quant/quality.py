"""Quality of a format: its windows are scored beside the reference's, as many as its gates need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from pytest_quant.corpora.windows import Windows
from pytest_quant.distribution.one_at_a_time import first_word, turn
from pytest_quant.engines.memory import drop_frames, give_back, is_out_of_memory
from pytest_quant.engines.source import ModelSource
from pytest_quant.environment import describe_hardware, for_people, stack
from pytest_quant.errors import ProofFailed, QuantError, Unsupported, UsageError
from pytest_quant.gates.gate import Gate, needs_full_kl
from pytest_quant.identity import reference_runs_on
from pytest_quant.known import KnownReference
from pytest_quant.metrics import engine_floor, pairing
from pytest_quant.metrics.engine_floor import EngineFloor
from pytest_quant.metrics.evidence import Evidence
from pytest_quant.metrics.pairing import WindowScore
from pytest_quant.population import Population
from pytest_quant.reference import ReferenceKey, Store, StoreError
from pytest_quant.room import NoRoom
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.hardware import Device
    from pytest_quant.model import ModelHandle
    from pytest_quant.progress import Progress
    from pytest_quant.settings import Settings
    from pytest_quant.turns import Turns


_FLOOR_WINDOWS = 8


@dataclass
class Pair:
    """One format beside its reference, and the windows that were scored so far."""

    beside: bool
    """Whether both models are run, for the divergence over the whole vocabulary."""
    scores: list[WindowScore] = field(default_factory=list)


class Quality:
    """Scores windows on demand; what was scored serves every later question on the same format."""

    def __init__(
        self,
        settings: Settings,
        device: Device,
        population: Population,
        turns: Turns,
        fingerprint: Callable[[ModelSource], str],
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._device = device
        self._population = population
        self._turns = turns
        self._fingerprint = fingerprint
        self._progress = progress
        self._known: dict[tuple[ModelSource, str, str], KnownReference] = {}
        self._pairs: dict[tuple[ModelSpec, str, bool], Pair] = {}
        self._expected: set[tuple[ModelSpec, str]] = set()
        self._checked: WeakSet[ModelHandle] = WeakSet()
        self._longest = 0
        self._most = 8

    def expect(self, spec: ModelSpec, format_name: str, gate: Gate) -> None:
        """Say beforehand what will be asked, so that no window is scored twice for two questions."""
        if needs_full_kl(gate):
            self._expected.add((spec, format_name))

    def knows_reference(self, spec: ModelSpec) -> bool:
        """Whether the store answers for the reference, so that it need not be loaded."""
        return self.known(spec).complete

    def identity(self, spec: ModelSpec) -> Mapping[str, Any]:
        """The protocol's identity."""
        return self._population.windows(spec.source).identity

    def total(self, spec: ModelSpec) -> int:
        """Windows of the whole population."""
        return len(self._population.windows(spec.source).drawn)

    def pair(self, spec: ModelSpec, format_name: str, gate: Gate) -> Pair:
        """The pair that answers a gate."""
        if format_name == spec.reference:
            raise UsageError(f"{format_name} is the reference itself: its difference from the reference is 0")
        beside = (spec, format_name, True) in self._pairs
        alone = self._turns.are_taken(spec, format_name) or not spec.in_process
        if not (beside or alone) and (needs_full_kl(gate) or (spec, format_name) in self._expected):
            beside = self._reference_can_be_had(spec, needed=needs_full_kl(gate))
        return self._pairs.setdefault((spec, format_name, beside), Pair(beside))

    def scored(self, spec: ModelSpec, format_name: str) -> tuple[WindowScore, ...]:
        """What was scored of a format so far, in the drawn order; nothing is loaded or scored for it."""
        pairs = (self._pairs.get((spec, format_name, beside)) for beside in (True, False))
        return next((tuple(pair.scores) for pair in pairs if pair is not None and pair.scores), ())

    def forget(self, spec: ModelSpec) -> None:
        """Forget every score of a model, and what was learned of its reference: somebody changed one of them."""
        self._pairs = {key: pair for key, pair in self._pairs.items() if key[0] != spec}
        self._known.pop(self._reference_of(spec), None)

    def evidence(self, spec: ModelSpec, format_name: str, pair: Pair) -> Evidence:
        """What the pair has found so far."""
        windows = self._population.windows(spec.source)
        return Evidence(
            format=format_name,
            reference=spec.reference,
            scores=tuple(pair.scores),
            total=len(windows.drawn),
            unit=windows.unit,
            reference_mean=self.known(spec).mean,
        )

    def extend(self, spec: ModelSpec, format_name: str, pair: Pair, goal: int = 0) -> None:
        """Score the next batch of windows; where memory does not suffice for several at once, in smaller batches. With
        several workers, whoever finds that the reference is not known so far has it score all up to ``goal``.

        Where there is no room for the reference beside the format, they take turns: the reference scores all windows of
        the population at once, whatever this gate needs, so that it is loaded once for all gates and formats.
        """
        try:
            return self._in_memory(lambda: self._extend(spec, format_name, pair, goal))
        except Exception as error:
            if isinstance(error, QuantError) or not is_out_of_memory(error) or pair.beside:
                raise
            drop_frames(error)
            if not self._turns.part(spec, format_name):
                raise
        self._in_memory(lambda: self._extend(spec, format_name, pair, goal))

    def _extend(self, spec: ModelSpec, format_name: str, pair: Pair, goal: int) -> None:
        windows, known = self._population.windows(spec.source), self.known(spec)
        model = self._turns.beside(spec, format_name) if pair.beside else self._turns.format(spec, format_name)
        start = len(pair.scores)
        self._check(spec, model, windows)
        size = self._at_once(model, windows)
        if pair.beside:
            reference = self._turns.beside(spec, spec.reference)
            self._check(spec, reference, windows)
            batch = pairing.next_batch(windows, start, min(size, self._at_once(reference, windows)))
            found = pairing.score_beside(model.loaded, reference.loaded, batch, known.top_k)
            pair.scores += [score for score, _ in found]
            known.learn(start, [reference for _, reference in found])
            return
        batch = pairing.next_batch(windows, start, size)
        self._know(spec, known, start + len(batch), goal, format_name)
        model = self._turns.format(spec, format_name)  # anew, where it gave way to the reference
        pair.scores += pairing.score_against(model.loaded, batch, known.windows(start, len(batch)))

    def _know(self, spec: ModelSpec, known: KnownReference, needed: int, goal: int, format_name: str) -> None:
        """Have the reference score what is ``needed`` and not known. Workers do it one at a time, up to ``goal`` and
        stored for the others, so that no window is scored twice in a run."""
        together = self._settings.together
        if len(known) >= needed:
            return
        with turn(together, f"reference-{known.digest}"):
            if together is not None:
                known.reread()
            while len(known) < (needed if together is None else max(needed, goal)):
                self._learn(spec, known, format_name)
            if together is not None:
                self.save(spec)

    def build_reference(self, spec: ModelSpec) -> Path:
        """Have the reference score every window, whatever is stored, and store that on purpose."""
        known, total = self._known_to(spec, read=False), self.total(spec)
        self._known[self._reference_of(spec)] = known
        try:
            while not known.complete:
                self._in_memory(lambda: self._learn(spec, known))
                self._progress.show(f"{spec.reference}: scoring {spec.source.short} {len(known)}/{total} windows")
        finally:
            self._progress.clear()
        return Store(self._settings.cache_dir).write(known.whole(self._recorded(spec)), anew=True)

    def floor(self, spec: ModelSpec) -> float:
        """Mean bound of the KL that the reference has from its own stored word, nats: what rounding costs."""
        windows, known, reference = self._population.windows(spec.source), self.known(spec), self._reference(spec)
        bounds: list[float] = []
        for start in range(min(_FLOOR_WINDOWS, len(windows.drawn))):
            [score] = pairing.score_against(reference.loaded, windows.drawn[start : start + 1], known.windows(start, 1))
            bounds.append(float(score.bound.mean()))
        return sum(bounds) / len(bounds)

    def engine_floor(self, spec: ModelSpec) -> EngineFloor:
        """What the reference's weights give on the formats' engine, against what they give on the reference's own, in
        the first windows. Raises what loading them raises."""
        windows = self._population.windows(spec.source).drawn[:_FLOOR_WINDOWS]
        found: list[list[float]] = []
        for each in (spec, replace(spec, reference_engine=None)):
            known = self.known(each)
            while len(known) < len(windows):
                self._in_memory(partial(self._learn, each, known))
                self._progress.show(f"{spec.reference} on {each.engine_of(spec.reference)}: {len(known)} windows")
            self.save(each)
            found.append([float(window.nll.sum(dtype=float)) for window in known.windows(0, len(windows))])
        return engine_floor.between(found[0], found[1], [float(window.weight) for window in windows])

    def require_difference(self, spec: ModelSpec, format_name: str, pair: Pair) -> None:
        """:class:`ProofFailed` where a format gives, in the windows of the floor, the very losses that the reference's
        weights give on the same engine: a difference between engines proves nothing of a format."""
        import numpy as np

        plain = self.known(replace(spec, reference_engine=None))
        count = min(_FLOOR_WINDOWS, len(plain), len(pair.scores))
        both = zip(pair.scores, plain.windows(0, count), strict=False)
        if count and all(np.array_equal(ours.nll, theirs.nll) for ours, theirs in both):
            raise ProofFailed(f"{format_name} answers on {spec.engine} exactly as {spec.reference} does there")

    def save(self, spec: ModelSpec) -> None:
        """Keep for later runs what this one learned of the reference."""
        self.known(spec).save(lambda: self._recorded(spec))

    def _recorded(self, spec: ModelSpec) -> dict[str, Any]:
        kept = for_people(describe_hardware(self._device))
        return {"model": spec.source.short, "device": self._device.name, **kept}

    def reference_now(self, spec: ModelSpec, count: int) -> list[float]:
        """NLL of the first ``count`` windows as the reference gives it now, nats a token or word, whatever was stored.

        Raises :class:`Unsupported` and the like where it cannot be loaded.
        """
        windows = self._population.windows(spec.source)
        reference = self._reference(spec)
        found: list[float] = []

        def score() -> None:
            batch = pairing.next_batch(windows, len(found), self._at_once(reference, windows))
            scored = pairing.score_reference(reference.loaded, batch, 1)
            found.extend(float(w.nll.sum(dtype=float)) / of.weight for w, of in zip(scored, batch, strict=True))

        while len(found) < min(count, len(windows.drawn)):
            self._in_memory(score)
            self._progress.show(f"{spec.reference}: checking {spec.source.short} {len(found)}/{count} windows")
        return found[:count]

    def known(self, spec: ModelSpec) -> KnownReference:
        """What is known of the reference of this run's windows."""
        key = self._reference_of(spec)
        if key not in self._known:
            self._known[key] = self._known_to(spec, read=True)
        return self._known[key]

    def _reference_of(self, spec: ModelSpec) -> tuple[ModelSource, str, str]:
        return spec.source, spec.reference, reference_runs_on(spec, self._device)

    def _known_to(self, spec: ModelSpec, *, read: bool) -> KnownReference:
        windows, cache = self._population.windows(spec.source), self._settings.cache_dir
        _, format_name, runs_on = self._reference_of(spec)
        key = ReferenceKey(self._fingerprint(spec.source), format_name, runs_on, windows.identity)
        kept, own = Store(cache), Store(cache / "runs" / stack(self._device))
        together, name = self._settings.together, f"reference-{key.digest}"
        with turn(together, name):
            known = KnownReference(kept, own, key, windows, read=read)
            if read and together is not None:
                known.before = first_word(together, name, known.stored)
        return known

    def _in_memory(self, work: Callable[[], None]) -> None:
        """Do it; where memory does not suffice, again with half as many windows at once."""
        while True:
            try:
                return work()
            except Exception as error:
                if isinstance(error, QuantError) or not is_out_of_memory(error) or self._most == 1:
                    raise
                self._most //= 2
            give_back(self._device)

    def _learn(self, spec: ModelSpec, known: KnownReference, format_name: str | None = None) -> None:
        """Have the reference score the next batch; every window that is left, where the ``format_name`` has to give way
        to it."""
        reference = self._reference(spec, format_name)
        windows, apart = self._population.windows(spec.source), False
        if format_name is not None:
            apart = self._turns.are_taken(spec, format_name)
        while True:
            batch = pairing.next_batch(windows, len(known), self._at_once(reference, windows))
            known.learn(len(known), pairing.score_reference(reference.loaded, batch, known.top_k))
            if known.complete or not apart:
                return
            self._progress.show(
                f"{spec.reference}: scoring {spec.source.short} {len(known)}/{len(windows.drawn)} windows, alone: "
                f"{format_name} does not fit beside it"
            )

    def _reference(self, spec: ModelSpec, beside: str | None = None) -> ModelHandle:
        """The reference, ``beside`` a format where both fit; else, and without one, in the place of what is here."""
        turns = self._turns
        reference = turns.format(spec, spec.reference) if beside is None else turns.reference(spec, beside)
        self._check(spec, reference, self._population.windows(spec.source))
        return reference

    def _check(self, spec: ModelSpec, model: ModelHandle, windows: Windows) -> None:
        """Once a model: that it knows the tokens and has room for the windows."""
        if model in self._checked:
            return
        pairing.check_fits(model.loaded, windows)
        if model.format.kv_cache is not None:
            model.format.kv_cache.check_length(max(len(p.tokens) for window in windows.drawn for p in window.pieces))
        self._population.check(spec.source, model.loaded.vocabulary)
        highest = self.known(spec).highest_token
        if highest >= model.loaded.vocabulary:
            raise StoreError(
                f"the stored reference of {spec.source.short} names token {highest}, but the model knows "
                f"{model.loaded.vocabulary}: it is of another model; `pytest-quant reference list` shows it"
            )
        self._checked.add(model)

    def _at_once(self, model: ModelHandle, windows: Windows) -> int:
        """Windows in one forward. Where activations are quantized, a window's score could depend on its company
        (LLM.int8 looks for outliers in the whole batch), so it has none."""
        if model.format.input_activations is not None:
            return 1
        if self._longest == 0:
            self._longest = max(len(piece.tokens) for window in windows.drawn for piece in window.pieces)
        return min(model.loaded.windows_at_once(self._longest), self._most)

    def _reference_can_be_had(self, spec: ModelSpec, *, needed: bool) -> bool:
        """Whether the reference is to be run beside the format: an imported one that is whole stands for it always, one
        that was built here where nothing more is ``needed``; and where both do not fit, what it says when it is alone.
        Raises :class:`Unsupported` where none can be had."""
        known = self.known(spec)
        if known.complete and (known.imported or (known.on_purpose and not needed)):
            return False
        try:
            self._turns.beside(spec, spec.reference)
        except NoRoom:
            return False
        except Unsupported:
            if needed and not known.complete:
                raise
            return False
        return True
