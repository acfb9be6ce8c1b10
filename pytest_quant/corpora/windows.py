"""Cutting tokens into windows: what one forward sees, and what of it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Piece:
    """The sequence of one forward; ``tokens[scored_from:]`` are predicted, so the last token is never an input."""

    tokens: NDArray[np.int64]
    scored_from: int

    @property
    def scored(self) -> int:
        """Number of predicted tokens."""
        return len(self.tokens) - self.scored_from


@dataclass(frozen=True)
class Window:
    """The unit of pairing and sampling. Its score is counted by ``weight``: predicted tokens, or words."""

    index: int
    pieces: tuple[Piece, ...]
    weight: int

    @property
    def scored(self) -> int:
        """Number of predicted tokens of all pieces."""
        return sum(piece.scored for piece in self.pieces)


@dataclass(frozen=True)
class Windows:
    """The finite set that a protocol defines, in the order in which it is drawn, and what perplexity counts by:
    ``token`` or ``word``."""

    drawn: tuple[Window, ...]
    identity: Mapping[str, Any]
    unit: str


def disjoint(stream: NDArray[np.int64], length: int) -> list[Window]:
    """GPTQ: the first token of each window is context, the tail is dropped."""
    return [_single(i, part, 1) for i, part in enumerate(_parts(stream, length))]


def second_halves(stream: NDArray[np.int64], length: int, bos: int | None) -> list[Window]:
    """llama.cpp's ``llama-perplexity``: BOS, if there is one, takes the place of the first token of each window, and
    the logits of positions ``length / 2`` to ``length - 2`` predict the tokens that follow them."""
    windows = []
    for index, part in enumerate(_parts(stream, length)):
        part = part.copy()
        if bos is not None:
            part[0] = bos
        windows.append(_single(index, part, length // 2 + 1))
    return windows


def strided(stream: NDArray[np.int64], length: int, stride: int) -> list[Window]:
    """Hugging Face's guide: windows overlap, what the one before scored is context, the tail is kept."""
    windows = []
    scored_to = 0
    for index, begin in enumerate(range(0, len(stream), stride)):
        end = min(begin + length, len(stream))
        first = max(scored_to - begin, 1)
        if end - begin > first:
            windows.append(_single(index, stream[begin:end], first))
        scored_to = end
        if end == len(stream):
            break
    return windows


def rolling(tokens: NDArray[np.int64], prefix: int, length: int) -> tuple[Piece, ...]:
    """lm-eval's ``loglikelihood_rolling`` of one document: the first ``length`` tokens are predicted after the prefix
    token, every further ``length`` after the one before them; the last piece reaches back to be as long as the others,
    ``length + 1`` tokens with the one that is predicted last (``get_rolling_token_windows``, ``context_len=1``)."""
    import numpy as np

    pieces = [Piece(np.concatenate([np.array([prefix], dtype=np.int64), tokens[:length]]), 1)]
    for scored_to in range(length, len(tokens), length):
        end = min(scored_to + length, len(tokens))
        pieces.append(Piece(tokens[end - length - 1 : end], length + 1 - (end - scored_to)))
    return tuple(pieces)


def _parts(stream: NDArray[np.int64], length: int) -> list[NDArray[np.int64]]:
    return [stream[begin : begin + length] for begin in range(0, len(stream) - length + 1, length)]


def _single(index: int, tokens: NDArray[np.int64], scored_from: int) -> Window:
    piece = Piece(tokens, scored_from)
    return Window(index, (piece,), piece.scored)
