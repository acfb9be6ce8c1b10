"""What lm-eval takes for a model: one that is held already, in the format that it is held in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from pytest_quant.errors import NotFinite

if TYPE_CHECKING:
    import torch

    from pytest_quant.engines.transformers import TransformersModel
    from pytest_quant.engines.vllm.model import VllmModel

BLOCK = 16
"""Items that are asked together where several prompts go through the model at once."""
_AT_MOST = 16
_COPIES = 3
"""Of a batch's logits in FP32, which lm-eval holds at the same time: the model's, their logarithms, what is cut out."""
_LONGEST = 8
"""Of the longest prompts by their characters so many are tokenized, to learn how many tokens the longest has."""


class HeldModel:
    """Answers as a ``transformers`` model does where lm-eval asks it, through the engine's own object: a KV cache
    format is used, and nothing about the model is changed (lm-eval would tie its weights anew)."""

    def __init__(self, loaded: TransformersModel, format: str) -> None:
        import torch

        self.device = torch.device(loaded.input_place)
        self.config = loaded.model.config
        self.name_or_path = ""
        self._loaded = loaded
        self._format = format

    def __call__(self, inputs: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self._loaded.logits(inputs))

    def generate(self, **arguments: Any) -> torch.Tensor:
        import torch
        from transformers import LogitsProcessorList

        cache = self._loaded.new_cache()
        if cache is not None:
            arguments["past_key_values"] = cache
        with torch.inference_mode():
            found: torch.Tensor = self._loaded.model.generate(
                **arguments, logits_processor=LogitsProcessorList([self._check])
            )
        return found

    def _check(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """A model that gives NaN would silently continue with token 0."""
        if bool(scores.isnan().any()):
            raise NotFinite(f"the {self._format} model gave NaN while it continued a prompt")
        return scores


def wrap(loaded: TransformersModel | VllmModel, format: str, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's ``hf`` model around one that is held, with the defaults of its command line. ``tokenizer`` gets a
    padding token where it has none: give a copy."""
    from lm_eval.models.huggingface import HFLM

    if loaded.engine != "transformers":
        from pytest_quant.tasks.served import ServedLM

        return ServedLM(cast("VllmModel", loaded), tokenizer)
    held = HeldModel(cast("TransformersModel", loaded), format)
    return HFLM(pretrained=held, tokenizer=tokenizer, backend="causal", batch_size=batch_size)


def own_tokenizer(loaded: TransformersModel | VllmModel) -> Any:
    """A copy that lm-eval may change."""
    return copy.deepcopy(loaded.tokenizer)


def prompts_at_once(
    loaded: TransformersModel | VllmModel, tokenizer: Any, prompts: Sequence[str], *, alone: bool
) -> int:
    """How many prompts go through a model in one forward: 1, 2, 4, 8 or 16, by the device's memory and the longest of
    all prompts of a task, never by what is free just now.

    One where prompts have to be ``alone`` (activations are quantized, and padding or company would change an answer),
    and on a CPU, where more are no faster.
    """
    memory = loaded.device.memory_bytes
    if memory is None or loaded.device.kind == "cpu" or loaded.engine != "transformers":
        return 1
    if alone or loaded.has_own_cache:
        return 1
    longest = sorted(prompts, key=len)[-_LONGEST:]
    tokens = max(len(tokenizer(prompt, verbose=False)["input_ids"]) for prompt in longest) if longest else 1
    fitting = memory / 16 / (min(tokens, loaded.max_positions or tokens) * loaded.vocabulary * 4 * _COPIES)
    return next((count for count in (_AT_MOST, 8, 4, 2) if count <= fitting), 1)
