"""Engine ``transformers``: models of the Hugging Face library, on the device that was detected."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_quant.formats.proof import Proof
from pytest_quant.formats.stamp import stamp
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import Device

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

NAME = "transformers"
_POSITIONS = 256
"""Positions whose logits are widened to FP32 at a time."""
PLACES = {"cuda": "cuda:0", "rocm": "cuda:0", "xpu": "xpu:0", "mps": "mps", "cpu": "cpu"}


class TransformersModel:
    """One loaded model: scores windows, decodes, accounts for its memory."""

    def __init__(self, model: Any, tokenizer: Any, device: Device, proof: Proof) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.proof = proof
        self._settle()
        self._stamp = stamp(model)

    @property
    def changed(self) -> bool:
        """Whether somebody changed the model since it was loaded: its modules, its mode, values of its weights."""
        return stamp(self.model) != self._stamp

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model's position embedding knows."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def token_nll(self, windows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Negative log-likelihood of each token after the first, in nats; ``(batch, length)`` to
        ``(batch, length - 1)``. Logits are widened to FP32 a few positions at a time."""
        import numpy as np
        import torch

        inputs = self._tensor(windows)
        result = np.empty((len(windows), windows.shape[1] - 1), dtype=np.float64)
        with torch.inference_mode():
            logits = self.model(inputs, use_cache=False).logits
            for start in range(0, result.shape[1], _POSITIONS):
                stop = min(start + _POSITIONS, result.shape[1])
                # one row a position: the kernel for (batch, vocabulary, length) sums a vocabulary in FP32 one by
                # one, and is off by 1e-4 nats
                part = logits[:, start:stop].float().flatten(0, 1)
                labels = inputs[:, start + 1 : stop + 1].flatten()
                nll = torch.nn.functional.cross_entropy(part, labels, reduction="none")
                result[:, start:stop] = nll.view(len(windows), -1).double().cpu().numpy()
        return result

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
