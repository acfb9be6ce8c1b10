"""How far a format's distributions are from its reference's: KL divergence, agreement of the top token, change of the
true token's probability; the quantities of llama.cpp, with intervals by window."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quant.errors import NotFinite
from pytest_quant.gates.measurement import Quantity
from pytest_quant.metrics.evidence import Evidence
from pytest_quant.stats import sequence
from pytest_quant.stats.sequence import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KL_LEVELS = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
DELTA_P_LEVELS = {"p1": 0.01, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}


def kl_divergence(
    evidence: Evidence, alpha: float, wanted: Collection[str] | None = None
) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """KL(reference || format) in nats a token: quantities ``bound`` (over the reference's top tokens and the rest, a
    lower bound), ``mean``, ``median``, ``p90``, ``p95``, ``p99`` and ``p999`` of all tokens, or those of them that are
    ``wanted``; figure ``kl_max``.

    Where the whole vocabulary was not compared, ``mean`` and the percentiles are those of the bound. Raises
    :class:`NotFinite` where the format rules out a token that the reference allows.
    """
    import numpy as np

    evidence.check()
    tokens = [score.bound if score.kl is None else score.kl for score in evidence.scores]
    if broken := sum(
        not (np.isfinite(a).all() and np.isfinite(s.bound).all()) for a, s in zip(tokens, evidence.scores, strict=True)
    ):
        raise NotFinite(
            f"the {evidence.format} model rules out tokens that the {evidence.reference} reference allows: its KL "
            f"divergence is infinite in {broken} of {len(tokens)} windows"
        )
    found = {}
    for name in ("bound", "mean", *KL_LEVELS) if wanted is None else wanted:
        if name in KL_LEVELS:
            found[name] = sequence.quantile(tokens, KL_LEVELS[name], evidence.total, alpha)
        else:
            windows = [score.bound for score in evidence.scores] if name == "bound" else tokens
            found[name] = _mean(windows, evidence, alpha)
    quantities = {name: _quantity(_from_zero(estimate), "nats") for name, estimate in found.items()}
    return quantities, {"kl_max": max(float(window.max()) for window in tokens)}


def token_agreement(evidence: Evidence, alpha: float) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Quantity ``share``: of positions where both models have the same most probable token."""
    evidence.check()
    hits = [int(score.agree.sum()) for score in evidence.scores]
    found = sequence.share(hits, evidence.tokens, evidence.total, alpha)
    return {"share": Quantity(found.value, found.low, found.high, "share", found.detectable)}, {}


def delta_p(evidence: Evidence, alpha: float) -> Mapping[str, Quantity]:
    """Change of the true token's probability, format minus reference: ``delta_p_mean``, ``_rms`` and percentiles."""
    import numpy as np

    changes = [
        np.exp(-score.nll.astype(float)) - np.exp(-score.reference_nll.astype(float)) for score in evidence.scores
    ]
    square = _mean([window**2 for window in changes], evidence, alpha)
    root = Estimate(*(math.sqrt(max(end, 0.0)) for end in (square.value, square.low, square.high)))
    found = {"mean": _mean(changes, evidence, alpha), "rms": root} | {
        name: sequence.quantile(changes, level, evidence.total, alpha) for name, level in DELTA_P_LEVELS.items()
    }
    return {f"delta_p_{name}": _quantity(estimate, "probability") for name, estimate in found.items()}


def window_means(windows: Sequence[NDArray[np.floating] | NDArray[np.bool_]]) -> list[float]:
    """Mean of each window's tokens, in double precision."""
    return [float(window.mean(dtype=float)) for window in windows]


def _mean(windows: Sequence[NDArray[np.floating]], evidence: Evidence, alpha: float) -> Estimate:
    return sequence.mean(window_means(windows), [float(n) for n in evidence.tokens], evidence.total, alpha)


def _from_zero(estimate: Estimate) -> Estimate:
    """A divergence is never below 0."""
    return replace(estimate, low=max(estimate.low, 0.0))


def _quantity(estimate: Estimate, unit: str) -> Quantity:
    return Quantity(estimate.value, estimate.low, estimate.high, unit, estimate.detectable)
