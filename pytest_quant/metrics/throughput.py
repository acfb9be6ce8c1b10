"""Throughput of prefill and decode, format and reference interleaved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Protocol

from pytest_quant.errors import NotMeasured, UsageError
from pytest_quant.gates.measurement import Quantity
from pytest_quant.stats.ratio import ratio_of_medians

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WARM_UP = 1
ROUNDS = 9
"""The interval of a median cannot leave the rounds that were seen: 9 cover it with 1 - 2 / 2**9, 7 only with 98.4 %."""


class Timed(Protocol):
    """What timing asks of an engine's model."""

    @property
    def max_positions(self) -> int | None: ...

    def prefill_seconds(self, prompt: NDArray[np.int64]) -> float: ...

    def decode_seconds(self, prompt: NDArray[np.int64], new_tokens: int) -> float: ...


@dataclass(frozen=True)
class Workload:
    """What is timed: ``decode`` times the greedy steps after a prompt, ``prefill`` one forward over it."""

    phase: str = "decode"
    batch_size: int = 1
    prompt_tokens: int = 64
    new_tokens: int = 32

    @property
    def tokens(self) -> int:
        """Tokens that one timed run produces or reads."""
        return self.batch_size * (self.new_tokens if self.phase == "decode" else self.prompt_tokens)

    def seconds(self, model: Timed, prompt: NDArray[np.int64]) -> float:
        if self.phase == "decode":
            return model.decode_seconds(prompt, self.new_tokens)
        return model.prefill_seconds(prompt)


def prompt(stream: NDArray[np.int64], work: Workload) -> NDArray[np.int64]:
    """``(batch_size, prompt_tokens)`` tokens from the start of a stream, repeated as often as needed."""
    import numpy as np

    return np.resize(stream, (work.batch_size, work.prompt_tokens))


def throughput_ratio(
    format: Timed,
    reference: Timed,
    stream: NDArray[np.int64],
    work: Workload,
    confidence: float,
    progress: Callable[[int, int], None],
) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Quantity ``ratio`` (tokens a second of the format over the reference's) and the speeds behind it.

    After a warm-up of both, rounds time one run of each in turn, whichever was first going second in the
    next; ratio of medians, with a bootstrap interval over the rounds. :class:`NotMeasured` where the clock
    saw no time pass.
    """
    needed = work.prompt_tokens + (work.new_tokens if work.phase == "decode" else 0)
    for model in (format, reference):
        if model.max_positions is not None and needed > model.max_positions:
            raise UsageError(
                f"{work.phase} of {needed} tokens does not fit the model's {model.max_positions} positions"
            )
    tokens = prompt(stream, work)
    for _ in range(WARM_UP):
        work.seconds(reference, tokens), work.seconds(format, tokens)
    speeds: tuple[list[float], list[float]] = ([], [])
    for done in range(ROUNDS):
        pair = [(0, format), (1, reference)]
        for which, model in pair if done % 2 else reversed(pair):
            seconds = work.seconds(model, tokens)
            if seconds <= 0.0:
                raise NotMeasured(f"the clock saw no time pass in a {work.phase} run; ask for more tokens")
            speeds[which].append(work.tokens / seconds)
        progress(done + 1, ROUNDS)
    value, low, high = ratio_of_medians(speeds[0], speeds[1], confidence)
    figures = {"format_value": median(speeds[0]), "reference_value": median(speeds[1]), "rounds": float(ROUNDS)}
    return {"ratio": Quantity(value, low, high, "x")}, figures
