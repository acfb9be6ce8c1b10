"""Why a format was chosen, and not another: the reasons in words. Pure; the decision itself is in ``advice``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_quant.planning.grades import Grade, grade, published
from pytest_quant.planning.need import Need, misses, share_needed, shown_memory, unknown, untold, worked_out
from pytest_quant.planning.predict import Prediction
from pytest_quant.roofline.bound import milliseconds, scaled

_BESIDE = 1.1
"""What takes no more memory than this factor can be chosen instead."""


def per_step(row: Prediction) -> float:
    """Seconds of a step, as formats are compared; infinite where nothing is known."""
    return math.inf if row.decode_seconds is None else row.decode_seconds


def per_sequence(row: Prediction) -> float:
    """Seconds of one sequence of the batch, from its prompt to its end; infinite where nothing is known."""
    return math.inf if row.request_seconds is None else row.request_seconds


def for_choice(
    chosen: Prediction,
    candidates: Sequence[Prediction],
    rows: Sequence[Prediction],
    need: Need,
    baseline: str,
    cheaper: Prediction | None,
) -> list[str]:
    """What made the choice among the candidates of all rows; ``cheaper`` is what the next faster grade offers."""
    reference = next((row for row in rows if row.name == baseline), None)
    return [
        *_by_goal(chosen, candidates, need),
        *(_headroom(chosen, need, cheaper) if need.goal == "quality" else ()),
        *_better_grades(chosen, rows, need, baseline),
        *_speed(chosen, reference),
        *(_weight_only(chosen, candidates) if need.goal == "throughput" else ()),
        *_limits(chosen),
        *_quality(chosen, candidates),
    ]


def _headroom(chosen: Prediction, need: Need, cheaper: Prediction | None) -> list[str]:
    """How much of its bound the choice has to reach: the more bits, the more of it."""
    share = share_needed(chosen, need)
    if share is None:
        return []
    said = f"it needs {100 * share:.0f} % of the bound"
    less = None if cheaper is None else share_needed(cheaper, need)
    if cheaper is not None and less is not None:
        said += f"; {cheaper.name} would need {100 * less:.0f} %"
    return [said]


def _by_goal(chosen: Prediction, candidates: Sequence[Prediction], need: Need) -> list[str]:
    """What made the choice."""
    words, step = grade(chosen.format).words, chosen.decode
    if need.goal == "quality":
        asked = "fit and meet what was asked" if need.stated else "fit"
        return [f"quality first: the most bits that {asked} ({words})"]
    if need.goal == "memory":
        least = min(row.memory.total for row in candidates)
        return [f"memory first: {_close_to(chosen.memory.total, least, 'the fewest bytes')} ({words})"]
    if step is None or chosen.prefill is None:
        return [f"{need.goal} first, but no speed can be told here: decided by quality ({words})"]
    if need.goal == "latency":
        close = _close_to(per_step(chosen), min(map(per_step, candidates)), "the shortest step")
        if missing := unknown(step):
            because = f"what limits it cannot be told, as {missing} is not known"
        elif step.regime == "compute":
            because = "compute limits it at this batch, so only what the units multiply in gains"
        else:
            because = "bandwidth limits it, so the fewest bytes win, also where they are unpacked first"
        return [f"latency first: {close}; {because} ({words})"]
    close = _close_to(
        per_sequence(chosen), min(map(per_sequence, candidates)), "the least time for each sequence of the batch"
    )
    return [f"throughput first: {close}, prompt and generation together ({words})"]


def _close_to(value: float, least: float, what: str) -> str:
    if value <= least:
        return what
    apart = max(value / least - 1.0, 0.01)
    return f"within {apart:.0%} of {what}, and keeps more quality"


def _better_grades(chosen: Prediction, rows: Sequence[Prediction], need: Need, baseline: str) -> list[str]:
    """Why not a format of a better grade: one line for each grade, of the fastest in it."""
    better: dict[Grade, list[Prediction]] = {}
    for row in rows:
        if grade(row.format).rank < grade(chosen.format).rank:
            better.setdefault(grade(row.format), []).append(row)
    reasons = []

    def order(row: Prediction) -> tuple[bool, float, int, bool]:
        return (misses(row, need) is not None, per_step(row), row.memory.total, row.name != baseline)

    for _, several in sorted(better.items(), key=lambda pair: pair[0].rank):
        row = min(several, key=order)
        if miss := misses(row, need):
            reasons.append(f"not {row.name}: {miss}")
        elif doubt := untold(row, need):
            reasons.append(f"not {row.name}: {doubt}")
        elif need.goal == "memory":
            ratio = row.memory.total / chosen.memory.total
            reasons.append(f"not {row.name}: {scaled(row.memory.total)}, {ratio:.2g}x as much")
        elif row.decode is not None and chosen.decode is not None:
            reasons.append(f"not {row.name}: {_slower(row, chosen, need.goal)}")
    return reasons


def _slower(row: Prediction, chosen: Prediction, goal: str) -> str:
    if goal == "throughput":
        seconds, best = per_sequence(row), per_sequence(chosen)
        return f"{milliseconds(seconds)} for each sequence at best, {seconds / best:.2g}x as long"
    seconds, best = per_step(row), per_step(chosen)
    return f"a step takes {milliseconds(seconds)} at best, {seconds / best:.2g}x as long"


def _speed(chosen: Prediction, reference: Prediction | None) -> list[str]:
    """Regime by arithmetic intensity, the gain at best, and the batch at which the regime turns."""
    step = chosen.decode
    if step is None:
        return []
    said = f"decode: {worked_out(step)} at best"
    if step.ridge is not None:
        said += f"; {_number(step.intensity)} operations a byte, the units balance the memory at {_number(step.ridge)}"
    if reference is not None and reference is not chosen and reference.decode is not None:
        said += f"; {_gain(per_step(reference) / per_step(chosen), reference)}"
    reasons = [said]
    prompts = chosen.prefill
    if reference is not None and reference is not chosen and reference.prefill_seconds and prompts:
        missing = unknown(prompts)
        limited = f"{prompts.regime} limits it" if missing is None else f"{missing} is not known"
        gained = _gain(reference.prefill_seconds / (chosen.prefill_seconds or prompts.seconds), reference)
        reasons.append(f"prefill: {limited}, products run in {chosen.numeric}: {gained}")
    elif prompts is not None:
        reasons.append(f"prefill: {worked_out(prompts)} at best")
    for row in (chosen, reference):
        if row is not None and row.like is not None:
            reasons.append(
                f"the units' rate in {row.numeric} is not known: {row.name} is compared as if it were as in {row.like}"
            )
            break
    if chosen.turns_at is not None and chosen.turns_at > 1:
        reasons.append(
            f"decode turns from bandwidth to compute at a batch of {chosen.turns_at}; from there on only a format that "
            f"the units multiply in gains"
        )
    elif chosen.turns_at is None and step.ridge is not None:
        reasons.append(
            "decode stays bound by bandwidth at every batch: at this context each sequence brings more bytes of KV "
            "cache than operations"
        )
    return reasons


def _gain(ratio: float, reference: Prediction) -> str:
    if ratio <= 1.005:
        return f"no gain on {reference.name}"
    return f"{ratio:.2f}x the speed of {reference.name} where both reach their bound"


def _weight_only(chosen: Prediction, candidates: Sequence[Prediction]) -> list[str]:
    """What storing weights narrow alone would gain, where the choice was something else."""
    stored = [row for row in candidates if row.format.weight_only and row.request_seconds is not None]
    if chosen.format.weight_only or chosen.request_seconds is None or not stored:
        return []
    row = min(stored, key=per_sequence)
    seconds = per_sequence(row)
    ratio = seconds / per_sequence(chosen)
    if ratio < 1.0:
        return [f"{row.name} would take {ratio:.2g}x the time at best, too little to give up quality for"]
    return [
        f"storing weights narrow alone does not help here: {row.name} multiplies in {row.numeric}, and takes "
        f"{milliseconds(seconds)} for each sequence at best, {ratio:.2g}x as long"
    ]


def for_none(rows: Sequence[Prediction], need: Need) -> list[str]:
    """What comes nearest, where nothing meets the need."""
    if not rows:
        return ["no format can run on this device"]
    reasons = []
    smallest = min(rows, key=lambda row: (row.memory.total, grade(row.format).rank))
    if miss := misses(smallest, replace(need, max_seconds=None, min_tokens_per_second=None)):
        said = f"the smallest is {smallest.name}: {miss}"
        most = smallest.most_sequences
        if most is not None and most < smallest.load.batch_size:
            said += f"; a batch of {most} would fit" if most else "; not even one sequence of this context would"
        reasons.append(said)
    timed = [row for row in rows if row.decode is not None]
    if timed and (need.max_seconds is not None or need.min_tokens_per_second is not None):
        seconds, _, name = min((row.decode.seconds, grade(row.format).rank, row.name) for row in timed if row.decode)
        reasons.append(f"the fastest is {name}: {milliseconds(seconds)} a step at best")
    return reasons


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _limits(chosen: Prediction) -> list[str]:
    """What would break: memory."""
    memory = chosen.memory
    there = "" if memory.there is None else f" of {scaled(memory.there)}"
    reasons = [f"memory: {shown_memory(chosen)}{there}"]
    if chosen.most_sequences is not None:
        context = chosen.load.context
        reasons.append(f"memory is full beyond a batch of {chosen.most_sequences} at {context} tokens of context")
    elif memory.kv is None:
        reasons.append("the KV cache is not counted: a number of parameters says nothing of layers and heads")
    if chosen.unpacked:
        reasons.append(
            f"its library unpacks it: {scaled(chosen.stored_bytes)} stored, {scaled(chosen.weight_bytes)} at work"
        )
    return reasons


def _quality(chosen: Prediction, candidates: Sequence[Prediction]) -> list[str]:
    """What is known of quality without measuring, and what else could be chosen for it."""
    reasons = []
    format = chosen.format
    if said := published(format):
        reasons.append(f"quality, as published: {said}; not predicted for this model")
    elif format.quantized:
        reasons.append("quality: nothing is published for this format that would hold here; measure it")
    if format.numeric == "nf4":
        reasons.append(
            "unpacking costs 5 to 10 % of its speed at a batch of 1, as published; the bounds leave that out"
        )
    if format.weights.num_bits >= 16 or format.kv_cache is not None:
        return reasons
    beside = [row for row in candidates if row is not chosen and row.memory.total <= chosen.memory.total * _BESIDE]
    if format.from_checkpoint:
        plain = next((row.name for row in beside if row.format.numeric == "nf4"), None)
        instead = f"; without calibration: {plain}" if plain else ""
        reasons.append(f"{chosen.name} is a checkpoint that is made with calibration data{instead}")
    elif format.input_activations is not None and format.weights.num_bits == 8:
        careful = next(
            (row.name for row in beside if row.format.weight_only and row.format.weights.num_bits == 8), None
        )
        if careful:
            reasons.append(
                f"activations are quantized too; {careful} leaves them alone in as many bytes, and gains nothing where "
                f"compute limits"
            )
    return reasons
