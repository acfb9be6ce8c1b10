"""Where a format's loss sits: in all tokens, in a few of them, in one kind, or in a few windows.

A token's loss is what it got worse by: its NLL less the reference's (``perplexity_delta``), its divergence
(``kl_divergence``), or 1 where the most probable token is another (``token_agreement``). Shares are of the *gross*
loss, the sum over the tokens that got worse: what others gained does not hide it.

The rules know what sound formats look like. The worst hundredth of Gaussian differences around 0 makes 7 % of the gross
loss and that of Laplacian ones 10 %; formats of four and eight bits were measured at 6 to 12 % (docs/explaining.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant.metrics.pairing import WindowScore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEW = 1 / 3
"""Share of the loss from which the worst hundredth of the tokens carries it: about three times what the heaviest sound
tail was seen to make."""
_ENOUGH_TOKENS = 500
"""Below that the worst hundredth is a handful, of which one token can make anything."""
_KIND_TOKENS = 0.25
_KIND_LOSS = 0.5
_KIND_COUNT = 5
"""A kind carries the loss where it is a quarter of the tokens at most (and five of them at least), and more than half
of the loss."""
_ENOUGH_WINDOWS = 6
_FEW_WINDOWS = 1 / 6
_APART = 6.0
"""A few windows carry the loss where they are a sixth of them at most, make more than half of it, and each of them
lies so many robust standard deviations above the median of the others."""
_SHOWN = 3
_MAD = 1.4826
"""Standard deviation over the median absolute deviation of a normal distribution."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Worst:
    """A window that got worse."""

    place: int
    """In the order in which windows were drawn."""
    value: float | None
    """What it lost, in the metric's unit a token (or word); ``None`` where that is not finite."""
    row: int
    """Its scored token that lost most; where some are not finite, the first of those."""


@dataclass(frozen=True)
class Kind:
    """A kind of tokens that makes most of the loss."""

    name: str
    of_tokens: float
    of_loss: float


@dataclass(frozen=True)
class Concentration:
    """Where the loss of the scored windows sits."""

    verdict: str
    """``broken`` (not finite), ``windows``, ``kind``, ``tokens``, ``spread``, or ``unknown`` where too little was
    scored to tell tokens from windows, or nothing got worse."""
    windows: int
    tokens: int
    mean: float | None
    """Of the windows' values, each counted by its weight; ``None`` where it is not finite."""
    worse: float
    """Share of the tokens that got worse at all; of those that are not finite where the verdict is ``broken``."""
    worst_1: float | None = None
    """Share of the loss that the worst hundredth of the tokens makes; ``None`` where it says nothing: of too few
    tokens, and of token agreement, whose losses are all alike."""
    worst_10: float | None = None
    few_windows: int = 0
    of_loss: float | None = None
    """With the verdict ``windows``: how many there are, and what they make of the loss."""
    kind: Kind | None = None
    worst: tuple[Worst, ...] = ()
    """The windows that got worse most, the worst first."""


def describe(
    scores: Sequence[WindowScore],
    metric: str,
    *,
    bound: bool = False,
    kinds: Mapping[str, Sequence[NDArray[np.bool_]]] = _NOTHING,
    before: Sequence[float] | None = None,
) -> Concentration:
    """Where the loss of a format sits. :class:`ValueError` without a window.

    With ``bound``, divergences are those over the reference's top tokens. ``kinds`` tells of each window's tokens
    whether they are of a kind. With ``before``, what each window got in a baseline, windows are ranked by what they
    lost since then (a token's loss is always against the reference's).
    """
    import numpy as np

    if not scores:
        raise ValueError("no window was scored")
    losses = [losses_of(score, metric, bound=bound) for score in scores]
    values = _values(scores, losses, metric, before)
    tokens = np.concatenate(losses)
    whole = len(values), len(tokens)
    if not np.isfinite(tokens).all():
        return _broken(whole, losses, values)
    weights = np.array([_weight(score, metric) for score in scores[: len(values)]], dtype=float)
    mean = float(np.average(values, weights=weights))
    worst = _worst(scores, losses, values, metric)
    worse = float((tokens > 0.0).mean())
    gross = np.clip(tokens, 0.0, None)
    if not gross.any() or mean <= 0.0:
        return Concentration("unknown", *whole, mean, worse, worst=worst)
    shares: tuple[float | None, float | None] = None, None
    if metric != "token_agreement" and len(tokens) >= _ENOUGH_TOKENS:
        ordered = np.sort(gross)[::-1]
        shares = _share(ordered, 0.01), _share(ordered, 0.1)
    count, of_loss = _few_windows(values * weights / weights.mean())
    kind = _kind(gross, kinds)
    if count:
        verdict = "windows"
    elif kind is not None:
        verdict = "kind"
    elif shares[0] is not None and shares[0] >= FEW:
        verdict = "tokens"
    else:
        verdict = "spread" if len(tokens) >= _ENOUGH_TOKENS else "unknown"
    return Concentration(
        verdict, *whole, mean, worse, *shares, few_windows=count, of_loss=of_loss, kind=kind, worst=worst
    )


def losses_of(score: WindowScore, metric: str, *, bound: bool = False) -> NDArray[np.float64]:
    """What each token of a window got worse by, ``(T,)``; below 0 where it gained."""
    import numpy as np

    found: NDArray[Any]
    if metric == "perplexity_delta":
        return np.subtract(score.nll, score.reference_nll, dtype=np.float64)
    found = ~score.agree if metric == "token_agreement" else score.bound if bound or score.kl is None else score.kl
    return found.astype(np.float64)


def _weight(score: WindowScore, metric: str) -> int:
    return score.weight if metric == "perplexity_delta" else score.scored


def _values(
    scores: Sequence[WindowScore], losses: Sequence[NDArray[np.float64]], metric: str, before: Sequence[float] | None
) -> NDArray[np.float64]:
    """What each window lost, a token or word: against the reference, or since ``before``."""
    import numpy as np

    if before is None:
        return np.array(
            [loss.sum() / _weight(score, metric) for score, loss in zip(scores, losses, strict=True)], dtype=float
        )
    if metric == "perplexity_delta":
        now = [score.nll.sum(dtype=float) / score.weight for score in scores]
    else:
        now = [loss.mean() for loss in losses]
    then = [1.0 - share for share in before] if metric == "token_agreement" else before
    return np.array([after - earlier for after, earlier in zip(now, then, strict=False)], dtype=float)


def _worst(
    scores: Sequence[WindowScore],
    losses: Sequence[NDArray[np.float64]],
    values: NDArray[np.float64],
    metric: str,
) -> tuple[Worst, ...]:
    import numpy as np

    found = []
    for place in (int(place) for place in np.argsort(-values, kind="stable")[:_SHOWN]):
        if values[place] <= 0.0:
            break
        weighed = losses[place] * scores[place].bound if metric == "token_agreement" else losses[place]
        found.append(Worst(place, float(values[place]), int(np.argmax(weighed))))
    return tuple(found)


def _broken(
    whole: tuple[int, int], losses: Sequence[NDArray[np.float64]], values: NDArray[np.float64]
) -> Concentration:
    """What is not finite comes first, and is all that counts."""
    import numpy as np

    missing = [~np.isfinite(loss) for loss in losses]
    order = sorted(range(len(losses)), key=lambda place: -float(missing[place].mean()))
    worst = tuple(
        Worst(place, None, int(np.argmax(missing[place]))) for place in order[:_SHOWN] if missing[place].any()
    )
    share = sum(int(found.sum()) for found in missing) / whole[1]
    return Concentration("broken", *whole, None, share, worst=worst)


def _share(ordered: NDArray[np.float64], part: float) -> float:
    """Of the sum, what the largest ``part`` of the values make."""
    return float(ordered[: math.ceil(len(ordered) * part)].sum() / ordered.sum())


def _few_windows(values: NDArray[np.float64]) -> tuple[int, float | None]:
    """How many windows carry the loss, and how much of it; 0 where it is not a few."""
    import numpy as np

    total = float(np.clip(values, 0.0, None).sum())
    if len(values) < _ENOUGH_WINDOWS or total <= 0.0:
        return 0, None
    ordered = np.sort(values)[::-1]
    for count in range(1, max(1, int(len(values) * _FEW_WINDOWS)) + 1):
        made, others = float(ordered[:count].sum()) / total, ordered[count:]
        median = float(np.median(others))
        spread = _MAD * float(np.median(np.abs(others - median)))
        if made > 0.5 and ordered[count - 1] > median + _APART * spread:
            return count, made
    return 0, None


def _kind(gross: NDArray[np.float64], kinds: Mapping[str, Sequence[NDArray[np.bool_]]]) -> Kind | None:
    """The kind that carries the loss; of several, the one that is the fewest tokens."""
    import numpy as np

    found = []
    for name, masks in kinds.items():
        mask = np.concatenate(list(masks))
        of_tokens, of_loss = float(mask.mean()), float(gross[mask].sum() / gross.sum())
        if mask.sum() >= _KIND_COUNT and of_tokens <= _KIND_TOKENS and of_loss > _KIND_LOSS:
            found.append(Kind(name, of_tokens, of_loss))
    return min(found, key=lambda kind: kind.of_tokens, default=None)
