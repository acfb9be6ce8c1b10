"""The items of a task in their drawn order, with all that the models are asked of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quant.errors import NotMeasured, QuantError, UsageError
from pytest_quant.tasks import choosing, code, digests, harness
from pytest_quant.tasks.asked import Asked
from pytest_quant.tasks.catalog import Found, no_documents
from pytest_quant.tasks.chat import Chat


@dataclass(frozen=True)
class Item:
    """One document of one task."""

    task: str
    doc_id: int
    """Its place among the task's documents, as lm-eval numbers them."""


@dataclass(frozen=True, eq=False)
class Population:
    """All items that a gate is about."""

    name: str
    tasks: Mapping[str, Any]
    """lm-eval's tasks."""
    metric: str
    filter: str
    order: Sequence[Item]
    """As they are drawn."""
    requests: Mapping[Item, Sequence[Any]]
    """What the models are asked of each: lm-eval's instances, never answered themselves."""
    weights: Mapping[str, float]
    """What an item of each task counts."""
    identity: Mapping[str, Any]

    @property
    def num_fewshot(self) -> int:
        """The most that an item has."""
        return max(int(task.get_config("num_fewshot") or 0) for task in self.tasks.values())


def build(found: Found, asked: Asked, chat: Chat | None) -> Population:
    """Every prompt of a task that was found, few-shot examples and all, as ``lm-eval`` makes them when it runs the
    whole of it: which examples an item gets depends on the documents before it.

    Raises :class:`UsageError` for a task that has no accuracy to compare or cannot be asked here.
    """
    for name, task in found.leaves.items():
        _check(name, task)
    aggregated, equal = (None, True) if found.group is None else choosing.by_size(found.group, asked.metric)
    wanted = asked.metric or aggregated
    metric = choosing.of_all("metric", {name: _metric(name, task, wanted) for name, task in found.leaves.items()})
    filter = choosing.of_all(
        "filter",
        {
            name: choosing.filter(name, [each.name for each in task._filters], asked.filter)
            for name, task in found.leaves.items()
        },
    )
    requests: dict[Item, list[Any]] = {}
    described, sizes, prompts = {}, {}, []
    with harness.silence(), harness.seeded(), harness.compiled_once():
        for name, task in found.leaves.items():
            of_task = _requests(name, task, asked, chat)
            own = code.digest(task)
            described[name] = {
                "version": str(getattr(task, "VERSION", None)),
                "config": digests.config(task),
                "documents": digests.documents(each[0].doc for each in of_task.values()),
                "num_fewshot": int(task.get_config("num_fewshot") or 0),
                "items": len(of_task),
                **({"code": own} if own else {}),
            }
            sizes[name] = len(of_task)
            requests.update(of_task)
            prompts.append([list(map(str, one.args)) for each in of_task.values() for one in each])
    identity: dict[str, Any] = {
        "task": found.name,
        "tasks": described,
        "prompts": digests.of(prompts),
        "metric": metric,
        "filter": filter,
    }
    if asked.limit is not None:
        identity["limit"] = asked.limit
    if asked.system_instruction is not None:
        identity["system_instruction"] = asked.system_instruction
    if chat is not None:
        identity["chat_template"] = {"sha256": chat.template, "fewshot_as_multiturn": asked.fewshot_as_multiturn}
    if not equal:
        identity["weights"] = "each task the same"
    order = _drawn(list(requests), digests.of(identity))
    weights = choosing.weights(sizes, by_size=equal)
    return Population(found.name, found.leaves, metric, filter, order, requests, weights, identity)


def _drawn(items: Sequence[Item], seed: str) -> Sequence[Item]:
    """All of them in a random order that the seed decides."""
    import numpy as np

    return [items[place] for place in np.random.default_rng(int(seed, 16)).permutation(len(items))]


def _check(name: str, task: Any) -> None:
    kind = getattr(task, "OUTPUT_TYPE", None)
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"{name} runs the code that a model writes, which pytest-quant does not; use another task")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"{name} asks about pictures or sounds; only tasks of text can be run")
    if kind == "loglikelihood_rolling":
        raise UsageError(
            f"{name} scores whole documents, of which no mean over items is an accuracy; for its perplexity use "
            f"perplexity_delta with --quant-protocol=lm-eval-word"
        )


def _metric(name: str, task: Any, asked: str | None) -> str:
    from lm_eval.api.metrics import mean

    more = task.higher_is_better()
    aggregations = task.aggregation()
    means = {each: bool(more.get(each, True)) for each, of in aggregations.items() if of is mean}
    return choosing.metric(name, means, [each for each in aggregations if each not in means], asked)


def _requests(name: str, task: Any, asked: Asked, chat: Chat | None) -> dict[Item, list[Any]]:
    """What lm-eval asks of each document, in the documents' order; never from its cache of requests."""
    try:
        task.build_all_requests(
            limit=asked.limit,
            cache_requests=False,
            rewrite_requests_cache=False,
            system_instruction=asked.system_instruction,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=asked.fewshot_as_multiturn,
            chat_template=None if chat is None else chat.apply,
            tokenizer_name="",
        )
    except QuantError:
        raise
    except Exception as error:
        if getattr(task, "_instances", None) == []:
            raise no_documents(name) from error
        said = str(error).strip().splitlines()[:1]
        raise NotMeasured(
            f"lm-eval cannot make the prompts of {name} ({type(error).__name__}: {''.join(said)[:300]}); does it have "
            f"as many examples as num_fewshot={asked.num_fewshot} asks for?"
            if asked.num_fewshot
            else f"lm-eval cannot make the prompts of {name} ({type(error).__name__}: {''.join(said)[:300]})"
        ) from error
    found: dict[Item, list[Any]] = {}
    for one in task.instances:
        found.setdefault(Item(name, int(one.doc_id)), []).append(one)
    for each in found.values():
        each.sort(key=lambda one: one.idx)
    return found
