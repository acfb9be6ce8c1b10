"""A model that vLLM holds in a process of its own, with what a session asks of an engine's model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.predictions import Compared, Top
from pytest_quant.engines.vllm import NAME, scoring
from pytest_quant.engines.vllm import proof as proving
from pytest_quant.engines.vllm.process import EngineProcess
from pytest_quant.errors import NotFinite, QuantError, Unsupported
from pytest_quant.formats.proof import Proof
from pytest_quant.hardware import Device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.formats.offloading import Offload

_WIDER = 4
"""Times as many tokens of the format are asked for as the reference kept: a token that the reference holds for probable
is rarely beyond them."""
_MOST = 256


class VllmModel:
    """One loaded model: scores windows, decodes, accounts for its memory. :meth:`close` ends its process."""

    engine = NAME
    offload: Offload | None = None
    """Weights that are on no device: none, for the arguments that would offload some are refused."""
    places: tuple[str, ...] = ()
    """Devices that this process computes on for it: none."""

    def __init__(
        self,
        process: EngineProcess,
        facts: Mapping[str, Any],
        config: Any,
        tokenizer: Any,
        device: Device,
        proof: Proof,
        ends: Collection[int] = (),
    ) -> None:
        self.process = process
        self.config = config
        self.tokenizer = tokenizer
        self.device = device
        self.proof = proof
        self.version = str(facts["version"])
        """Of vLLM."""
        self._facts = facts
        self._ends = frozenset(ends)
        self._caches: Sequence[Mapping[str, Any] | None] = [worker["kv_cache"] for worker in facts["workers"]]

    @property
    def model(self) -> Any:
        """There is none here: :class:`QuantError`."""
        raise QuantError(
            "vLLM's model runs in a process of its own: there is no object of it here; ask quant_model for losses, "
            "texts and bytes, or use engine transformers"
        )

    @property
    def alive(self) -> bool:
        """Whether its process is there to answer."""
        return self.process.alive

    @property
    def changed(self) -> bool:
        """Nobody can change it from here."""
        return False

    @property
    def has_own_cache(self) -> bool:
        """Whether its keys and values are kept in another type than they are computed in."""
        return bool(self.proof.kv_cache)

    @property
    def head(self) -> None:
        """Its output head is not to be had by itself."""
        return None

    @property
    def max_model_len(self) -> int:
        """The longest sequence that the engine holds, prompt and what comes after it."""
        return int(self._facts["max_model_len"])

    @property
    def longest_prompt(self) -> int:
        """Tokens that the engine takes at once, those that are scored among them: it wants room for one to come."""
        return self.max_model_len - 1

    @property
    def max_positions(self) -> int:
        """The longest sequence that the engine is given, when one more token is scored after it: vLLM takes that as
        part of the prompt."""
        return self.longest_prompt - 1

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self._facts["vocabulary"])

    @property
    def kv_room(self) -> int:
        """Tokens that the engine's KV cache has room for, of all sequences together."""
        return proving.kv_room(self._caches)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens after which the model is done: those of its generation config, else its tokenizer's."""
        return self._ends

    def windows_at_once(self, length: int) -> int:
        """How many sequences of a length are scored together: on a CPU one, elsewhere 8 where the KV cache holds them.
        It depends on the engine's arguments and the device, never on what is free just now."""
        if self.device.kind == "cpu":
            return 1
        return next((count for count in (8, 4, 2) if count * length <= self.kv_room), 1)

    def token_nll(self, windows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Negative log-likelihood of each token after the first, in nats; ``(batch, length)`` to
        ``(batch, length - 1)``."""
        found: NDArray[np.float64] = self.process.call("nll", windows, 1).astype("float64")
        return found

    def top(self, tokens: NDArray[np.int64], scored_from: int, count: int) -> tuple[NDArray[np.float32], Top]:
        """NLL of ``tokens[:, scored_from:]`` and the ``count`` most probable tokens there, row by row."""
        return scoring.top_of(*self._listed(tokens, scored_from, count))

    def against_top(self, tokens: NDArray[np.int64], scored_from: int, ids: NDArray[np.uint32]) -> Compared:
        """This model against a stored reference's top tokens ``ids`` ``(rows, K)``. Where the engine tells only its
        own most probable tokens, ``at_top`` is NaN ("not known") at those that are not among them:
        :func:`.scoring.known_kl` is the bound that holds."""
        import numpy as np

        if not self._facts["scores_any_ids"]:
            return scoring.compared(*self._listed(tokens, scored_from, min(_WIDER * ids.shape[1], _MOST)), ids)
        _, log_probs = self._listed(tokens, scored_from, 1)
        shape = (len(tokens), tokens.shape[1] - scored_from, ids.shape[1])
        at_top = self.process.call("at", tokens, scored_from, ids.astype(np.int64).reshape(shape))
        return Compared(
            nll=-log_probs[:, 0],
            agree=at_top.reshape(ids.shape)[:, 0] >= log_probs.max(-1),
            at_top=at_top.reshape(ids.shape),
        )

    def against(
        self, reference: Any, tokens: NDArray[np.int64], scored_from: int, count: int
    ) -> tuple[NDArray[np.float32], Top, Compared]:
        """:class:`Unsupported`: the whole vocabulary of two engines is never side by side."""
        raise Unsupported(
            asked="the KL divergence over the whole vocabulary with engine vllm",
            found="processes of their own, which tell their most probable tokens only",
            needed="kl_divergence(max_bound=...), which limits what the top tokens tell, or engine transformers",
        )

    def probe_logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probabilities of a short sequence's tokens after the first, ``(length - 1, 1)``: what tells whether two
        models of this engine answer the same."""
        import numpy as np

        found: NDArray[np.float32] = -self.process.call("nll", tokens[None].astype(np.int64), 1)[0][:, None]
        return found

    def kv_cache_bytes(self, prompt: NDArray[np.int64]) -> int:
        """Bytes of the pages that the KV cache gives to the prompt ``(batch, context)``, of all workers; pages are
        whole, so that short contexts take more a token."""
        return proving.kv_bytes(self._caches, *prompt.shape)

    def generate(self, prompt: str, max_new_tokens: int = 20, **arguments: Any) -> str:
        """The continuation of ``prompt``: greedy unless ``arguments`` for vLLM's ``SamplingParams`` say otherwise."""
        ids = self.tokenizer(prompt)["input_ids"]
        tokens, _ = self.process.call("generate", ids, {"max_tokens": max_new_tokens, **arguments})
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def continue_greedily(
        self, prompt: NDArray[np.int64], max_new_tokens: int, ends: Collection[int]
    ) -> NDArray[np.int64]:
        """The most probable token after the prompt's tokens, again and again, up to and including one of ``ends``.
        Nothing of the model's generation config applies. :class:`NotFinite` where there is no most probable token."""
        import numpy as np

        asked = {"max_tokens": max_new_tokens, "stop_token_ids": [int(end) for end in ends], "ignore_eos": True}
        tokens, finite = self.process.call("generate", [int(token) for token in prompt], asked)
        if not finite:
            raise NotFinite(f"the logits after {len(prompt)} tokens or later are NaN or infinite")
        return np.array(tokens, dtype=np.int64)

    def timer(self) -> VllmTimer:
        """Times prefill, first token and steps within the engine's process."""
        return VllmTimer(self)

    def close(self) -> None:
        """End the engine's process; nothing can be asked any more."""
        self.process.close()

    def _listed(
        self, tokens: NDArray[np.int64], scored_from: int, count: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """``(R, 1 + K)`` ids and log-probabilities, sequence after sequence."""
        ids, log_probs = self.process.call("top", tokens, scored_from, min(count, self.vocabulary))
        return ids.reshape(-1, ids.shape[-1]), log_probs.reshape(-1, ids.shape[-1])


class VllmTimer:
    """One engine against the clock, which is read in its own process: sending the question takes no part. The engine
    waits for its device at the end of each step, since it needs the tokens."""

    def __init__(self, model: VllmModel) -> None:
        self._process = model.process

    def prefill(self, prompt: NDArray[np.int64]) -> float:
        """Seconds of reading the prompts ``(batch, length)``, which are queued before, up to one token of each."""
        return float(self._process.call("prefill", prompt))

    def first_token(self, prompt: NDArray[np.int64]) -> float:
        """Seconds from the prompts ``(batch, length)`` on the host to the first new token of each on the host."""
        return float(self._process.call("first_token", prompt))

    def start(self, prompt: NDArray[np.int64], new_tokens: int) -> None:
        """Read the prompts ``(batch, length)``, with room for ``new_tokens``; nothing is timed."""
        self._process.call("begin", prompt, new_tokens)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of the next ``count`` greedy steps. What ends a text does not end them."""
        found: list[float] = self._process.call("steps", count)
        return found
