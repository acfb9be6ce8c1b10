"""What a model of torch predicts, and how two of them compare: a few rows of the vocabulary at a time.

A row is one scored position. Logits of all positions are never held at once: hidden states are, and the output head
turns some rows of them into FP32 log-probabilities when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_CHUNK = {"cpu": 1 << 25}
_CHUNK_ELSEWHERE = 1 << 26
"""Logits at a time: 128 MB in FP32 on a CPU, whose product with the head is fastest for hundreds of rows; 256 MB on a
GPU, which reads the whole head for each chunk."""
_SLICE = {"cpu": 1 << 21}
"""Of those, logits that are looked at together: what stays in a CPU's cache from one statistic to the next, in memory
that was touched before. A GPU takes all."""
_LEAST_REST = 1e-12
"""Probability of all tokens but the top K, where less than that is left."""


class Predictions:
    """Next-token distributions over R rows: ``states`` is ``(R, H)`` for a ``head`` that gives ``(rows, V)`` logits, or
    the logits themselves; ``labels`` ``(R,)`` are the tokens that came."""

    def __init__(
        self,
        states: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor] | None,
        labels: torch.Tensor,
        vocabulary: int,
    ) -> None:
        self._states = states
        self._head = head
        self.labels = labels
        self.vocabulary = vocabulary

    def logits(self, rows: slice) -> torch.Tensor:
        """``(rows, V)``, FP32."""
        some = self._states[rows]
        return (some if self._head is None else self._head(some)).float()


@dataclass(frozen=True)
class Top:
    """The K most probable tokens of R rows, ids and log-probabilities ``(R, K)``, and the log of the mass of all
    others, ``(R,)``."""

    ids: NDArray[np.uint32]
    log_probs: NDArray[np.float16]
    rest: NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """One model against another, by row: NLL in nats, whether the other's most probable token is this one's too (or as
    probable as that), log-probabilities ``(R, K)`` at the other's top tokens, KL in nats."""

    nll: NDArray[np.float32]
    agree: NDArray[np.bool_]
    at_top: NDArray[np.float32]
    kl: NDArray[np.float32] | None = None


def nll(predictions: Predictions) -> NDArray[np.float32]:
    """Negative log-likelihood of each row's label, nats."""
    import numpy as np

    return np.concatenate([rows.nll() for rows in _chunks(predictions)])


def top(predictions: Predictions, count: int) -> tuple[NDArray[np.float32], Top]:
    """NLL of each row, and its ``count`` most probable tokens (all, where the vocabulary is smaller)."""
    return _joined_top([(rows.nll(), *rows.top(count)) for rows in _chunks(predictions)])


def against_top(predictions: Predictions, ids: NDArray[np.uint32]) -> Compared:
    """What a model says where a stored reference kept its top tokens ``ids`` ``(R, K)``."""
    return _joined(
        [(rows.nll(), rows.lead(ids[rows.place]), rows.at(ids[rows.place])) for rows in _chunks(predictions)]
    )


def against(reference: Predictions, predictions: Predictions, count: int) -> tuple[NDArray[np.float32], Top, Compared]:
    """Both models on the same rows: the reference's NLL and top tokens, and the other model against it, with the KL
    divergence over the whole vocabulary, ``sum p (log p - log q)``."""
    import torch

    kept, parts = [], []
    for theirs, ours in zip(_chunks(reference), _chunks(predictions), strict=True):
        found = (theirs.nll(), *theirs.top(count))
        kept.append(found)
        part = (ours.nll(), ours.lead(found[1]), ours.at(found[1]))
        log_q = ours.log_probabilities()
        log_p = theirs.log_probabilities().to(log_q.device)
        # a token that the reference rules out adds nothing, whatever the other says of it; NaN stays NaN
        ruled_out = log_p.isneginf() & ~log_q.isnan()
        torch.sub(log_p, log_q, out=log_q)
        log_q.masked_fill_(ruled_out, 0.0)
        parts.append((*part, _numpy(torch.linalg.vecdot(log_p.exp_(), log_q).clamp_min(0.0))))
    return *_joined_top(kept), _joined(parts)


class _Rows:
    """Some rows of a model's logits ``(rows, V)``, FP32, with the logarithm of their sums."""

    def __init__(self, place: slice, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.place = place
        self._logits = logits
        self._labels = labels
        self._most = logits.amax(-1, keepdim=True)
        # as logsumexp, whose sum is taken in pieces: log_softmax adds up a vocabulary one by one in FP32, and is off by
        # 1e-5 nats
        level = self._most.masked_fill(self._most.isinf(), 0.0)
        self._total = (logits - level).exp_().sum(-1, keepdim=True).log_().add_(level)

    def nll(self) -> NDArray[np.float32]:
        return _numpy((self._total - self._logits.gather(1, self._labels[:, None]))[:, 0])

    def lead(self, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Whether no token has more than the first of ``ids``."""
        return _numpy(self._logits.gather(1, self._index(ids[:, :1])) == self._most)[:, 0]

    def at(self, ids: NDArray[np.uint32]) -> NDArray[np.float32]:
        return _numpy(self._logits.gather(1, self._index(ids)) - self._total)

    def _index(self, ids: NDArray[np.uint32]) -> torch.Tensor:
        import numpy as np
        import torch

        return torch.as_tensor(ids.astype(np.int64), device=self._logits.device)

    def top(self, count: int) -> tuple[NDArray[np.uint32], NDArray[np.float16], NDArray[np.float32]]:
        import numpy as np

        found = self._logits.topk(min(count, self._logits.shape[1]), -1)
        log_probs = _numpy(found.values - self._total)
        rest = np.log(np.maximum(1.0 - np.exp(log_probs.astype(np.float64)).sum(-1), _LEAST_REST))
        return (
            _numpy(found.indices).astype(np.uint32),
            log_probs.clip(-60000.0, 0.0).astype(np.float16),
            rest.astype(np.float32),
        )

    def log_probabilities(self) -> torch.Tensor:
        """Of the whole vocabulary, ``(rows, V)``."""
        return self._logits - self._total


def _chunks(predictions: Predictions) -> Iterator[_Rows]:
    device, rows = predictions.labels.device.type, len(predictions.labels)
    step = max(1, _CHUNK.get(device, _CHUNK_ELSEWHERE) // predictions.vocabulary)
    few = max(1, _SLICE.get(device, _CHUNK_ELSEWHERE) // predictions.vocabulary)
    for start in range(0, rows, step):
        logits = predictions.logits(slice(start, start + step))
        for first in range(0, len(logits), few):
            some = logits[first : first + few]
            place = slice(start + first, start + first + len(some))
            yield _Rows(place, some, predictions.labels[place])


def _joined(parts: list[Any]) -> Compared:
    import numpy as np

    return Compared(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _joined_top(parts: list[Any]) -> tuple[NDArray[np.float32], Top]:
    import numpy as np

    losses, ids, log_probs, rest = (np.concatenate(part) for part in zip(*parts, strict=True))
    return losses, Top(ids, log_probs, rest)


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    found: NDArray[Any] = tensor.cpu().numpy()
    return found
