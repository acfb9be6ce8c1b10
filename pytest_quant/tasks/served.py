"""lm-eval's model around an engine of which only predictions are seen; imported where lm-eval is installed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM

from pytest_quant.errors import NotMeasured

if TYPE_CHECKING:
    import torch

    from pytest_quant.engines.vllm.model import VllmModel


class ServedLM(HFLM):  # type: ignore[misc]
    """lm-eval's ``hf`` model in all but three places: what is likely and what is written is asked of the engine, one
    request after the other, and how long an item may be follows from the engine.

    An item of more tokens loses its first ones, as with engine transformers, where L tokens go into a model of L
    positions, and the last of the continuation after them is scored: L + 1 in all. vLLM takes what is scored as part
    of its prompt and wants room for one token more, so that of such an item one or two of the first tokens fewer are
    read here: L, or L - 1 where the engine has no more than L positions. Two models that vLLM runs read the same. Where
    the user's ``max_model_len`` is shorter than the model's own context, an item that does not fit is not measured.
    """

    def __init__(self, loaded: VllmModel, tokenizer: Any) -> None:
        import torch

        stand_in = SimpleNamespace(config=loaded.config, device=torch.device("cpu"), name_or_path="")
        self._loaded = loaded
        super().__init__(pretrained=stand_in, tokenizer=tokenizer, backend="causal", batch_size=1)
        if loaded.max_model_len >= self.max_length:
            self._max_length = min(self.max_length, loaded.longest_prompt - 1)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding would give."""
        import numpy as np

        found = []
        for _asked, context, continuation in requests:
            tokens = np.array((context + continuation)[-(self.max_length + 1) :], dtype=np.int64)
            self._check_room(len(tokens) + 1)
            if len(continuation) >= len(tokens):
                raise NotMeasured(
                    f"a continuation of {len(continuation)} tokens leaves no room for what it continues: the engine "
                    f"takes {self._loaded.longest_prompt} tokens"
                )
            nll, top = self._loaded.top(tokens[None], len(tokens) - len(continuation), 1)
            greedy = bool((top.ids[:, 0] == np.array(continuation)).all())
            found.append((-float(nll.sum(dtype=float)), greedy))
        return found

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: Sequence[str], **arguments: Any
    ) -> torch.Tensor:
        """The prompt ``(1, length)`` with its greedy continuation; lm-eval cuts it at ``stop``."""
        import numpy as np
        import torch

        if arguments.get("do_sample") or arguments.get("temperature", 0.0):
            raise NotMeasured(
                'the task samples its texts, which is asked of engine="transformers" only; a greedy task can be asked '
                "of vLLM"
            )
        self._check_room(max_length)
        prompt = context[0].numpy().astype(np.int64)
        written = self._loaded.continue_greedily(prompt, max_length - len(prompt), sorted(self._loaded.end_tokens))
        return torch.as_tensor(np.concatenate([prompt, written]))[None]

    def _check_room(self, tokens: int) -> None:
        if tokens > self._loaded.max_model_len:
            raise NotMeasured(
                f"an item takes {tokens} tokens with what comes after it, more than the engine's max_model_len="
                f"{self._loaded.max_model_len}: give a longer one in engine_args, or none"
            )
