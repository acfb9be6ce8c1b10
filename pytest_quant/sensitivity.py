"""Which layers a format hurts: each is put into it by itself, window after window, and compared with the reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_quant.corpora.windows import Window
from pytest_quant.engines import candidates
from pytest_quant.engines.candidates import Candidates, Layer
from pytest_quant.engines.replay import Change, Replay, swapped
from pytest_quant.errors import NotMeasured, ProofFailed, Unsupported, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.rounding import Rounding
from pytest_quant.metrics import keeping, pairing
from pytest_quant.metrics import sensitivity as metric
from pytest_quant.metrics.keeping import Budget, Kept
from pytest_quant.metrics.sensitivity import Effect, Row, Sampled, Scan
from pytest_quant.population import Population
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.hardware import Device
    from pytest_quant.model import ModelHandle
    from pytest_quant.progress import Progress
    from pytest_quant.settings import Settings

WINDOWS = 8


class Sensitivity:
    """Scans layers; needs the reference and, for a format, the format's model beside it."""

    def __init__(
        self,
        settings: Settings,
        device: Device,
        population: Population,
        model: Callable[[ModelSpec, str], ModelHandle],
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._device = device
        self._population = population
        self._model = model
        self._progress = progress

    def scan(
        self,
        spec: ModelSpec,
        asked: str | Rounding,
        *,
        of: str = "layer",
        windows: int = WINDOWS,
        only: Sequence[str] = (),
    ) -> Scan:
        """Every layer (``of="block"``: decoder block) alone in the format, or with its weight rounded.

        Windows are the first of the run's population in its drawn order. ``only`` are patterns of names. Raises
        :class:`UsageError` for a question without sense, :class:`NotMeasured` where the format has no layers of its own
        or the reference no finite perplexity, :class:`ProofFailed` where nothing changes, and what loading the models
        raises.
        """
        begun = time.monotonic()
        _check(spec, asked, of, windows, only)
        pair = self._pair(spec, asked)
        found = candidates.chosen(pair.candidates, of, only)
        if not found.layers:
            raise _nothing(pair.candidates, spec, pair.name, only)
        drawn = self._windows(spec, pair, windows)
        effects: list[list[tuple[float, float]]] = [[] for _ in found.layers]
        whole: list[tuple[float, float]] = []
        nll: list[float] = []
        try:
            with Replay(pair.reference.in_process("a scan")) as replay:
                for number, window in enumerate(drawn, 1):
                    scored = self._window(pair, found, replay, window, f"window {number}/{len(drawn)}")
                    nll.append(scored.nll)
                    whole.append(scored.whole)
                    for effect, one in zip(effects, scored.layers, strict=True):
                        effect.append(one)
                reused = replay.reused
        finally:
            self._progress.clear()
        sample = self._sample(spec, drawn, nll)
        made = Scan(
            model=spec.source.short,
            format=pair.name,
            reference=spec.reference,
            of=of,
            rows=metric.scanned(found.layers, [_effect(effect) for effect in effects], sample),
            whole=_whole(pair, _effect(whole), sample),
            sample=sample,
            left_out=found.left_out,
            identity=self._population.windows(spec.source).identity,
            reused=reused,
            seconds=time.monotonic() - begun,
            source=spec.source,
            complete=not only or _modules(found) == _modules(candidates.chosen(pair.candidates, of, ())),
            head=found.head,
            group_size=asked.size if isinstance(asked, Rounding) else None,
            smaller_groups=_smaller_groups(asked, found) if isinstance(asked, Rounding) else (),
        )
        if all(value == 0.0 for row in (*made.rows, made.whole) for value in (*row.effect.nats, *row.effect.kl)):
            raise ProofFailed(
                f"none of {len(made.rows)} layers of {spec.source.short} in {pair.name} changes what the model says "
                f"in {len(nll)} windows: the format was not applied"
            )
        return made

    def check(self, spec: ModelSpec, asked: str | Rounding, of: str, windows: int) -> None:
        """:class:`UsageError` for a question without sense; loads nothing."""
        _check(spec, asked, of, windows, ())

    def keep(self, spec: ModelSpec, asked: str | Rounding, scan: Scan, budget: Budget) -> Kept:
        """The fewest of the scan's layers, sorted by KL or by nats, that must stay wide for a budget, verified on the
        scan's windows."""
        pair = self._pair(spec, asked)
        drawn = self._windows(spec, pair, scan.sample.used)

        def measure(kept: Sequence[Row]) -> Effect:
            names = [name for row in kept for name in row.layer.modules]
            found = []
            for number, window in enumerate(drawn, 1):
                self._progress.show(f"{pair.name} but {len(kept)} of {len(scan.parts)}: window {number}/{len(drawn)}")
                found.append(_mean(window, pair.mixed(names, window)))
            return _effect(found)

        try:
            return keeping.keep(scan, budget, measure)
        finally:
            self._progress.clear()

    def _pair(self, spec: ModelSpec, asked: str | Rounding) -> _Pair:
        reference = self._model(spec, spec.reference)
        loaded = reference.in_process("a scan")
        if loaded.offload is not None or len(loaded.places) > 1:
            raise Unsupported(
                asked=f"the sensitivity of the layers of {spec.source.short}",
                found=f"{spec.placement}, which spreads it: layers of two models cannot stand in for each other there",
                needed="one device for the whole model",
            )
        if isinstance(asked, Rounding):
            return _Rounded(asked.name, reference, candidates.of_rounding(reference, asked))
        quantized = self._model(spec, asked)
        quantized.in_process("a scan")
        return _Formatted(asked, reference, candidates.of_format(reference, quantized), quantized)

    def _windows(self, spec: ModelSpec, pair: _Pair, count: int) -> Sequence[Window]:
        windows = self._population.windows(spec.source)
        for handle in pair.handles:
            pairing.check_fits(handle.loaded, windows)
            self._population.check(spec.source, handle.loaded.vocabulary)
        return windows.drawn[:count]

    def _window(self, pair: _Pair, found: Candidates, replay: Replay, window: Window, where: str) -> _Scored:
        """One window: the reference once for each of its pieces, then every layer on it."""
        import numpy as np

        layers: list[list[Change]] = [[] for _ in found.layers]
        losses, whole = [], []
        for piece in window.pieces:
            replay.record(piece.tokens, piece.scored_from)
            losses.append(replay.nll())
            whole.append(pair.whole(replay, piece.tokens, piece.scored_from))
            for done, (layer, changes) in enumerate(zip(found.layers, layers, strict=True)):
                self._progress.show(f"{pair.name}: {where}, layer {done + 1}/{len(layers)}")
                changes.append(replay.change({name: found.stand_ins[name] for name in layer.modules}))
        nll = float(np.concatenate(losses).sum()) / window.weight
        if not np.isfinite(nll):
            raise NotMeasured(f"the {pair.reference.format.name} reference gave no finite perplexity in {where}")
        return _Scored(nll, _mean(window, whole), [_mean(window, changes) for changes in layers])

    def _sample(self, spec: ModelSpec, drawn: Sequence[Window], nll: Sequence[float]) -> Sampled:
        return Sampled(
            nll=tuple(nll),
            weights=tuple(float(window.weight) for window in drawn),
            tokens=tuple(window.scored for window in drawn),
            alpha=1.0 - self._settings.confidence,
            text=len(self._population.windows(spec.source).drawn),
        )


class _Scored:
    """One window's figures: the reference's NLL, and nats and KL of the whole format and of each layer."""

    def __init__(self, nll: float, whole: tuple[float, float], layers: list[tuple[float, float]]) -> None:
        self.nll, self.whole, self.layers = nll, whole, layers


class _Pair:
    """A reference and what its layers are put into."""

    def __init__(self, name: str, reference: ModelHandle, found: Candidates) -> None:
        self.name = name
        self.reference = reference
        self.candidates = found

    @property
    def handles(self) -> Iterator[ModelHandle]:
        yield self.reference

    def whole(self, replay: Replay, tokens: NDArray[np.int64], scored_from: int) -> Change:
        """All of it at once, on the sequence that was recorded."""
        raise NotImplementedError

    def mixed(self, kept: Sequence[str], window: Window) -> list[Change]:
        """All of it but the modules that are kept wide, on each piece of a window."""
        raise NotImplementedError


class _Rounded(_Pair):
    """The reference, with the weights of all linear layers but tables rounded."""

    def whole(self, replay: Replay, tokens: NDArray[np.int64], scored_from: int) -> Change:
        return replay.change(self._modules(()))

    def mixed(self, kept: Sequence[str], window: Window) -> list[Change]:
        found = []
        with Replay(self.reference.in_process("a scan"), pack=False, reuse=False) as replay:
            for piece in window.pieces:
                replay.record(piece.tokens, piece.scored_from)
                found.append(replay.change(self._modules(kept)))
        return found

    def _modules(self, kept: Sequence[str]) -> Mapping[str, Any]:
        names = (layer.name for layer in self.candidates.layers if layer.kind not in candidates.TABLES)
        return {name: self.candidates.stand_ins[name] for name in names if name not in kept}


class _Formatted(_Pair):
    """The format's own model, with modules of the reference put back where they are kept."""

    def __init__(self, name: str, reference: ModelHandle, found: Candidates, quantized: ModelHandle) -> None:
        super().__init__(name, reference, found)
        self._quantized = quantized

    @property
    def handles(self) -> Iterator[ModelHandle]:
        yield from (self.reference, self._quantized)

    def whole(self, replay: Replay, tokens: NDArray[np.int64], scored_from: int) -> Change:
        return self._against(tokens, scored_from)

    def mixed(self, kept: Sequence[str], window: Window) -> list[Change]:
        with swapped(self._quantized.model, candidates.put_back(self.reference, self._quantized, kept)):
            return [self._against(piece.tokens, piece.scored_from) for piece in window.pieces]

    def _against(self, tokens: NDArray[np.int64], scored_from: int) -> Change:
        ours, theirs = (handle.in_process("a scan") for handle in (self._quantized, self.reference))
        nll, _, found = ours.against(theirs, tokens[None], scored_from, 1)
        assert found.kl is not None
        return Change(found.nll.astype("float64") - nll, found.kl.astype("float64"))


def _check(spec: ModelSpec, asked: str | Rounding, of: str, windows: int, only: Sequence[str]) -> None:
    if not isinstance(asked, (str, Rounding)):
        raise UsageError(f"{asked!r} cannot be scanned: give the name of a format or a Rounding")
    if of not in ("layer", candidates.BLOCK):
        raise UsageError(f'of={of!r}: a scan is of="layer" or of="block"')
    if type(windows) is not int or windows < 1:
        raise UsageError(f"windows={windows!r}: a scan needs one window at least, a whole number")
    if isinstance(only, str) or not all(isinstance(pattern, str) for pattern in only):
        raise UsageError(f"only={only!r}: give a list of patterns of names")
    if isinstance(asked, Rounding):
        asked.check()
        return
    if asked == spec.reference:
        raise UsageError(f"{asked} is the reference itself: none of its layers differs")
    if registry.get(asked).kv_cache is not None:
        raise UsageError(f"{asked}: a KV cache is no layer; scan {registry.get(asked).base}")


def _nothing(found: Candidates, spec: ModelSpec, name: str, only: Sequence[str]) -> UsageError | NotMeasured:
    if only and found.layers:
        some = ", ".join(layer.name for layer in found.layers[:3])
        return UsageError(f"no layer of {spec.source.short} in {name} matches {', '.join(only)}; there are {some}, ...")
    lacking = f" ({len(found.left_out)} matrices are no modules, such as {found.left_out[0]})" if found.left_out else ""
    return NotMeasured(f"{spec.source.short} has no layers in {name} that could stand in for the reference's{lacking}")


def _mean(window: Window, changes: Sequence[Change]) -> tuple[float, float]:
    """Nats by what the window's NLL is counted by, and KL by its tokens."""
    nats = sum(float(change.nats.sum()) for change in changes)
    return nats / window.weight, max(sum(float(change.kl.sum()) for change in changes) / window.scored, 0.0)


def _effect(found: Sequence[tuple[float, float]]) -> Effect:
    return Effect(tuple(nats for nats, _ in found), tuple(kl for _, kl in found))


def _modules(found: Candidates) -> set[str]:
    return {name for layer in found.layers for name in layer.modules}


def _smaller_groups(asked: Rounding, found: Candidates) -> tuple[int, ...]:
    """Group sizes in use other than the one that was asked for."""
    sizes = {found.roundings[name].size for name in _modules(found)}
    return tuple(sorted((size for size in sizes if size is not None and size != asked.size), reverse=True))


def _whole(pair: _Pair, effect: Effect, sample: Sampled) -> Row:
    """Of all parts of the format: tables are none."""
    layers = [layer for layer in pair.candidates.layers if layer.kind not in candidates.TABLES]
    saved = [layer.bytes_saved for layer in layers]
    total = None if None in saved else sum(size or 0 for size in saved)
    layer = Layer(pair.name, "whole", None, sum(one.weights for one in layers), total, ())
    return Row(layer, effect, *sample.estimates(effect), sample.of_text(effect))
