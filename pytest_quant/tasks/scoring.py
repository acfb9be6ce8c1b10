"""What a model says to items, and what that is worth."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quant.engines.memory import is_out_of_memory
from pytest_quant.errors import NotFinite, NotMeasured, QuantError, UsageError
from pytest_quant.shortening import shortened
from pytest_quant.tasks.population import Item, Population

_LONGEST = 200
_SEED = 1234


@dataclass(frozen=True)
class Reply:
    """A model's answer to one item."""

    score: float
    """Within [0, 1], as the task's metric gives it."""
    said: str
    """For people: the choice that it took, or what it wrote."""
    likelihoods: tuple[float, ...] = ()
    """Of each request, nats; none where text was generated."""


def score(lm: Any, who: str, population: Population, items: Sequence[Item], device: str) -> list[Reply]:
    """Have lm-eval's model ``lm`` answer items, together.

    Raises :class:`NotFinite` where it gives NaN or infinity, :class:`NotMeasured` where lm-eval fails, both with the
    item; :class:`UsageError` where the metric is no number within [0, 1].
    """
    asked = {item: [_fresh(one) for one in population.requests[item]] for item in items}
    names = ", ".join(f"{item.task} {item.doc_id}" for item in items[:3]) + (", ..." if len(items) > 3 else "")
    with _failing(who, names):
        try:
            _run(lm, [one for each in asked.values() for one in each], device)
        except NotFinite as error:  # the model knows no items
            raise NotFinite(f"{error} (in {names})") from None
        return [_reply(who, population, item, asked[item]) for item in items]


@contextlib.contextmanager
def _failing(who: str, names: str) -> Iterator[None]:
    """:class:`NotMeasured` for what lm-eval raises."""
    try:
        yield
    except QuantError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = (str(error).strip().splitlines() or [""])[0][:300]
        raise NotMeasured(f"lm-eval failed on {who} at {names}: {type(error).__name__}: {said}") from error


def target(population: Population, item: Item) -> str:
    """What the right answer is, as text."""
    task, doc = population.tasks[item.task], population.requests[item][0].doc
    found = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
    choices = _choices(task, doc)
    if isinstance(found, int) and choices and 0 <= found < len(choices):
        found = choices[found]
    return _shown(found)


def question(population: Population, item: Item) -> str:
    """The end of the prompt: what comes after the examples."""
    prompt = str(population.requests[item][0].args[0]).rstrip()
    last = prompt.rpartition("\n\n")[2]
    return last if len(last) <= _LONGEST else "..." + last[3 - _LONGEST :]


def _shown(text: Any) -> str:
    return shortened(str(text).strip(), _LONGEST)


def _fresh(instance: Any) -> Any:
    """The request without anybody's answer."""
    found = copy.copy(instance)
    found.resps, found.filtered_resps = [], {}
    return found


def _run(lm: Any, requests: Sequence[Any], device: str) -> None:
    """The order of lm-eval's own ``evaluate``: all requests of one kind together, each as often as its task says."""
    import torch

    kinds = dict.fromkeys(one.request_type for one in requests)
    with torch.random.fork_rng(devices=[0] if device.startswith("cuda") else []):
        torch.manual_seed(_SEED)  # a task may sample its texts
        for kind in kinds:
            repeated = [one for one in requests if one.request_type == kind for _ in range(one.repeats or 1)]
            for one, answer in zip(repeated, getattr(lm, kind)(repeated, disable_tqdm=True), strict=True):
                one.resps.append(answer)


def _reply(who: str, population: Population, item: Item, requests: Sequence[Any]) -> Reply:
    task = population.tasks[item.task]
    where = f"{who} gave {{}} at {item.task} {item.doc_id}"
    likelihoods: tuple[float, ...] = ()
    if requests[0].request_type == "loglikelihood":
        likelihoods = tuple(float(one.resps[0][0]) for one in requests)
        if not all(map(math.isfinite, likelihoods)):
            broken = next(each for each in likelihoods if not math.isfinite(each))
            raise NotFinite(where.format(f"a log-likelihood of {broken}") + " (NaN and infinity are no answers)")
    next(each for each in task._filters if each.name == population.filter).apply(requests)
    answers = [one.filtered_resps[population.filter] for one in requests]
    found = task.process_results(requests[0].doc, answers)
    if population.metric not in found:
        raise UsageError(f"{item.task} has no metric {population.metric!r}: it has {', '.join(map(str, found))}")
    value = found[population.metric]
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise UsageError(
            f"{item.task}: {population.metric} is no number of an item's own ({_shown(repr(value))}); choose "
            f"another metric="
        ) from None
    if math.isnan(value):
        raise NotFinite(where.format(f"a {population.metric} of NaN") + " (which is no answer)")
    if not 0.0 <= value <= 1.0:
        raise UsageError(
            f"{item.task}: {population.metric} of item {item.doc_id} is {value:g}, and not within 0 and 1; choose "
            f"another metric="
        )
    return Reply(value, _said(task, population.metric, requests, answers, likelihoods), likelihoods)


def _said(task: Any, metric: str, requests: Sequence[Any], answers: Sequence[Any], lls: Sequence[float]) -> str:
    if not lls:
        return _shown(answers[0][0] if isinstance(answers[0], list) and answers[0] else answers[0])
    if len(requests) == 1:
        return "what was expected" if requests[0].resps[0][1] else "something else"
    choices = _choices(task, requests[0].doc)
    if not choices or len(choices) > len(lls):
        return _shown(requests[max(range(len(lls)), key=lls.__getitem__)].args[-1])
    lengths = [1.0] * len(choices)
    if metric == "acc_norm":
        lengths = [float(len(choice)) or 1.0 for choice in choices]
    elif metric == "acc_bytes":
        lengths = [float(len(choice.encode("utf-8"))) or 1.0 for choice in choices]
    elif metric == "acc_mutual_info" and len(lls) == 2 * len(choices):
        lls = [given - alone for given, alone in zip(lls, lls[len(choices) :], strict=False)]
    return _shown(choices[max(range(len(choices)), key=lambda i: lls[i] / lengths[i])])


def _choices(task: Any, doc: Any) -> list[str]:
    if task.get_config("doc_to_choice") is None:
        return []
    return [str(choice) for choice in task.doc_to_choice(doc)]
