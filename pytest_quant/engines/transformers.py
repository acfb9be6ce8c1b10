"""Engine ``transformers``: models of the Hugging Face library, on the device that was detected."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_quant.engines import predictions
from pytest_quant.engines.predictions import Compared, Predictions, Top
from pytest_quant.formats.proof import Proof
from pytest_quant.formats.stamp import stamp
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import Device

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

NAME = "transformers"
_ACTIVATIONS = 64
"""Bytes that a layer's forward holds at once for each hidden value of a token: 16 of them (an MLP four times as wide,
attention, residual, both sides of an operation) in FP32."""
PLACES = {"cuda": "cuda:0", "rocm": "cuda:0", "xpu": "xpu:0", "mps": "mps", "cpu": "cpu"}


class TransformersModel:
    """One loaded model: scores windows, decodes, accounts for its memory."""

    def __init__(self, model: Any, tokenizer: Any, device: Device, proof: Proof) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.proof = proof
        self._head: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._settle()
        self._head = self._separable_head()
        self._stamp = stamp(model)

    @property
    def changed(self) -> bool:
        """Whether somebody changed the model since it was loaded: its modules, its mode, values of its weights."""
        return stamp(self.model) != self._stamp

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model's position embedding knows."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def predict(self, tokens: NDArray[np.int64], scored_from: int = 1) -> Predictions:
        """What the model says of ``tokens[:, scored_from:]``, sequence after sequence; ``(batch, length)`` tokens, of
        which the last of each sequence is no input."""
        import torch

        inputs, labels = self._tensor(tokens[:, :-1]), self._tensor(tokens[:, scored_from:]).flatten()
        with torch.inference_mode():
            if self._head is None:
                logits = self.model(inputs, use_cache=False).logits
                return Predictions(logits[:, scored_from - 1 :].flatten(0, 1), None, labels, logits.shape[-1])
            states = self.model.base_model(inputs, use_cache=False).last_hidden_state
            return Predictions(
                states[:, scored_from - 1 :].flatten(0, 1),
                self._head,
                labels,
                self.model.get_output_embeddings().out_features,
            )

    def token_nll(self, windows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Negative log-likelihood of each token after the first, in nats; ``(batch, length)`` to
        ``(batch, length - 1)``."""
        import torch

        with torch.inference_mode():
            found = predictions.nll(self.predict(windows))
        return found.reshape(len(windows), -1).astype("float64")

    def top(self, tokens: NDArray[np.int64], scored_from: int, count: int) -> tuple[NDArray[np.float32], Top]:
        """NLL and the ``count`` most probable tokens at each row of :meth:`predict`."""
        import torch

        with torch.inference_mode():
            return predictions.top(self.predict(tokens, scored_from), count)

    def against_top(self, tokens: NDArray[np.int64], scored_from: int, ids: NDArray[np.uint32]) -> Compared:
        """This model against a stored reference's top tokens ``ids``, ``(rows, K)``."""
        import torch

        with torch.inference_mode():
            return predictions.against_top(self.predict(tokens, scored_from), ids)

    def against(
        self, reference: TransformersModel, tokens: NDArray[np.int64], scored_from: int, count: int
    ) -> tuple[NDArray[np.float32], Top, Compared]:
        """This model against a reference that is loaded beside it: the reference's NLL and top tokens, and the rest."""
        import torch

        with torch.inference_mode():
            theirs = reference.predict(tokens, scored_from)
            return predictions.against(theirs, self.predict(tokens, scored_from), count)

    def windows_at_once(self, length: int) -> int:
        """How many sequences of a length are scored in one forward: 1, 2, 4 or 8.

        It depends on the kind of device and its memory, never on what is free just now, so that the same code gives
        the same bits. On a CPU more than one is no faster.
        """
        if self.device.kind == "cpu" or self.device.memory_bytes is None or self._head is None:
            return 1
        width = int(getattr(self.model.config.get_text_config(), "hidden_size", 4096))
        spare = self.device.memory_bytes / 16
        fitting = int(spare / (length * width * _ACTIVATIONS))
        return next((count for count in (8, 4, 2) if count <= fitting), 1)

    def probe_logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of one short sequence, FP32, ``(length, vocabulary)``: what the proof compares."""
        import torch

        with torch.inference_mode():
            logits = self.model(self._tensor(tokens[None]), use_cache=False).logits[0]
        answer: NDArray[np.float32] = logits.float().cpu().numpy()
        return answer

    def prefill_seconds(self, prompt: NDArray[np.int64]) -> float:
        """Wall time of one forward over the prompt ``(batch, length)``, synchronized."""
        import torch

        inputs = self._tensor(prompt)
        with torch.inference_mode():
            return self._timed(lambda: self.model(inputs, use_cache=True, logits_to_keep=1))

    def decode_seconds(self, prompt: NDArray[np.int64], new_tokens: int) -> float:
        """Wall time of ``new_tokens`` greedy steps after the prompt, which itself is not timed."""
        import torch

        with torch.inference_mode():
            out = self.model(self._tensor(prompt), use_cache=True, logits_to_keep=1)

            def steps() -> None:
                last = out
                for _ in range(new_tokens):
                    token = last.logits[:, -1:].argmax(-1)
                    last = self.model(token, past_key_values=last.past_key_values, use_cache=True)

            return self._timed(steps)

    def kv_cache_bytes(self, prompt: NDArray[np.int64]) -> int:
        """True bytes of the KV cache after the prompt ``(batch, context)``."""
        import torch

        with torch.inference_mode():
            out = self.model(self._tensor(prompt), use_cache=True, logits_to_keep=1)
        return footprint(out.past_key_values).total

    def generate(self, prompt: str, max_new_tokens: int = 20, **arguments: Any) -> str:
        """The continuation of ``prompt``: greedy unless ``arguments`` for ``generate`` say otherwise."""
        import torch

        arguments.setdefault("do_sample", False)
        arguments.setdefault("pad_token_id", self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)
        encoded = self.tokenizer(prompt, return_tensors="pt").to(self._place)
        encoded.pop("token_type_ids", None)
        with torch.inference_mode():
            tokens = self.model.generate(**encoded, max_new_tokens=max_new_tokens, **arguments)
        text: str = self.tokenizer.decode(tokens[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    def _settle(self) -> None:
        """One short forward: some kernels repack their weights at the first."""
        import numpy as np

        self.token_nll(np.zeros((1, 2), dtype=np.int64))

    def _separable_head(self) -> Any:
        """The output head, with the scaling or capping that the model's config names, if hidden states through it are
        the model's logits to the bit; None where the model does more to them, so that logits are taken as a whole."""
        import torch

        head, base = self.model.get_output_embeddings(), self.model.base_model
        if not isinstance(head, torch.nn.Linear) or base is self.model:
            return None
        tokens = torch.arange(1, 9, device=self._place)[None] % self.vocabulary
        with torch.inference_mode():
            states = getattr(base(tokens, use_cache=False), "last_hidden_state", None)
            if states is None or states.shape[-1] != head.in_features:
                return None
            whole = self.model(tokens, use_cache=False).logits
            heads = _heads(head, self.model.config.get_text_config())
            return next((found for found in heads if torch.equal(found(states), whole)), None)

    @property
    def _place(self) -> str:
        return PLACES[self.device.kind]

    def _tensor(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        import torch

        return torch.as_tensor(tokens, device=self._place)

    def _timed(self, work: Callable[[], object]) -> float:
        self._synchronize()
        start = time.perf_counter()
        work()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        import torch

        if self.device.kind in ("cuda", "rocm"):
            torch.cuda.synchronize()
        elif self.device.kind == "xpu":
            torch.xpu.synchronize()
        elif self.device.kind == "mps":
            torch.mps.synchronize()


def _heads(head: Any, config: Any) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """What models do with hidden states to make logits of them: nothing but the head, cap them (Gemma), scale them
    (Cohere, Granite)."""
    import torch

    yield head
    if cap := getattr(config, "final_logit_softcapping", None):
        yield lambda states: torch.tanh(head(states) / cap) * cap
    if scale := getattr(config, "logit_scale", None):
        yield lambda states: head(states) * scale
    if scaling := getattr(config, "logits_scaling", None):
        yield lambda states: head(states) / scaling
