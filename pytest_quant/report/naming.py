"""What a metric is called in tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SIZES = {
    "batch_size": ("b", 1),
    "prompt_tokens": ("p", 64),
    "new_tokens": ("n", 32),
    "max_new_tokens": ("n", 32),
    "context": ("c", 512),
}
_NO_PART = {("new_tokens", "prefill"): 1, ("new_tokens", "ttft"): 1}
"""Letter and usual value of what tells measurements of one metric apart."""


def shown_metric(record: Mapping[str, Any]) -> str:
    """A record's metric in words that fit a table, with the parameters that tell it from its siblings. These may come
    from a file, and be anything."""
    parameters = record.get("parameters", {})
    words = {
        "perplexity_delta": "perplexity",
        "kl_divergence": "KL divergence",
        "token_agreement": "same top token",
        "task_accuracy": _task(parameters),
        "generation_match": _text(parameters),
        "layer_sensitivity": f"worst {parameters.get('of')}",
        "throughput_ratio": f"{parameters.get('phase')} speed",
        "energy_ratio": f"{parameters.get('phase')} energy",
        "cost_ratio": f"{parameters.get('phase')} cost",
        "memory_budget": f"memory {parameters.get('of')}",
    }
    sizes = "".join(
        f" {letter}{parameters[name]}"
        for name, (letter, usual) in _SIZES.items()
        if parameters.get(name, usual) not in (usual, _NO_PART.get((name, str(parameters.get("phase")))))
    )
    options = " compiled" if parameters.get("compile") else " static" if parameters.get("cache") == "static" else ""
    prices = "".join(f" ${_price(parameters[name])}" for name in ("price", "reference_price") if name in parameters)
    return words.get(record["metric"], str(record["metric"])) + sizes + options + prices


def _price(told: object) -> str:
    return f"{told:g}" if isinstance(told, (int, float)) else str(told)


def _task(parameters: Mapping[str, Any]) -> str:
    """A task by its name, whichever file it came from, and how it is asked."""
    name = str(parameters.get("task", "")).removesuffix(".yaml").removesuffix(".yml")
    said = [name, str(parameters.get("metric", "accuracy"))]
    if "num_fewshot" in parameters:
        said.append(f"{parameters['num_fewshot']}-shot")
    if "limit" in parameters:
        said.append(f"first {parameters['limit']}")
    said += [str(parameters["filter"])] if "filter" in parameters else []
    said += ["chat"] if parameters.get("apply_chat_template") else []
    said += ["multiturn"] if parameters.get("fewshot_as_multiturn") else []
    said += ["system"] if "system_instruction" in parameters else []
    return " ".join(said)


def _text(parameters: Mapping[str, Any]) -> str:
    """What was continued."""
    prompts = parameters.get("prompts")
    said = [
        "same text",
        *([] if prompts is None else [f"{len(prompts)} given" if isinstance(prompts, (list, tuple)) else str(prompts)]),
    ]
    said += [f"first {parameters['limit']}"] if "limit" in parameters else []
    said += ["chat"] if parameters.get("chat_template") else []
    return " ".join(said)
