"""Engine ``transformers``: models of the Hugging Face library, on the device that was detected."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_quant.engines import placing, predictions
from pytest_quant.engines.memory import is_out_of_memory
from pytest_quant.engines.predictions import Compared, Predictions, Top
from pytest_quant.errors import NotFinite, ProofFailed, QuantError, Unsupported
from pytest_quant.formats import kv_cache, offloading
from pytest_quant.formats.format import Format
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


_PROBE = (kv_cache.FIRST, 144)
"""Tokens that a KV cache has to prove itself with: a prompt, and enough for newer ones to be quantized too."""


class TransformersModel:
    """One loaded model: scores windows, decodes, accounts for its memory.

    With a ``format`` that has a KV cache format, all that it does goes through such a cache, which has to prove itself:
    :class:`Unsupported` where there is none for the model, :class:`ProofFailed` where it does not hold what it should.
    """

    engine = NAME

    def __init__(self, model: Any, tokenizer: Any, device: Device, proof: Proof, format: Format | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.proof = proof
        self.places = placing.devices(model)
        """The devices that compute it."""
        self.offload = offloading.offload(model)
        """What of it is on none of them."""
        self.input_place = placing.execution_device(model.get_input_embeddings())
        """The device that tokens go to."""
        self._cached: kv_cache.KVCache | None = None
        self._head: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._settle()
        self._head = self._separable_head()
        if format is not None and format.kv_cache is not None:
            self.proof = replace(proof, kv_cache=self._prove_cache(format))
            self._cached = format.kv_cache
        self._stamp = stamp(model)

    @property
    def changed(self) -> bool:
        """Whether somebody changed the model since it was loaded: its modules, its mode, values of its weights."""
        return stamp(self.model) != self._stamp

    @property
    def alive(self) -> bool:
        """It is in this process."""
        return True

    @property
    def config(self) -> Any:
        """Of the library, as the model was opened with."""
        return self.model.config

    def close(self) -> None:
        """Nothing is held outside of this process."""

    @property
    def has_own_cache(self) -> bool:
        """Whether its format says how keys and values are kept."""
        return self._cached is not None

    @property
    def head(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What makes the model's logits of its last hidden states; None where only the whole model does."""
        return self._head

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

        inputs, labels = self.tensor(tokens[:, :-1]), self.tensor(tokens[:, scored_from:]).flatten()
        with torch.inference_mode():
            if self._head is None:
                logits = self._through(self.model, "logits", inputs)
                labels = labels.to(logits.device)
                return Predictions(logits[:, scored_from - 1 :].flatten(0, 1), None, labels, logits.shape[-1])
            labels = labels.to(placing.execution_device(self.model.get_output_embeddings()))
            states = self._through(self.model.base_model, "last_hidden_state", inputs)
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
        if self._cached is not None and self._cached.depends_on_company:
            return 1
        width = int(getattr(self.model.config.get_text_config(), "hidden_size", 4096))
        spare = self.device.memory_bytes / 16
        fitting = int(spare / (length * width * _ACTIVATIONS))
        return next((count for count in (8, 4, 2) if count <= fitting), 1)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits after each of ``(batch, length)`` tokens on the device, ``(batch, length, vocabulary)``."""
        import torch

        with torch.inference_mode():
            return self._through(self.model, "logits", inputs)

    def new_cache(self) -> Any:
        """An empty KV cache of the format's kind for one ``generate``; None where the model's own will do."""
        return None if self._cached is None else self._cached.new(self.model.config)

    def probe_logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of one short sequence, FP32, ``(length, vocabulary)``: what the proof compares."""
        import torch

        with torch.inference_mode():
            logits = self._through(self.model, "logits", self.tensor(tokens[None]))[0]
        answer: NDArray[np.float32] = logits.float().cpu().numpy()
        return answer

    def kv_cache_bytes(self, prompt: NDArray[np.int64]) -> int:
        """True bytes of the KV cache after the prompt ``(batch, context)``; with a KV cache format, the most that it
        takes with so many tokens, when the newest are not quantized yet."""
        import torch

        inputs = self.tensor(prompt)
        # a sliding window keeps all of a prompt until the next token
        length = inputs.shape[1]
        sizes = [length - 1, 1] if length > 1 else [1]
        if self._cached is not None:
            sizes = self._cached.fullest(length)
        with torch.inference_mode():
            return footprint(self.fed(torch.split(inputs, sizes, 1)).past_key_values).total

    def generate(self, prompt: str, max_new_tokens: int = 20, **arguments: Any) -> str:
        """The continuation of ``prompt``: greedy unless ``arguments`` for ``generate`` say otherwise."""
        import torch

        arguments.setdefault("do_sample", False)
        arguments.setdefault("pad_token_id", self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)
        encoded = self.tokenizer(prompt, return_tensors="pt").to(self._place)
        encoded.pop("token_type_ids", None)
        if self._cached is not None:
            arguments.setdefault("past_key_values", self._cached.new(self.model.config))
        with torch.inference_mode():
            tokens = self.model.generate(**encoded, max_new_tokens=max_new_tokens, **arguments)
        text: str = self.tokenizer.decode(tokens[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens after which the model is done: those of its generation config, else its tokenizer's."""
        found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        found = self.tokenizer.eos_token_id if found is None else found
        return frozenset(() if found is None else found if isinstance(found, list) else [found])

    def continue_greedily(
        self, prompt: NDArray[np.int64], max_new_tokens: int, ends: Collection[int]
    ) -> NDArray[np.int64]:
        """The most probable token after the prompt's tokens, again and again, up to and including one of ``ends``.

        Nothing of the model's generation config applies: transformers 5 takes a penalty on repetition or a least length
        from there, whatever ``generate`` is given. :class:`NotFinite` where there is no most probable token.
        """
        import numpy as np
        import torch

        found: list[int] = []
        piece, cache = self.tensor(prompt[None]), None
        with torch.inference_mode():
            while len(found) < max_new_tokens and not (found and found[-1] in ends):
                out = self.fed([piece], cache)
                best, token = out.logits[0, -1].max(dim=-1)
                if not torch.isfinite(best):
                    raise NotFinite(f"the logits after {len(prompt) + len(found)} tokens are NaN or infinite")
                found.append(int(token))
                piece, cache = token[None, None], out.past_key_values
        return np.array(found, dtype=np.int64)

    def _through(self, module: Any, what: str, inputs: torch.Tensor) -> torch.Tensor:
        """``what`` the module gives for ``(batch, length)`` tokens: in one forward or, with a KV cache format, in steps
        of which each but the first reads what those before left in the cache."""
        import torch

        if self._cached is None:
            found: torch.Tensor = getattr(module(inputs, use_cache=False), what)
            return found
        cache, sizes = self._cached.new(self.model.config), self._cached.steps(inputs.shape[1])
        return torch.cat([getattr(out, what) for out in _steps(module, torch.split(inputs, sizes, 1), cache)], 1)

    def fed(self, pieces: Sequence[torch.Tensor], cache: Any = None) -> Any:
        """The output for the last of the pieces of a prompt, with the cache that all of them filled: the one that is
        given, or a new one of the model's own or of the format's kind."""
        if cache is None and self._cached is not None:
            cache = self._cached.new(self.model.config)
        return list(_steps(self.model, pieces, cache, logits_to_keep=1))[-1]

    def _prove_cache(self, format: Format) -> Mapping[str, Any]:
        """The figures of the format's KV cache, from one that was filled in steps beside an unquantized one."""
        import torch

        assert format.kv_cache is not None
        length = min(sum(_PROBE), self.max_positions or sum(_PROBE))
        tokens = torch.arange(1, length + 1, device=self._place)[None] % self.vocabulary
        sizes = format.kv_cache.steps(length)
        pieces = torch.split(tokens, sizes, 1)
        with torch.inference_mode():
            kv_cache.check_model(format, self.model, self._plain_cache(pieces[0][:, :2]))
            cache = format.kv_cache.new(self.model.config)
            try:
                *_, theirs = _steps(self.model, pieces, None)
                *_, ours = _steps(self.model, pieces, cache)
            except Exception as error:
                if isinstance(error, QuantError) or is_out_of_memory(error):
                    raise
                said = f"{type(error).__name__}: {str(error).strip()[:300]}"
                raise ProofFailed(f"the model cannot be run with the KV cache of {format.name}: {said}") from error
            figures = kv_cache.prove(format, cache, theirs.past_key_values)
            if torch.equal(ours.logits, theirs.logits):
                raise ProofFailed(
                    f"the model answers with the KV cache of {format.name} exactly as without: it does not read what "
                    f"it stores"
                )
        return figures

    def _plain_cache(self, inputs: torch.Tensor) -> Any:
        """What the model keeps of a few tokens by itself; None where it keeps nothing of that name."""
        return getattr(self.model(inputs, use_cache=True), "past_key_values", None)

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
            return next((found for found in heads if torch.equal(found(states).to(whole.device), whole)), None)

    @property
    def _place(self) -> torch.device:
        """Where tokens go in."""
        place: torch.device = self.input_place
        return place

    def tensor(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """Tokens on the device that reads them."""
        import torch

        return torch.as_tensor(tokens, device=self._place)

    def synchronize(self) -> None:
        """Wait until every device of the model has done what it was asked."""
        import torch

        accelerators = [place for place in self.places if place.startswith(("cuda", "xpu"))]
        if self.device.kind in ("cuda", "rocm"):
            for place in accelerators:
                torch.cuda.synchronize(place)
        elif self.device.kind == "xpu":
            for place in accelerators:
                torch.xpu.synchronize(place)
        elif self.device.kind == "mps":
            torch.mps.synchronize()


def _steps(module: Any, pieces: Sequence[torch.Tensor], cache: Any, **arguments: Any) -> Iterator[Any]:
    """The outputs for the pieces of a sequence, fed one after the other; without a ``cache``, into the model's own.
    ``arguments`` that the model does not take are left out. :class:`Unsupported` where it keeps no keys and values."""
    taken = inspect.signature(module.forward).parameters if arguments else {}
    arguments = {name: value for name, value in arguments.items() if name in taken}
    for piece in pieces:
        out = module(piece, past_key_values=cache, use_cache=True, **arguments)
        cache = getattr(out, "past_key_values", None)
        if cache is None:
            raise Unsupported(
                asked="its KV cache, filled step by step",
                found=f"{type(module).__name__}, which keeps no keys and values",
                needed="a model with attention and a KV cache",
            )
        yield out


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
