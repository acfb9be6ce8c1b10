"""Speed, energy and cost of a format: rounds of timed runs beside the reference's, as many as its gates need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from pytest_quant.ceiling import Ceiling, ceiling
from pytest_quant.engines.memory import drop_frames, give_back, origin_out_of_memory
from pytest_quant.engines.timing import threads
from pytest_quant.errors import UsageError
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Quantity
from pytest_quant.hardware.condition import Condition
from pytest_quant.metrics import cost, throughput
from pytest_quant.metrics import energy as energies
from pytest_quant.metrics.rounds import Rounds, Run, block, play
from pytest_quant.metrics.throughput import Player, pieces
from pytest_quant.metrics.workload import Workload, prompt
from pytest_quant.room import NoRoom, Work, needed, require
from pytest_quant.spec import ModelSpec
from pytest_quant.stats.median import fewest_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.hardware import Device
    from pytest_quant.hardware.energy import Counter
    from pytest_quant.hardware.matrix import Matrix
    from pytest_quant.model import ModelHandle
    from pytest_quant.models import Models
    from pytest_quant.progress import Progress
    from pytest_quant.settings import Settings

_ROUNDS_TO_REFUSE = 3
"""Rounds of the reference that are seen before a limit is called impossible."""
_MARGIN, _MARGIN_MEASURED = 1.05, 1.5
"""By how much a limit must be beyond the bound: rates that were measured may have been measured beside other work."""
_WARM_UP = 1


@dataclass
class _Pair:
    """One workload of one format, and what was found of it so far."""

    rounds: Rounds = field(default_factory=Rounds)
    whole: int = 1
    """Rounds in which the whole workload was run."""
    apart: bool = False
    """Whether the models take turns in memory, so that every round loads one of them."""
    bounds: dict[str, Ceiling] = field(default_factory=dict)
    """By ``format`` and ``reference``; what is not known is absent."""
    conditions: dict[str, Condition] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What the rounds say at a moment."""

    main: str
    quantities: Mapping[str, Quantity]
    figures: Mapping[str, float]
    detail: Mapping[str, Any]
    """What belongs to the identity besides the gate's parameters."""
    rounds: int
    spent: bool = False
    bounds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    conditions: tuple[tuple[str, str], ...] = ()
    remark: str = ""
    """What to hear of a limit even where it holds."""


class Speed:
    """Times formats on demand; rounds that were played serve every later question on the same workload."""

    def __init__(
        self,
        settings: Settings,
        device: Device,
        matrix: Matrix,
        models: Models,
        stream: Callable[[ModelHandle, ModelSpec], NDArray[np.int64]],
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._device = device
        self._matrix = matrix
        self._models = models
        self._stream = stream
        self._progress = progress
        self._pairs: dict[tuple[ModelSpec, str, Workload, bool], _Pair] = {}

    def measure(
        self, spec: ModelSpec, format_name: str, gate: Gate, alpha: float, enough: Callable[[Found], bool]
    ) -> Found:
        """Play rounds until ``enough`` says so or the budget is spent, but the whole workload once, and as many as
        bound an interval.

        Raises :class:`UsageError` for a limit that the hardware cannot keep, or where the model has too few
        positions, ``Unsupported`` where energy cannot be read.
        """
        work = workload(gate)
        counter = self._counter() if gate.metric == "energy_ratio" else None
        pair = self._pairs.setdefault((spec, format_name, work, counter is not None), _Pair())
        fewest = fewest_values(alpha)

        def done() -> bool:
            self._refuse_impossible(spec, format_name, gate, work, pair)
            played, said = len(pair.rounds), ""
            found = self._found(pair, gate, work, alpha, counter) if played else None
            if found is not None and pair.apart and found.spent:
                return True  # ten rounds of loading could take hours
            if found is not None and played >= max(fewest, pair.whole):
                if found.spent or enough(found):
                    return True
                said = f", {gate.metric} {found.quantities[found.main]}"
            if played:
                rounds = "1 round" if played == 1 else f"{played} rounds"
                told = f"{format_name}: timing {work.phase} against {spec.reference}, {rounds}{said}"
                self._progress.show(told)
            return False

        if not done():
            with self._players(spec, format_name, work, counter, pair) as more, self._watched(pair):
                while True:
                    more()
                    if done():
                        break
        return self._found(pair, gate, work, alpha, counter, at_the_end=True)

    def forget(self, spec: ModelSpec) -> None:
        """Forget every round of a model: somebody changed it."""
        self._pairs = {key: pair for key, pair in self._pairs.items() if key[0] != spec}

    def _counter(self) -> Counter:
        from pytest_quant.hardware.energy import counter

        return counter(self._device)

    @contextmanager
    def _watched(self, pair: _Pair) -> Iterator[None]:
        """Note what makes the number untrue while rounds are played. What the user calls usual is not noted."""
        from pytest_quant.hardware.conditions import Watch

        watch = Watch(self._device, workers=self._settings.company)
        self._look = watch.look
        watch.start()
        try:
            yield
        finally:
            seen = watch.stop()
            found = {one.name: one for one in seen.found if one.name not in self._settings.accept}
            pair.conditions.update(found)
            pair.figures.update(seen.figures)

    @contextmanager
    def _players(
        self, spec: ModelSpec, format_name: str, work: Workload, counter: Counter | None, pair: _Pair
    ) -> Iterator[Callable[[], None]]:
        """What plays one more round or, where both models do not fit, one more block of each."""
        names = {"format": format_name, "reference": spec.reference}

        def ready(which: str, handle: ModelHandle) -> Player:
            return self._warm(spec, handle, work, pair, which)

        def counted(player: Player) -> Callable[[], Run]:
            return player.whole if counter is None else lambda: energies.counted(player.whole, counter)

        try:
            handles = {which: self._models.get(spec, name) for which, name in names.items()}
            players = [ready(which, handle) for which, handle in handles.items()]
        except Exception as error:
            if not isinstance(error, NoRoom) and origin_out_of_memory(error) is None:
                raise
            drop_frames(error)  # they may not fit together, and each of them alone
            give_back(self._device)
            players = []
        more: Callable[[], None]
        if players:
            ours, theirs = players
            if counter is not None or work.phase != "decode":
                more = partial(play, pair.rounds, counted(ours), counted(theirs))
            else:
                turns = self._pieces(work, ours, theirs)
                pair.whole = len(turns)
                more = partial(_play_piece, pair.rounds, ours, theirs, cycle(turns))
        else:

            def alone(which: str) -> Callable[[], Run]:
                return counted(ready(which, self._models.alone(spec, names[which])))

            pair.apart = True
            more = partial(
                play, pair.rounds, partial(block, partial(alone, "format")), partial(block, partial(alone, "reference"))
            )

        start = time.perf_counter()

        def timed() -> None:
            nonlocal start
            more()
            self._look()
            now = time.perf_counter()
            pair.rounds.spent += now - start
            start = now

        yield timed

    def _pieces(self, work: Workload, ours: Player, theirs: Player) -> list[tuple[int, int]]:
        return pieces(work, max(ours.step, theirs.step, 1e-9), waits=self._device.kind == "cpu")

    def _warm(self, spec: ModelSpec, handle: ModelHandle, work: Workload, pair: _Pair, which: str) -> Player:
        """What runs the workload on a loaded model, warmed up; its bound is noted."""
        handle.require_on_devices(f"the speed of {work.phase}")
        work.check(handle.loaded.max_positions)
        self._require_room(spec, handle, work)
        tokens = prompt(self._stream(handle, spec), work.batch_size, work.prompt_tokens)
        player = Player(handle.timer(work.cache, compiled=work.compile), work, tokens)
        for _ in range(_WARM_UP):
            player.whole()
        if which not in pair.bounds and (found := ceiling(handle, spec, work, self._matrix)) is not None:
            pair.bounds[which] = found
        return player

    def _require_room(self, spec: ModelSpec, handle: ModelHandle, work: Workload) -> None:
        """:class:`~pytest_quant.room.NoRoom` where the KV cache and the activations cannot fit beside the weights."""
        forward = Work(work.batch_size, work.prompt_tokens, keeps=True, kept=work.length)
        need = needed(handle, forward, trust_remote_code=spec.source.trust_remote_code)
        if need is not None:
            asked = f"{work.phase} of {spec.source.short} in {handle.format.name}"
            require(asked, need, self._device, self._models.held_bytes(), spec.placement)

    def _refuse_impossible(self, spec: ModelSpec, format_name: str, gate: Gate, work: Workload, pair: _Pair) -> None:
        """:class:`UsageError` where the format would have to be faster than the hardware allows."""
        limit, at_best = dict(gate.limits).get("min"), pair.bounds.get("format")
        if limit is None or at_best is None or len(pair.rounds) < _ROUNDS_TO_REFUSE:
            return
        slowest = min(run.speed for run in pair.rounds.theirs)
        if limit * slowest <= at_best.speed * (_MARGIN_MEASURED if at_best.measured else _MARGIN):
            return
        ideal = pair.bounds.get("reference")
        both = f"; with both at their bound it is {at_best.speed / ideal.speed:.3g} x" if ideal is not None else ""
        raise UsageError(
            f"throughput_ratio(min={limit:g}) asks for more than the hardware allows: {spec.reference} makes "
            f"{slowest:.3g} tokens/s in {work.phase}, {limit:g} times as many are {limit * slowest:.3g}, and "
            f"{format_name} can make {at_best.speed:.3g} at best ({at_best.bound.arithmetic()} for {at_best.each}); "
            f"the ratio is at most {at_best.speed / slowest:.3g} x{both}"
        )

    def _found(
        self,
        pair: _Pair,
        gate: Gate,
        work: Workload,
        alpha: float,
        counter: Counter | None,
        *,
        at_the_end: bool = False,
    ) -> Found:
        rounds = pair.rounds
        detail: dict[str, Any] = {"min_new_tokens": work.new_tokens} if work.phase == "decode" else {}
        if self._device.kind == "cpu":
            detail["threads"] = threads()
        figures: Mapping[str, float] = throughput.figures(rounds) if at_the_end else {}
        if counter is not None:
            quantities, figures = energies.energy(rounds, alpha)
            detail["counter"] = counter.source
        elif gate.metric == "cost_ratio":
            prices = self._prices(gate)
            quantities = cost.cost(rounds, prices, alpha)
            told = {"price": prices.format, "reference_price": prices.reference}
            detail.update({name: price for name, price in told.items() if price is not None})
        else:
            quantities = {"ratio": throughput.ratio(rounds, alpha)}
        return Found(
            main="ratio",
            quantities=quantities,
            figures={**figures, **pair.figures} if at_the_end else {},
            detail=detail,
            rounds=len(rounds),
            spent=rounds.spent >= self._settings.speed_budget,
            bounds={
                which: bound.described(_speeds(rounds, which))
                for which, bound in pair.bounds.items()
                if counter is None  # whose runs are longer than what is bounded
            },
            conditions=tuple((one.name, one.text) for one in pair.conditions.values()),
            remark=_remark(gate, pair.bounds),
        )

    def _prices(self, gate: Gate) -> cost.Prices:
        """From the marker, else from the command line or the ini file. :class:`UsageError` where one is missing."""
        told = dict(gate.parameters)
        price = told.get("price", self._settings.price)
        if price is None and "reference_price" in told:
            raise UsageError(
                "cost_ratio(reference_price=...) says nothing without the format's own price: price=... or "
                "--quant-price=DOLLARS"
            )
        if price is None and any(name == "max_usd" for name, _ in gate.limits):
            raise UsageError("cost_ratio(max_usd=...) needs a price an hour: price=... or --quant-price=DOLLARS")
        return cost.Prices(price, told.get("reference_price", price))


def _play_piece(rounds: Rounds, ours: Player, theirs: Player, turns: Iterator[tuple[int, int]]) -> None:
    piece = next(turns)
    play(rounds, partial(ours.piece, *piece), partial(theirs.piece, *piece))


def workload(gate: Gate) -> Workload:
    """What a gate's parameters time; prices apart."""
    return Workload(**{name: value for name, value in gate.parameters if name not in ("price", "reference_price")})


def _remark(gate: Gate, bounds: Mapping[str, Ceiling]) -> str:
    """That a limit is above what a format gains where both models reach their bound: it holds only beside a reference
    that does not."""
    limit = dict(gate.limits).get("min")
    if limit is None or set(bounds) != {"format", "reference"}:
        return ""
    ours, theirs = bounds["format"], bounds["reference"]
    if limit <= ours.speed / theirs.speed:
        return ""
    return (
        f"min {limit:g}x is more than the {ours.speed / theirs.speed:.3g}x that are gained where both reach their "
        f"bound ({ours.bound.arithmetic()}, {theirs.bound.arithmetic()})"
    )


def _speeds(rounds: Rounds, which: str) -> list[float]:
    return [run.speed for run in (rounds.ours if which == "format" else rounds.theirs)]
