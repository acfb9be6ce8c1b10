"""Scores from an engine that gives its own most probable tokens only. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_quant.engines.predictions import Compared, Top
from pytest_quant.reference.bound import coarse_kl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LEAST_REST = 1e-12
"""Probability of all tokens but the top K, where less than that is left."""


def top_of(ids: NDArray[np.uint32], log_probs: NDArray[np.float32]) -> tuple[NDArray[np.float32], Top]:
    """NLL of each row and its most probable tokens, from ``(R, 1 + K)``: the token that came, then the K most
    probable."""
    import numpy as np

    best = log_probs[:, 1:]
    rest = np.log(np.maximum(1.0 - np.exp(best.astype(np.float64)).sum(-1), _LEAST_REST))
    kept = Top(ids[:, 1:], best.clip(-60000.0, 0.0).astype(np.float16), rest.astype(np.float32))
    return -log_probs[:, 0], kept


def compared(ids: NDArray[np.uint32], log_probs: NDArray[np.float32], theirs: NDArray[np.uint32]) -> Compared:
    """A model's most probable tokens (and the one that came first, as :func:`top_of` has them) against a reference's
    top tokens ``theirs`` ``(R, K)``: ``at_top`` is NaN where the model's list lacks one of them, whose log-probability
    is not known."""
    return Compared(
        nll=-log_probs[:, 0],
        agree=lead(ids, log_probs, theirs[:, 0]),
        at_top=looked_up(theirs, ids, log_probs),
    )


def lead(ids: NDArray[np.uint32], log_probs: NDArray[np.float32], wanted: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Whether the token ``wanted`` ``(R,)`` is a model's most probable one, or as probable as that."""
    import numpy as np

    held = np.where(ids == wanted[:, None], log_probs, -np.inf).max(-1)
    most: NDArray[np.bool_] = held >= log_probs.max(-1)
    return most


def looked_up(
    wanted: NDArray[np.uint32], ids: NDArray[np.uint32], log_probs: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The log-probability of each of ``wanted`` ``(R, K)`` in a model's list ``(R, M)`` of ids and log-probabilities;
    NaN where the list lacks it."""
    import numpy as np

    rows = np.arange(len(ids), dtype=np.int64)[:, None] << 32
    keys, asked = (rows + ids.astype(np.int64)).ravel(), (rows + wanted.astype(np.int64)).ravel()
    order = np.argsort(keys, kind="stable")
    place = np.minimum(np.searchsorted(keys[order], asked), len(keys) - 1)
    found = order[place]
    values = np.where(keys[found] == asked, log_probs.ravel()[found], np.float32("nan"))
    answer: NDArray[np.float32] = values.reshape(wanted.shape).astype(np.float32)
    return answer


def known_kl(
    top_log_probs: NDArray[np.floating[Any]],
    rest_log_mass: NDArray[np.floating[Any]],
    log_q_at_top: NDArray[np.floating[Any]],
) -> NDArray[np.float64]:
    """(T,) KL(p||q) in nats over the partition {each of p's top tokens whose ``log_q_at_top`` is known, all others}: a
    lower bound of the whole KL by the data processing inequality, and exactly :func:`coarse_kl` where all are known.

    NaN in ``log_q_at_top`` stands for "not known"; whether q itself is NaN is to be seen from its losses. 0 where none
    is known. Raises what :func:`coarse_kl` does.
    """
    import numpy as np

    top = np.asarray(top_log_probs, dtype=np.float64)
    unknown = np.isnan(log_q_at_top)
    hidden = np.where(unknown, np.exp(top), 0.0).sum(-1)
    with np.errstate(divide="ignore"):
        rest = np.logaddexp(np.asarray(rest_log_mass, dtype=np.float64), np.log(hidden))
    return coarse_kl(np.where(unknown, -np.inf, top), rest, np.where(unknown, -np.inf, log_q_at_top))
