"""Engine ``transformers``: models of the Hugging Face library, on the device that was detected."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_quant.engines import memory
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotMeasured, Unsupported, UsageError
from pytest_quant.formats.backend import Backend
from pytest_quant.formats.format import Format
from pytest_quant.formats.proof import Proof, prove
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import Device

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

NAME = "transformers"
_POSITIONS = 256
"""Positions whose logits are widened to FP32 at a time."""
_PLACES = {"cuda": "cuda:0", "rocm": "cuda:0", "xpu": "xpu:0", "mps": "mps", "cpu": "cpu"}


class TransformersModel:
    """One loaded model: scores windows, decodes, accounts for its memory."""

    def __init__(self, model: Any, tokenizer: Any, device: Device, proof: Proof) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.proof = proof

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model's position embedding knows."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(limit) if limit else None

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

    @property
    def _place(self) -> str:
        return _PLACES[self.device.kind]

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


def load(
    source: ModelSource, format: Format, backend: Backend, compute_dtype: str, device: Device
) -> TransformersModel:
    """Load, then prove (before the first forward).

    Raises :class:`UsageError` where there is no such model, :class:`Unsupported` where it does not fit,
    :class:`ProofFailed` where it is not in the format.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    _require_torch_for(device, f"{source.short} in {format.name}")
    opening = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(source.name, **opening)
            tokenizer = AutoTokenizer.from_pretrained(source.name, **opening)
            model = AutoModelForCausalLM.from_pretrained(
                source.name,
                device_map={"": _PLACES[device.kind]},
                use_safetensors=True,
                **opening,
                **backend.load_arguments(format, compute_dtype),
            )
    except (torch.OutOfMemoryError, MemoryError) as error:
        memory.give_back(device)
        free = memory.free_bytes(device)
        raise Unsupported(
            asked=f"{source.short} in {format.name}",
            found=f"out of memory while loading it ({_first_line(error)})",
            needed=f"more than the {_gigabytes(free)} that are free on {device.name}",
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"the model {source.name!r} cannot be loaded as {format.name}: {_first_line(error)}; give a folder or a "
            f"hub id with config.json, a tokenizer and *.safetensors (pickled weights are never opened)"
        ) from error
    model.eval()
    proof = prove(model, format, backend, eligible_weights(config, trust_remote_code=source.trust_remote_code))
    return TransformersModel(model, tokenizer, device, proof)


def _require_torch_for(device: Device, asked: str) -> None:
    """:class:`Unsupported` where the installed torch cannot use the device that was detected."""
    import torch

    usable = {
        "cuda": torch.version.hip is None and torch.cuda.is_available(),
        "rocm": torch.version.hip is not None and torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not usable[device.kind]:
        raise Unsupported(
            asked=f"{asked} on {device.name}",
            found=f"torch {torch.__version__}, which cannot use it",
            needed=f"a build of torch for {device.kind} that the driver supports, or the device hidden from this run",
        )


def eligible_weights(config: Any, *, trust_remote_code: bool = False) -> dict[str, int]:
    """Number of weights of each parameter that a matrix product uses, by name: all of two dimensions or
    more, embeddings and output head apart. From the architecture alone, on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    config = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"), _quiet():
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    head = skeleton.get_output_embeddings()
    return {
        f"{module_name}.{name}": parameter.numel()
        for module_name, module in skeleton.named_modules()
        if module is not head and not isinstance(module, torch.nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 2
    }


def tokenize(tokenizer: Any, text: str) -> NDArray[np.int64]:
    """The text as one token stream; one BOS at its start if the tokenizer adds one."""
    import numpy as np

    with _quiet():
        ids = tokenizer(text, verbose=False)["input_ids"]
    if not ids:
        raise NotMeasured("the corpus has no tokens: it is empty, or the tokenizer knows none of it")
    return np.asarray(ids, dtype=np.int64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and notices, restored afterwards."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]


def _gigabytes(count: int | None) -> str:
    return "unknown bytes" if count is None else f"{count / 1e9:.1f} GB"
