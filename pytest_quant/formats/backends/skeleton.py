"""A model's architecture without its weights: what of it a library must leave wide, and which sizes it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_quant.formats.backend import Asked, listed


def stay_wide(asked: Asked) -> list[str] | None:
    """What to give as ``modules_to_not_convert``: ``None`` where the format excludes nothing, since transformers then
    leaves the output head alone by itself. Given a list it does not, so the head is in it."""
    if not asked.excluded:
        return None
    model = _skeleton(asked.model)
    head = None if model is None else model.get_output_embeddings()
    heads = [] if model is None else [name for name, module in model.named_modules() if module is head]
    return _wide(asked.excluded, heads or ["lm_head"])


def excluding(config: str, argument: str, names: Sequence[str], head: str) -> str:
    """The same for people, as an argument of one of transformers' configs."""
    return f"{config}(..., {argument}={listed(_wide(names, [head]))})"


def _wide(names: Sequence[str], heads: Sequence[str]) -> list[str]:
    return [*heads, *names]


def linear_sizes(asked: Asked) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each linear layer that is to be quantized, by name; empty where the architecture cannot be
    opened here (code of the model's own)."""
    import torch

    model = _skeleton(asked.model)
    if model is None:
        return {}
    head = model.get_output_embeddings()
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and name not in asked.excluded
    }


def _skeleton(name: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError):
        return None
