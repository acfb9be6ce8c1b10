"""What was found so far about a format and its reference, and what is known of the windows that were not drawn yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_quant.errors import NotFinite, NotMeasured, ProofFailed
from pytest_quant.metrics.pairing import WindowScore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Evidence:
    """The first windows of a population in their drawn order, scored by a format and its reference."""

    format: str
    reference: str
    scores: Sequence[WindowScore]
    total: int
    """Windows of the whole population."""
    unit: str = "token"
    """What perplexity counts by: ``token`` or ``word``."""
    reference_mean: float | None = None
    """Mean NLL of the reference over the whole population, where it is known; nats a token (or word)."""

    @property
    def complete(self) -> bool:
        return len(self.scores) == self.total

    @property
    def weights(self) -> list[float]:
        return [float(score.weight) for score in self.scores]

    @property
    def tokens(self) -> list[int]:
        """Predicted tokens of each window."""
        return [score.scored for score in self.scores]

    @property
    def nll(self) -> list[float]:
        """The format's NLL of each window, nats a token (or word)."""
        return [_sum(score.nll) / score.weight for score in self.scores]

    @property
    def reference_nll(self) -> list[float]:
        return [_sum(score.reference_nll) / score.weight for score in self.scores]

    @property
    def has_kl(self) -> bool:
        """Whether the divergence over the whole vocabulary is known."""
        return all(score.kl is not None for score in self.scores)

    @property
    def difference(self) -> float:
        """Largest difference of a token's NLL from the reference's."""
        import numpy as np

        return max(float(np.abs(score.nll - score.reference_nll).max()) for score in self.scores)

    def check(self) -> None:
        """Raise :class:`NotMeasured` for a reference that answers NaN, :class:`NotFinite` for such a format,
        :class:`ProofFailed` for a format that gives each token exactly what the reference gives it."""
        import numpy as np

        sides: Sequence[tuple[Sequence[NDArray[np.float32]], type[NotMeasured], str]] = (
            ([score.reference_nll for score in self.scores], NotMeasured, f"the {self.reference} reference"),
            ([score.nll for score in self.scores], NotFinite, f"the {self.format} model"),
        )
        for found, error, who in sides:
            if broken := sum(not np.isfinite(window).all() for window in found):
                raise error(f"{who} gave no finite perplexity: {broken} of {len(found)} windows are NaN or infinite")
        if self.difference == 0.0:
            raise ProofFailed(
                f"all {len(self.scores)} windows of {self.format} have exactly the {self.reference} reference's "
                f"scores: the reference was measured by mistake, or the format was not applied"
            )


def perplexity(mean: float) -> float:
    """``exp`` of a mean NLL; infinite where it exceeds what a float holds."""
    return math.exp(mean) if mean < 700.0 else math.inf


def _sum(values: NDArray[np.float32]) -> float:
    import numpy as np

    return float(np.sum(values, dtype=np.float64))
