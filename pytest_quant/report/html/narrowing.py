"""How the interval of a gate narrowed, window by window, until it decided: recomputed from the record's own scores by
the functions that a run decides with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quant.counting import counted
from pytest_quant.errors import QuantError
from pytest_quant.gates.gate import LIMITS, MAIN, NOUNS
from pytest_quant.report.html.drawing import ACCENT, BAD, Plot, Table, values
from pytest_quant.report.html.view import number
from pytest_quant.report.naming import shown_metric
from pytest_quant.stats.sequence import MIN_WINDOWS

Record = Mapping[str, Any]
LOOKS = 48
"""Points that are drawn of one gate, at most."""
MOST = 18
"""Pictures of one page, at most."""
_CLOSE = 1e-6
"""How far, relatively, what was recomputed may lie from what the run wrote: the rounding of JSON and of sums."""


@dataclass(frozen=True)
class Look:
    """The interval after some windows."""

    used: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Story:
    """One limit of one gate, look by look, in the limit's unit."""

    title: str
    noun: str
    limit: float
    limit_name: str
    unit: str
    smaller_is_better: bool
    used: int
    total: int
    looks: tuple[Look, ...]

    @property
    def is_decided(self) -> bool:
        """Whether the last interval lies on one side of the limit."""
        last = self.looks[-1]
        return last.high <= self.limit or last.low >= self.limit


def stories(measurements: Sequence[Record]) -> tuple[list[Story], list[str]]:
    """What can be told, each question once, and a sentence for each gate whose record does not hold enough."""
    found: dict[tuple[Any, ...], Story] = {}
    untold: list[str] = []
    models = {str(record["model"]) for record in measurements}
    for record in measurements:
        if "scores" not in record or "alpha" not in record:
            continue
        for name, limit in sorted(record["limit"].items()):
            kind = LIMITS[record["metric"]][name]
            seen = looks(record, kind.quantity)
            what = f"{record['format']} {shown_metric(record)}, {kind.shown(name, limit)}"
            if seen is None:
                untold.append(f"{what}: what single {_noun(record)} say of it is not in the record.")
            elif len(seen) < 2:
                scored = counted(len(record["scores"]), _noun(record).removesuffix("s"))
                untold.append(f"{what}: {scored} scored, so there was one look and nothing narrowed.")
            else:
                story = _story(record, name, limit, seen, named=len(models) > 1)
                found.setdefault((story.title, name, limit, story.used, story.looks[-1]), story)
    return list(found.values()), list(dict.fromkeys(untold))


def plots(told: Sequence[Story]) -> list[Plot]:
    """A picture for each story."""
    return [_plot(story) for story in told]


def looks(record: Record, quantity: str) -> tuple[Look, ...] | None:
    """The interval of a quantity at up to :data:`LOOKS` looks, the last of which is the record's own; None where the
    record does not hold what it is made of."""
    places = _places(len(record["scores"]))
    estimate = _Estimator(record, quantity).at
    for variant in (False, True):
        try:
            last = estimate(places[-1], variant)
            if last is None or not _agrees(last, record, quantity):
                continue
            found = [estimate(used, variant) for used in places]
        except (QuantError, ValueError, ZeroDivisionError, OverflowError):
            return None
        return tuple(each for each in found if each is not None)
    return None


def _story(record: Record, name: str, limit: float, found: tuple[Look, ...], *, named: bool) -> Story:
    kind = LIMITS[record["metric"]][name]
    units = record[_noun(record)]
    model = f": {record['model']}" if named else ""
    return Story(
        title=f"{record['format']} {shown_metric(record)}, {kind.shown(name, limit)}{model}",
        noun=_noun(record),
        limit=limit,
        limit_name=kind.shown(name, limit),
        unit=kind.symbol or {"share": "share"}.get(str(record["unit"]), ""),
        smaller_is_better=kind.smaller_is_better(name),
        used=units["used"],
        total=units["total"],
        looks=found,
    )


def _noun(record: Record) -> str:
    return NOUNS.get(record["metric"], "windows")


def _places(used: int) -> list[int]:
    """Where to look: from the first look of a run to the last window, evenly."""
    first = min(MIN_WINDOWS, max(used // 2, 2), used)
    step = max(1, math.ceil((used - first) / (LOOKS - 1)))
    return sorted({*range(first, used, step), used})


def _agrees(look: Look, record: Record, quantity: str) -> bool:
    """Whether it is what the run itself wrote."""
    shape = record if quantity == MAIN[record["metric"]] or (quantity == "bound" and "lower_bound" in record) else None
    shape = record.get("statistics", {}).get(quantity) if shape is None else shape
    if shape is None:
        return False
    told = (shape["value"], shape.get("low", -math.inf), shape.get("high", math.inf))
    return all(
        a == b or math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE)
        for a, b in zip((look.value, look.low, look.high), told, strict=True)
    )


class _Estimator:
    """Answers for the first windows of a record."""

    def __init__(self, record: Record, quantity: str) -> None:
        self._record = record
        self._quantity = quantity
        self._total = int(record[_noun(record)]["total"])
        self._alpha = float(record["alpha"])

    def at(self, used: int, variant: bool) -> Look | None:
        """After ``used`` windows. ``variant`` chooses between what the record leaves open: whether the mean of the
        reference was known beforehand, whether all items of a task count the same."""
        metric = self._record["metric"]
        if metric == "perplexity_delta":
            return self._perplexity(used, variant)
        if metric == "task_accuracy":
            return self._accuracy(used, variant)
        if variant:
            return None
        if metric == "kl_divergence":
            return self._divergence(used)
        return self._agreement(used) if metric == "token_agreement" else self._match(used)

    def _first(self, name: str, used: int) -> list[float]:
        return [float(number) for number in self._record[name][:used]]

    def _perplexity(self, used: int, known: bool) -> Look | None:
        import numpy as np

        from pytest_quant.metrics.evidence import Evidence
        from pytest_quant.metrics.pairing import WindowScore
        from pytest_quant.metrics.perplexity import perplexity_delta

        if "reference_scores" not in self._record:
            return None
        names = ("scores", "reference_scores", "weights")
        rows = zip(*(self._first(name, used) for name in names), strict=True)
        none = np.zeros(1)
        scores = [
            WindowScore(int(weight), np.array([ours * weight]), np.array([theirs * weight]), none.astype(bool), none)
            for ours, theirs, weight in rows
        ]
        mean = math.log(self._record["reference_value"]) if known else None
        evidence = Evidence(self._record["format"], "reference", scores, self._total, reference_mean=mean)
        quantities, _ = perplexity_delta(evidence, self._alpha)
        return self._look(used, quantities)

    def _divergence(self, used: int) -> Look | None:
        from pytest_quant.stats import sequence

        if self._quantity != ("bound" if self._record.get("lower_bound") else "mean"):
            return None
        scores, weights = self._first("scores", used), self._first("weights", used)
        found = sequence.mean(scores, weights, self._total, self._alpha)
        return Look(used, found.value, max(found.low, 0.0), found.high)

    def _agreement(self, used: int) -> Look:
        import numpy as np

        from pytest_quant.stats import sequence

        tokens = [round(weight) for weight in self._first("weights", used)]
        hits = np.array([round(s * n) for s, n in zip(self._first("scores", used), tokens, strict=True)])
        found = sequence.share(hits, tokens, self._total, self._alpha)
        return Look(used, found.value, found.low, found.high)

    def _accuracy(self, used: int, equal: bool) -> Look | None:
        from pytest_quant.metrics.accuracy import ItemScore, task_accuracy

        if "reference_scores" not in self._record:
            return None
        names = ("reference_scores", "scores", "weights")
        rows = zip(*(self._first(name, used) for name in names), strict=True)
        items = [ItemScore(*row) for row in rows]
        quantities, _ = task_accuracy(items, self._total, self._alpha, equal=equal)
        return self._look(used, quantities)

    def _match(self, used: int) -> Look | None:
        from pytest_quant.stats import betting

        if self._record["metric"] != "generation_match" or self._quantity != "share":
            return None
        found = betting.mean(self._first("scores", used), self._total, self._alpha, low=0.0, high=1.0)
        return Look(used, found.value, found.low, found.high)

    def _look(self, used: int, quantities: Mapping[str, Any]) -> Look | None:
        found = quantities.get(self._quantity)
        return None if found is None else Look(used, found.value, found.low, found.high)


def _plot(story: Story) -> Plot:
    last = story.looks[-1]
    saved = story.total - story.used
    if saved and not story.is_decided:
        said = f"Not decided: {story.used} of {story.total} {story.noun} were scored, and the interval holds the limit."
    elif saved:
        said = f"Decided after {story.used} of {story.total} {story.noun}; {saved} were spared."
    else:
        said = f"All {story.total} {story.noun} were scored, so the last value is exact."
    interval = f"{number(last.low, 4)} to {number(last.high, 4)}" if last.low != last.high else "exact"
    side = "at most" if story.smaller_is_better else "at least"
    told = f"{said} In the end {number(last.value, 4)} ({interval}); the limit is {side} {number(story.limit)}."
    rows = tuple(
        (str(each.used), number(each.value, 4), number(each.low, 4), number(each.high, 4)) for each in story.looks
    )
    table = Table(story.title, (story.noun, "value", "low", "high"), rows)
    return Plot(story.title, told, _chart(story), table)


def _chart(story: Story) -> Any:
    import altair as alt

    low, high = _domain(story)

    def clipped(value: float) -> float:
        return min(max(value, low), high)

    data = values(
        [
            {"n": look.used, "value": clipped(look.value), "low": clipped(look.low), "high": clipped(look.high)}
            for look in story.looks
        ]
    )
    last = story.looks[-1]
    told = (
        f"after {last.used} {story.noun}: {number(last.value, 4)}, from {number(last.low, 4)} to {number(last.high, 4)}"
    )
    end = values([{"n": last.used, "value": clipped(last.value), "told": told}])
    x = alt.X(
        "n:Q",
        title=f"{story.noun} scored",
        scale=alt.Scale(domain=[0, story.total], nice=False),
        axis=alt.Axis(tickCount=5, format="d", grid=False),
    )
    scale = alt.Scale(domain=[low, high], nice=False)
    y = alt.Y("value:Q", title=story.unit, scale=scale, axis=alt.Axis(tickCount=4))
    base = alt.Chart(data)
    rule = values([{"limit": story.limit, "word": story.limit_name, "n": story.total}])
    above = story.limit < (low + high) / 2
    layers = [
        base.mark_area(color=ACCENT, opacity=0.22).encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        base.mark_line(color=ACCENT, strokeWidth=2).encode(x=x, y=y),
        alt.Chart(rule).mark_rule(color=BAD, strokeDash=[5, 4]).encode(y="limit:Q"),
        alt.Chart(rule)
        .mark_text(color=BAD, align="right", dx=-2, dy=-7 if above else 12, fontSize=11)
        .encode(x="n:Q", y="limit:Q", text="word:N"),
        alt.Chart(end).mark_point(filled=True, color=ACCENT, size=70, opacity=1).encode(x=x, y=y, description="told:N"),
    ]
    return alt.layer(*layers).properties(width=270, height=130)


def _domain(story: Story) -> tuple[float, float]:
    """Holds the limit, the values, and the later intervals: the first may be as wide as anything."""
    late = story.looks[2 * len(story.looks) // 3 :]
    ends = [story.limit] + [look.value for look in story.looks] + [e for look in late for e in (look.low, look.high)]
    finite = [end for end in ends if math.isfinite(end)]
    low, high = min(finite), max(finite)
    room = 0.12 * (high - low) or abs(high) or 1.0
    return low - room, high + room
