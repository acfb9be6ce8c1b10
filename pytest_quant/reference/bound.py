"""What the top tokens alone tell about a divergence: a lower bound, never the divergence itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESOLUTION = 2.0**-20  # of 1 minus a sum of float32 probabilities
_ABOVE_ONE = 1e-2  # by which probabilities may exceed 1 before they are none


def coarse_kl(
    top_log_probs: NDArray[np.floating[Any]],
    rest_log_mass: NDArray[np.floating[Any]],
    log_q_at_top: NDArray[np.floating[Any]],
) -> NDArray[np.float64]:
    """(T,) KL(p||q) in nats over the partition {top K tokens of p, all others}: at most the full KL.

    `top_log_probs` (T, K) and `rest_log_mass` (T,) are p as it is stored; it is renormalised to sum to one, since
    float16 has rounded it. `log_q_at_top` (T, K) is q's log-probability of the same tokens. It is a lower bound by the
    data processing inequality, up to p's rounding: less than 2e-6 for q = p with K = 64. Whatever mass q leaves for
    the others is known only to the resolution of float32, and taken to be at least that (1e-6), which can only lower
    the result. Never negative; infinite where q gives no probability to a top token; NaN where q is NaN.

    Raises ValueError if the shapes do not fit, or the top tokens' probabilities in q exceed one.
    """
    import numpy as np

    top = np.asarray(top_log_probs, dtype=np.float64)
    rest = np.asarray(rest_log_mass, dtype=np.float64)
    log_q = np.asarray(log_q_at_top, dtype=np.float64)
    if top.ndim != 2 or top.shape[1] < 1 or log_q.shape != top.shape or rest.shape != top.shape[:1]:
        raise ValueError(f"shapes {top.shape}, {rest.shape} and {log_q.shape} are not (T, K), (T,) and (T, K)")
    covered = np.exp(log_q).sum(axis=1)
    if bool((covered > 1 + _ABOVE_ONE).any()):
        raise ValueError(
            f"probabilities in q add up to {covered.max():.3g}: they must be log-probabilities, not logits"
        )
    log_q_rest = np.log(np.maximum(1 - covered, _RESOLUTION))
    log_p = np.column_stack([top, rest])
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # 0 * inf: a token without mass in p counts nothing, whatever q says
        terms = p * (log_p - np.column_stack([log_q, log_q_rest]))
    terms[(p == 0) & ~np.isnan(np.column_stack([log_q, log_q_rest]))] = 0.0
    divergence: NDArray[np.float64] = np.maximum(terms.sum(axis=1), 0.0)
    return divergence
