"""The first run at which a measurement moved beyond noise. Pure.

**Scores and bytes.** Each run is compared with the level it should be at, by the rule that compares two runs
(:func:`pytest_quant.comparing.judging.paired`): window by window, and only a change of more than the metric's smallest
effect counts. Where all windows were scored no chance is left in that. The level is that of the *first* run after the
last move (the first that saw most of the windows), never the neighbour: so that many small steps add up, and where they
come to more than the effect it is told since when they do. That such a metric returns is a move again.

**Speed, energy, cost.** Two runs of the same commit differ by more than each one's interval: by what else the machine
did, its temperature, its placement. So a move needs three runs or more, one after the other, on the same side: each
with an interval that leaves the level out, together at least the metric's smallest effect away, and by a t-test further
than the runs of the level differ among themselves. What returns before is an ``outlier``; what is too young to tell is
``not confirmed yet``. The spread is that of all runs of the level and of the new one, joined with a prior of
:data:`_PRIOR_SPREAD` that counts as :data:`_PRIOR_FREEDOM` runs, so that young histories have one at all.

What comes slowly makes the level's own runs differ, so that such a test never ends. Therefore the last runs of a level
are compared with its first ones too, at each run, by the spread within either group alone (:func:`_drifted`).

**What is unclear leaves the state as it was.** A last run that is disturbed, young, or of too few windows does not
take back that an earlier level is known to be worse; where nothing is known to be worse, the state is ``open``.

**One error rate for everything.** With a probability of at least 1 - :data:`ERROR_RATE` a history in which nothing ever
moves is never said to have moved, in any of its series, at any time that somebody looks: the error is divided among the
series, steps and drifts (:data:`_DRIFT_SHARE`), the runs (1 / (i (i + 1)) for the i-th) and the lengths k of what
follows (2 / (k (k - 1))), which sum to 1 however long the history grows. Windows of which a part was scored get their
share in the same way. That holds for speeds whose noise is about normal; tests/history simulates it, with heavier tails
too.

Libraries for change points (ruptures, BSD) segment one signal of numbers, by a penalty that has to be chosen for it:
they know nothing of pairs of windows, from which nearly all there is to know comes, and keep no error rate while a
history grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import median

from pytest_quant.comparing.judging import paired
from pytest_quant.comparing.sides import Item
from pytest_quant.gates.gate import QUALITY, SAMPLED, SCANNED, TIMED
from pytest_quant.gates.regression import MIN_EFFECT, Change
from pytest_quant.gates.verdict import Verdict
from pytest_quant.stats.paired import paired_difference
from pytest_quant.stats.student import two_sided

ERROR_RATE = 0.01
"""That anything in a history without a change is ever said to have moved."""
_PRIOR_SPREAD = 0.05
"""Standard deviation of a speed ratio's logarithm between runs of one commit, before any is known."""
_PRIOR_FREEDOM = 4
_AGREE = 3
"""So many runs in a row are a move at the soonest: what disturbs one run often disturbs the next."""
_LEVEL_RUNS = 16
"""A speed's level is the median of so many first runs: later ones may have drifted."""
_MEDIAN = math.sqrt(math.pi / 2.0)
"""Standard error of a normal median over that of the mean, at most."""
_DRIFT_SHARE = 0.2
"""Of a speed's error rate: what drifts may spend. They have more runs to be told by than steps."""
_DRIFT_FIRST, _DRIFT_LAST, _DRIFT_FEWEST = 16, 8, 4
"""A drift is told from so many first and last runs of a level, at most and at least."""
YOUNG, OUTLIER, NOT_JUDGED = "not confirmed yet", "outlier", "not judged"
"""Events; the last is followed by a colon and why."""
_MOVES = {Verdict.REGRESSED: "worse", Verdict.IMPROVED: "better"}


@dataclass(frozen=True)
class Finding:
    """What is said of one run of a series; the numbers are places in the series."""

    level: int
    moved: str = ""
    change: str = ""
    event: str = ""
    before: int | None = None
    """Where it moved: the last run that was as before."""
    began: int | None = None
    """Where it drifted: the first run that was on its way."""
    values: tuple[float, float] | None = None
    """Where a speed moved: the level before and the one now, in the unit of the metric."""


@dataclass(frozen=True)
class Found:
    """What is said of a series: of each run, and of the last against the level that was accepted last."""

    runs: tuple[Finding, ...]
    state: str = ""


def find(items: Sequence[Item], accepted: Sequence[bool] = (), share: float = 1.0) -> Found:
    """The moves of a series of measurements of one identity, in their order. ``accepted`` are runs whose number was
    accepted as it is, ``share`` is the part of :data:`ERROR_RATE` that this series may spend."""
    if not items:
        return Found(())
    marks = tuple(accepted) or (False,) * len(items)
    if items[0].measurement.metric in TIMED:
        return _timed(items, marks, ERROR_RATE * share)
    return _stepwise(items, marks, ERROR_RATE * share)


def _stepwise(items: Sequence[Item], accepted: Sequence[bool], alpha: float) -> Found:
    """Each run against the first of its level."""
    level, last, members, lost = 0, 0, [0], False
    agreed, then = 0, 0  # the level that was accepted last, and its run
    findings = [Finding(0)]
    for place in range(1, len(items)):
        now = items[place]
        if items[last].measurement.conditions and not now.measurement.conditions:
            findings.append(Finding(level))  # the first run that a level can be told from
            then = place if agreed == level else then
            last, members, lost = place, [place], False
            continue
        seen = _change(now, items[last], alpha / (place * (place + 1)))
        move = _MOVES.get(seen.verdict, "")
        if not move:
            undecided = seen.verdict in (Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE)
            lost = undecided
            findings.append(
                Finding(level, change=seen.shown, event=f"{NOT_JUDGED}: {seen.reason}" if undecided else "")
            )
            if not undecided:
                members.append(place)
                last = place if _seen(now) > _seen(items[last]) else last
        else:
            whole, step = _by(now, items[last]), _by(now, items[members[-1]])
            began = None if abs(step) >= abs(whole) / 2.0 else _began(items, last, members, place)
            level += 1
            findings.append(Finding(level, move, seen.shown, "", members[-1], began))
            last, members, lost = place, [place], False
        better = move == "better" and _change(now, items[then], alpha).verdict is not Verdict.REGRESSED
        if accepted[place] or better:
            agreed, then = level, last
    if len(items) < 2:
        return Found(tuple(findings))
    moved = "" if level == agreed else _MOVES.get(_change(items[last], items[then], alpha).verdict, "")
    return Found(tuple(findings), _state(moved or "same", unclear=lost))


def _state(confirmed: str, *, unclear: bool) -> str:
    """The state of a series, of the last level that is known, and of whether later runs left it open."""
    return "open" if unclear and confirmed != "worse" else confirmed


def _change(now: Item, then: Item, alpha: float) -> Change:
    if now.measurement.conditions or then.measurement.conditions:
        disturbed = now.measurement.conditions or then.measurement.conditions
        return Change(Verdict.INCONCLUSIVE, "", "; ".join(text for _, text in disturbed))
    return paired(now, then, alpha)[1]


def _seen(item: Item) -> int:
    return len(item.measurement.scores or ())


def _by(now: Item, then: Item) -> float:
    """By how much two measurements differ, in the unit of the metric's smallest effect."""
    one, other = now.measurement, then.measurement
    if one.metric in (*QUALITY, *SAMPLED) and one.scores and other.scores:
        weights = one.weights or other.weights or (1.0,) * len(one.scores)
        known = min(len(one.scores), len(other.scores), len(weights))
        return paired_difference(one.scores[:known], other.scores[:known], weights[:known]).mean
    if one.metric in SCANNED or other.value == 0.0:
        return one.value - other.value
    return one.value / other.value - 1.0


def _began(items: Sequence[Item], last: int, members: Sequence[int], place: int) -> int:
    """The first run of a drift: after the last that was still near the level."""
    whole = abs(_by(items[place], items[last]))
    near = [each for each in members if abs(_by(items[each], items[last])) <= 0.1 * whole]
    path = [*members, place]
    return path[path.index(near[-1]) + 1] if near else path[0]


@dataclass(frozen=True)
class _Ratio:
    """The logarithm of a ratio and of its interval's ends, so that twice and half are as far; larger is worse."""

    value: float
    low: float
    high: float
    trouble: str = ""
    """Why it cannot be judged."""


def _ratio(item: Item) -> _Ratio:
    quantity, metric = item.measurement.quantity, item.measurement.metric
    if item.measurement.conditions:
        return _Ratio(0.0, 0.0, 0.0, "; ".join(text for _, text in item.measurement.conditions))
    if not (quantity.value > 0.0 and quantity.low > 0.0 and math.isfinite(quantity.high)):
        return _Ratio(0.0, 0.0, 0.0, "too few rounds: its interval has no end")
    ends = sorted(math.log(end) for end in (quantity.low, quantity.high))
    value = math.log(quantity.value)
    return _Ratio(-value, -ends[1], -ends[0]) if metric == "throughput_ratio" else _Ratio(value, ends[0], ends[1])


def _timed(items: Sequence[Item], accepted: Sequence[bool], alpha: float) -> Found:
    """Runs after the level's, together against all of it."""
    ratios = [_ratio(item) for item in items]
    findings = [Finding(0, event=f"{NOT_JUDGED}: {each.trouble}" if each.trouble else "") for each in ratios]
    effects = [MIN_EFFECT[i.measurement.metric] if i.min_effect is None else i.min_effect for i in items]
    usable = [place for place, each in enumerate(ratios) if not each.trouble]
    level, members = 0, usable[:1]
    agreed, settled, reached = (
        0,
        0.0,
        0.0,
    )  # the level that was accepted last, where it lay, and where the last move led
    number = 1
    while number < len(usable):
        place = usable[number]
        here = _level(ratios, members)
        effect = -math.log1p(-min(effects[place], 0.99))
        group, returned = _group(ratios, usable[number:], here, effect)
        steps = alpha * (1.0 - _DRIFT_SHARE)
        confirmed = next(
            (k for k in range(_AGREE, len(group) + 1) if _apart(ratios, members, group[:k], effect, steps)), 0
        )
        drift = None if confirmed else _drifted(ratios, [*members, place], effect, alpha * _DRIFT_SHARE)
        if confirmed or drift:
            if drift:
                here, new, start, end = drift
            else:
                new, end = _level(ratios, group[:confirmed]), group[confirmed - 1]
                start = next(each for each in group if _nearer(ratios[each].value, new, here))
            before = [each for each in usable if members[0] <= each < start]
            level += 1
            move = "worse" if new > here else "better"
            near = ratios[before[-1]].value
            step = not drift and abs(ratios[start].value - near) >= abs(new - here) / 2.0
            began = None if step else _crept(ratios, before, start, here)
            as_before = [each for each in before if began is None or each < began] or before[:1]
            metric, reached = items[place].measurement.metric, new
            shown, values = _shown(metric, new - here), (_value(metric, here), _value(metric, new))
            findings[start] = Finding(level, move, shown, "", as_before[-1], began, values)
            members = [each for each in usable if start <= each <= end]
            for each in range(start + 1, len(items)):
                event = findings[each].event if ratios[each].trouble else ""  # they were told against another level
                findings[each] = replace(findings[each], level=level, event=event, change="")
            for each in members[1:]:
                findings[each] = replace(
                    findings[each], change=_shown(items[each].measurement.metric, _of(ratios, each, new))
                )
            number = usable.index(end) + 1
            settled = here if agreed == level - 1 else settled
            if new <= settled or any(accepted[each] for each in members):
                agreed = level
            continue
        far = bool(group) and group[0] == place and abs(_of(ratios, place, here)) >= effect
        shown = _shown(items[place].measurement.metric, _of(ratios, place, here))
        event = (OUTLIER if returned else YOUNG) if far else ""
        findings[place] = replace(findings[place], change=shown, event=event)
        members = [*members, place]
        if accepted[place] and not event:
            agreed = level
        number += 1
    if len(items) < 2:
        return Found(tuple(findings))
    young = list(takewhile(lambda each: findings[each].event == YOUNG, reversed(usable)))
    for earlier, finding in enumerate(findings):
        if finding.event == YOUNG and earlier not in young:  # the level has come to it since
            findings[earlier] = replace(finding, event="")
    state = "same"
    if level != agreed:
        state = "worse" if reached - settled >= -math.log1p(-min(effects[usable[-1]], 0.99)) else "same"
    return Found(tuple(findings), _state(state, unclear=bool(young) or bool(ratios[-1].trouble) or len(usable) < 2))


def _level(ratios: Sequence[_Ratio], members: Sequence[int]) -> float:
    return median(ratios[each].value for each in members[:_LEVEL_RUNS])


def _nearer(value: float, one: float, other: float) -> bool:
    return abs(value - one) < abs(value - other)


def _of(ratios: Sequence[_Ratio], place: int, here: float) -> float:
    return ratios[place].value - here


def _group(ratios: Sequence[_Ratio], places: Sequence[int], here: float, effect: float) -> tuple[list[int], bool]:
    """The runs from the first of ``places`` on that lie to the same side of the level, more than half the effect away;
    and whether another one returned. Those whose interval holds the level speak neither for it nor against it."""
    first = ratios[places[0]]
    away = first.value - here
    if abs(away) < effect / 2.0 or first.low <= here <= first.high:
        return [], False
    group: list[int] = []
    for place in places:
        each = ratios[place]
        by = (each.value - here) * math.copysign(1.0, away)
        if by < effect / 2.0:
            return group, True
        if not each.low <= here <= each.high:
            group.append(place)
    return group, False


def _apart(ratios: Sequence[_Ratio], members: Sequence[int], group: Sequence[int], effect: float, alpha: float) -> bool:
    """Whether a group of runs differs from those of the level by the effect or more, and beyond their spread."""
    here, there = _level(ratios, members), _level(ratios, group)
    if abs(there - here) < effect:
        return False
    place, k = group[0], len(group)
    return _chance(ratios, members, group) <= (_AGREE - 1) * alpha / (place * (place + 1) * k * (k - 1))


def _chance(ratios: Sequence[_Ratio], members: Sequence[int], group: Sequence[int]) -> float:
    """How probable it is that two groups of runs of one level lie so far apart."""
    here, there = _level(ratios, members), _level(ratios, group)
    rests = [ratios[each].value - here for each in members] + [ratios[each].value - there for each in group]
    squares = math.fsum(rest**2 for rest in rests)
    freedom = _PRIOR_FREEDOM + len(rests) - 2
    variance = (_PRIOR_FREEDOM * _PRIOR_SPREAD**2 + squares) / freedom
    level = min(len(members), _LEVEL_RUNS)
    error = _MEDIAN * math.sqrt(variance * (1.0 / level + 1.0 / len(group)))
    return two_sided((there - here) / error, freedom)


def _drifted(
    ratios: Sequence[_Ratio], members: Sequence[int], effect: float, alpha: float
) -> tuple[float, float, int, int] | None:
    """Where the last runs of a level are the effect or more away from its first ones, and beyond the spread within
    either group: the level that was, the one that is, its first run, and the last; None where they are not.

    The first run is the one after the last that was nearer to the old level.
    """
    third = len(members) // 3
    first = members[: min(_DRIFT_FIRST, max(_DRIFT_FEWEST, third))]
    last = members[-min(_DRIFT_LAST, max(_DRIFT_FEWEST, third)) :]
    if len(members) < 2 * _DRIFT_FEWEST:
        return None
    here, there = _level(ratios, first), _level(ratios, last)
    if abs(there - here) < effect:
        return None
    place = members[-1]
    if _chance(ratios, first, last) > alpha / (place * (place + 1)):
        return None
    near = [number for number, each in enumerate(members) if _nearer(ratios[each].value, here, there)]
    start = near[-1] + 1 if near else 1
    return None if start == len(members) else (here, there, members[start], place)


def _crept(ratios: Sequence[_Ratio], members: Sequence[int], place: int, here: float) -> int:
    """The first run of a drift, as :func:`_began`."""
    whole = abs(ratios[place].value - here)
    near = [each for each in members if abs(ratios[each].value - here) <= 0.25 * whole]
    path = [*members, place]
    return path[path.index(near[-1]) + 1] if near else path[0]


def _value(metric: str, logarithm: float) -> float:
    return math.exp(-logarithm if metric == "throughput_ratio" else logarithm)


def _shown(metric: str, by: float) -> str:
    """A change of the logarithm, larger being worse, as one of the ratio."""
    return f"{math.expm1(-by if metric == 'throughput_ratio' else by):+.1%}"
