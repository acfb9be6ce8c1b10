"""What is timed: a phase of generation, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_quant.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PHASES = ("decode", "prefill", "ttft")
CACHES = ("dynamic", "static")


@dataclass(frozen=True)
class Workload:
    """``prefill`` is one forward over the prompts, ``ttft`` the time from the prompts on the host to the first new
    token on the host, ``decode`` the ``new_tokens`` greedy steps after the prompts: always as many, whatever they say.

    ``cache`` is ``dynamic`` (grows) or ``static`` (allocated once for all tokens); ``compile`` runs the steps through
    ``torch.compile``, which needs a static cache.
    """

    phase: str = "decode"
    batch_size: int = 1
    prompt_tokens: int = 64
    new_tokens: int = 32
    cache: str = "dynamic"
    compile: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that one run makes, or reads in a prefill."""
        each = {"decode": self.new_tokens, "prefill": self.prompt_tokens, "ttft": 1}
        return self.batch_size * each[self.phase]

    @property
    def length(self) -> int:
        """Positions that a sequence takes in the end."""
        return self.prompt_tokens + (self.new_tokens if self.phase == "decode" else 0)

    @property
    def context(self) -> float:
        """Tokens that a step finds in the cache, in the mean."""
        return self.prompt_tokens + (self.new_tokens - 1) / 2 if self.phase == "decode" else 0.0

    def check(self, longest: int | None) -> None:
        """:class:`UsageError` where the model has fewer positions."""
        if longest is not None and self.length > longest:
            raise UsageError(f"{self.phase} of {self.length} tokens does not fit the model's {longest} positions")


def prompt(stream: NDArray[np.int64], batch_size: int, length: int) -> NDArray[np.int64]:
    """``(batch_size, length)`` tokens from the start of a stream, repeated as often as needed."""
    import numpy as np

    return np.resize(stream, (batch_size, length))
