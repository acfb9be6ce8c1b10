"""Which of a task's metrics and filters are asked for, and what each item of a group counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quant.errors import UsageError


def metric(task: str, means: Mapping[str, bool], others: Sequence[str], asked: str | None) -> str:
    """The metric that is asked for, or the first of those that are a mean over items. ``means`` says of each of them
    whether more is better; ``others`` are made of all items at once.

    Raises :class:`UsageError` where there is no such metric, or it is of the wrong kind.
    """
    usable = [name for name, more_is_better in means.items() if more_is_better]
    if asked is None:
        if usable:
            return usable[0]
        raise UsageError(f"{task} has no metric that is a mean over its items: {_instead(others or list(means))}")
    if asked in usable or (asked not in means and asked not in others):
        return asked  # some metrics get their name only with an item's answer
    if asked in means:
        raise UsageError(f"{task}: of {asked} less is better, which is no accuracy; {_choice(usable)}")
    raise UsageError(f"{task}: {asked} is no mean over its items; {_choice(usable) if usable else _instead(others)}")


def filter(task: str, known: Sequence[str], asked: str | None) -> str:
    """The filter of answers that is asked for, or the task's first."""
    if asked is None:
        return known[0]
    if asked not in known:
        raise UsageError(f"{task} has no filter {asked!r}: it has {', '.join(known)}")
    return asked


def of_all(what: str, found: Mapping[str, str]) -> str:
    """The one that all tasks of a group have; :class:`UsageError` where they differ."""
    if len(set(found.values())) > 1:
        some = "; ".join(f"{name}: {value}" for name, value in list(found.items())[:3])
        raise UsageError(f"the group's tasks have no {what} in common ({some}): name it with {what}=")
    return next(iter(found.values()))


def by_size(group: Any, metric: str | None) -> tuple[str | None, bool]:
    """What lm-eval makes of a group: the metric that it aggregates, and whether each item counts the same (or each
    task). :class:`UsageError` where it gives a group no number."""
    aggregated = {each.metric: each for each in group.aggregate_metric_list or ()}
    if not aggregated:
        raise UsageError(
            f"lm-eval gives the group {group.name!r} no number of its own: name its tasks one by one "
            f"({', '.join(task.task_name for task in group.get_all_tasks()[:4])}, ...)"
        )
    if metric is not None and metric not in aggregated:
        raise UsageError(f"lm-eval gives the group {group.name!r} no {metric}: it aggregates {', '.join(aggregated)}")
    chosen = next(iter(aggregated.values())) if metric is None else aggregated[metric]
    if chosen.aggregation != "mean":
        raise UsageError(
            f"the group {group.name!r} has its own way to aggregate {chosen.metric}: name its tasks instead"
        )
    return chosen.metric, bool(chosen.weight_by_size)


def weights(sizes: Mapping[str, int], *, by_size: bool) -> Mapping[str, float]:
    """What an item of each task counts, 1 at most."""
    if by_size:
        return dict.fromkeys(sizes, 1.0)
    smallest = min(sizes.values())
    return {name: smallest / size for name, size in sizes.items()}


def _choice(usable: Sequence[str]) -> str:
    return f"use metric={' or '.join(map(repr, usable))}" if usable else "use another task"


def _instead(others: Sequence[str]) -> str:
    if any("perplexity" in name or name == "bits_per_byte" for name in others):
        return (
            f"{', '.join(others)} are of all documents at once; for a perplexity use perplexity_delta with "
            f"--quant-protocol=lm-eval-word"
        )
    return f"{', '.join(others)} are of all items at once; use another task, or perplexity_delta or kl_divergence"
