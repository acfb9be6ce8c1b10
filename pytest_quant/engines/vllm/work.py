"""What an engine does in its own process: load, score, generate, and be timed. Only imported where vLLM is.

Everything that comes and goes is plain data or numpy arrays. Log-probabilities are those of the plain softmax of the
logits in FP32 (``logprobs_mode="raw_logprobs"``): no temperature and no penalty applies to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import NotMeasured, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Work:
    """One engine, from its start to its end; each public method is a call of the other process."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._numbers = itertools.count()
        self._running: list[str] = []
        self._longest = 0
        self._scored: dict[str, Any] = {"detokenize": False, "max_tokens": 1, "temperature": 0.0}

    def start(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Load the model; what it is. :class:`UsageError` where vLLM knows no argument of a name."""
        from vllm import LLM, SamplingParams, __version__

        _check_names(arguments)
        self._llm = LLM(**arguments)
        config = self._llm.llm_engine.vllm_config
        self._longest = int(config.model_config.max_model_len)
        fields = getattr(SamplingParams, "__struct_fields__", ())
        if "flat_logprobs" in fields:
            self._scored["flat_logprobs"] = True
        ids_at_rows = "prompt_logprob_token_ids" in fields and getattr(config, "use_v2_model_runner", False)
        return {
            "version": __version__,
            "max_model_len": self._longest,
            "vocabulary": int(config.model_config.get_vocab_size()),
            "scores_any_ids": bool(ids_at_rows),
            "workers": self._llm.collective_rpc("pytest_quant_inspect"),
        }

    def nll(self, tokens: NDArray[np.int64], scored_from: int) -> NDArray[np.float32]:
        """NLL of ``tokens[:, scored_from:]`` in nats, ``(batch, length - scored_from)``."""
        _, log_probs = self._prompt_logprobs(tokens, scored_from, 0)
        return -log_probs[:, :, 0]

    def top(
        self, tokens: NDArray[np.int64], scored_from: int, count: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Ids and log-probabilities at each of ``tokens[:, scored_from:]``, ``(batch, length - scored_from, 1 +
        count)``: the token that came, and then the ``count`` most probable ones."""
        return self._prompt_logprobs(tokens, scored_from, count)

    def at(self, tokens: NDArray[np.int64], scored_from: int, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probabilities of ``ids`` ``(batch, rows, K)`` at each of ``tokens[:, scored_from:]``; only where
        ``scores_any_ids``."""
        import numpy as np
        from vllm import SamplingParams

        self._forget()
        start = scored_from - 1
        asked = [
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                prompt_logprob_token_ids=rows,
                prompt_logprob_start=start,
            )
            for rows in ids
        ]
        found = self._llm.generate(_prompts(tokens), asked, use_tqdm=False)
        return np.stack([output.prompt_token_id_logprobs for output in found]).astype(np.float32)

    def generate(self, tokens: Sequence[int], arguments: Mapping[str, Any]) -> tuple[list[int], bool]:
        """The tokens that follow, and whether the log-probabilities of all of them are finite. :class:`UsageError`
        where vLLM refuses an argument."""
        from vllm import SamplingParams

        self._forget()
        try:
            asked = SamplingParams(**{"temperature": 0.0, "detokenize": False, "logprobs": 0, **arguments})
        except (TypeError, ValueError) as error:
            raise UsageError(f"vLLM's SamplingParams refuses an argument of generate: {error}") from error
        (found,) = self._llm.generate([{"prompt_token_ids": list(tokens)}], asked, use_tqdm=False)
        kept = found.outputs[0]
        entries = kept.logprobs or []
        finite = all(math.isfinite(value.logprob) for entry in entries for value in entry.values())
        return list(kept.token_ids), finite

    def prefill(self, tokens: NDArray[np.int64]) -> float:
        """Seconds until the prompts ``(batch, length)``, which are queued before, have been read."""
        self._begin(tokens, 1)
        start = time.perf_counter()
        self._run()
        return time.perf_counter() - start

    def first_token(self, tokens: NDArray[np.int64]) -> float:
        """Seconds from the prompts ``(batch, length)`` to the first new token of each, queueing included."""
        self._forget()
        start = time.perf_counter()
        self._begin(tokens, 1)
        self._run()
        return time.perf_counter() - start

    def begin(self, tokens: NDArray[np.int64], new_tokens: int) -> None:
        """Read the prompts ``(batch, length)`` up to the first new token of each. :class:`NotMeasured` where they do
        not fit."""
        if tokens.shape[1] + new_tokens + 1 > self._longest:
            raise NotMeasured(
                f"{new_tokens} new tokens after {tokens.shape[1]} do not fit the engine's max_model_len={self._longest}"
            )
        self._begin(tokens, self._longest - tokens.shape[1])
        waiting, most = set(self._running), 4 * tokens.size + 16
        while waiting:
            waiting -= {output.request_id for output in self._step() if output.outputs[0].token_ids}
            most -= 1
            if most < 0:
                raise NotMeasured(f"{len(waiting)} of {len(tokens)} prompts were never read")

    def steps(self, count: int) -> list[float]:
        """Seconds of each of the next ``count`` steps, of which each gives one token to every sequence; greedy, and
        nothing ends them. :class:`NotMeasured` where not all sequences are in a step: they do not fit together."""
        if not self._running:
            raise RuntimeError("no prompts were read")
        found, moved = [], []
        for _ in range(count):
            start = time.perf_counter()
            outputs = self._step()
            found.append(time.perf_counter() - start)
            moved.append(len(outputs))
        if any(number != len(self._running) for number in moved):
            raise NotMeasured(
                f"a step moved {min(moved)} of {len(self._running)} sequences: they do not fit into the KV cache "
                f"together, or one came to its end"
            )
        return found

    def forget(self) -> None:
        """Let go of what :meth:`begin` reads."""
        self._forget()

    def end(self) -> None:
        """Shut the engine down, its workers too."""
        if self._llm is not None:
            with contextlib.suppress(Exception):
                self._forget()
            self._llm.llm_engine.engine_core.shutdown()

    def _prompt_logprobs(
        self, tokens: NDArray[np.int64], scored_from: int, count: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        import numpy as np
        from vllm import SamplingParams

        self._forget()
        asked = SamplingParams(prompt_logprobs=count, **self._scored)
        found = self._llm.generate(_prompts(tokens), asked, use_tqdm=False)
        kept = [_arrays(output.prompt_logprobs, labels, count) for output, labels in zip(found, tokens, strict=True)]
        rows = slice(scored_from - 1, None)
        return np.stack([ids[rows] for ids, _ in kept]), np.stack([log_probs[rows] for _, log_probs in kept])

    def _begin(self, tokens: NDArray[np.int64], new_tokens: int) -> None:
        from vllm import SamplingParams

        self._forget()
        asked = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        for prompt in _prompts(tokens):
            number = str(next(self._numbers))
            self._llm.llm_engine.add_request(number, prompt, asked)
            self._running.append(number)

    def _run(self) -> None:
        while self._llm.llm_engine.has_unfinished_requests():
            self._step()
        self._running = []

    def _step(self) -> list[Any]:
        return list(self._llm.llm_engine.step())

    def _forget(self) -> None:
        if self._running:
            self._llm.llm_engine.abort_request(self._running)
            self._running = []
            while self._llm.llm_engine.has_unfinished_requests():
                self._step()


def _prompts(tokens: NDArray[np.int64]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": row} for row in tokens.tolist()]


def _arrays(found: Any, tokens: NDArray[np.int64], count: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Ids and log-probabilities after each token but the last, ``(length - 1, 1 + count)``, of vLLM's prompt logprobs,
    in which the first token has none. Flat ones have the token that came first, and then the most probable ones."""
    import numpy as np

    rows = len(tokens) - 1
    if hasattr(found, "start_indices"):
        ids = np.array(found.token_ids, dtype=np.uint32).reshape(rows, -1)[:, : 1 + count]
        return ids, np.array(found.logprobs, dtype=np.float32).reshape(rows, -1)[:, : 1 + count]
    ids, log_probs = np.empty((rows, 1 + count), dtype=np.uint32), np.empty((rows, 1 + count), dtype=np.float32)
    for row, (label, entry) in enumerate(zip(tokens[1:].tolist(), found[1:], strict=True)):
        best = sorted(entry.items(), key=lambda item: -item[1].logprob)[:count]
        ids[row] = [label, *(token for token, _ in best)]
        log_probs[row] = [entry[label].logprob, *(value.logprob for _, value in best)]
    return ids, log_probs


def _check_names(arguments: Mapping[str, Any]) -> None:
    from vllm import LLM, __version__
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)} | set(inspect.signature(LLM.__init__).parameters)
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "its EngineArgs lists them"
            raise UsageError(f"vLLM {__version__} has no engine argument {name!r}; {hint}")
