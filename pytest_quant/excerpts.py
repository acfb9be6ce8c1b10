"""The text behind a loss: what to show of the windows that got worse, and the kinds of tokens in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quant.metrics import concentration

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.corpora.windows import Window, Windows
    from pytest_quant.metrics.pairing import WindowScore


_BEFORE, _TOKEN, _AFTER = 48, 16, 20
"""Characters of text that are shown before a token, of it, and after it."""
_CONTEXT, _FOLLOWING = 48, 24
"""Tokens that are decoded for them."""
_SPAN = 256
"""Tokens that layers are compared on: a stretch of the worst window, the one that lost most."""
_FIRST = 16
"""First tokens of a window are a kind of their own: they have the least context."""


@dataclass(frozen=True)
class Excerpt:
    """A window that got worse, with the text around its token that lost most."""

    index: int
    """Of the window, in the order of the text."""
    value: float | None
    """What the window lost a token (or word); ``None`` where that is not finite."""
    before: str
    token: str
    after: str
    """The text, with control characters escaped."""
    reference_probability: float
    """Of the token that came."""
    format_probability: float | None
    """``None`` where that is no number."""
    divergence: float | None = None
    """KL of that token, nats, where the gate is about it."""


def kinds(
    tokenizer: Any, windows: Sequence[Window], losses: Sequence[NDArray[np.float64]]
) -> dict[str, list[NDArray[np.bool_]]]:
    """Kinds of tokens that may carry a loss, each as a mask for every window."""
    import numpy as np

    inputs = [np.concatenate([p.tokens[p.scored_from - 1 : -1] for p in window.pieces]) for window in windows]
    labels = [np.concatenate([p.tokens[p.scored_from :] for p in window.pieces]) for window in windows]
    places = [np.concatenate([np.arange(p.scored_from, len(p.tokens)) for p in window.pieces]) for window in windows]
    known = np.unique(np.concatenate(labels))
    texts = tokenizer.batch_decode([[int(token)] for token in known], clean_up_tokenization_spaces=False)
    digits = known[[any(c.isdigit() for c in text) and not any(c.isalpha() for c in text) for text in texts]]
    blank = known[[not text.strip() for text in texts]]
    kinds = {
        "numbers": [np.isin(each, digits) for each in labels],
        "whitespace and newlines": [np.isin(each, blank) for each in labels],
        f"the first {_FIRST} tokens of a window": [each < _FIRST for each in places],
    }
    gross = np.nan_to_num(np.clip(np.concatenate(losses), 0.0, None), posinf=0.0)
    for sides, name in ((labels, "the token {}"), (inputs, "what follows {}")):
        token = int(np.argmax(np.bincount(np.concatenate(sides), weights=gross)))
        kinds[name.format(_marked(tokenizer, token))] = [each == token for each in sides]
    return kinds


def _marked(tokenizer: Any, token: int) -> str:
    return f"»{_cut(_escaped(_decoded(tokenizer, [token])), _TOKEN)}«"


def excerpt(
    tokenizer: Any,
    windows: Windows,
    scores: Sequence[WindowScore],
    metric: str,
    losses: Sequence[NDArray[np.float64]],
    worst: concentration.Worst,
) -> Excerpt:
    import numpy as np

    window, score, row = windows.drawn[worst.place], scores[worst.place], worst.row
    before, token, after = _texts(tokenizer, window, row)
    was, now = (float(np.exp(-float(nll[row]))) for nll in (score.reference_nll, score.nll))
    loss = float(losses[worst.place][row]) if metric == "kl_divergence" else None
    return Excerpt(
        index=window.index,
        value=worst.value,
        before=before,
        token=token,
        after=after,
        reference_probability=was,
        format_probability=now if np.isfinite(now) else None,
        divergence=loss if loss is not None and np.isfinite(loss) else None,
    )


def _texts(tokenizer: Any, window: Window, row: int) -> tuple[str, str, str]:
    """The text before a scored token, the token, and the text after it."""
    piece, place = _located(window, row)
    tokens = [int(token) for token in piece.tokens[max(place - _CONTEXT, 0) : place + 1 + _FOLLOWING]]
    at = min(place, _CONTEXT)
    # by prefixes: a tokenizer may drop the space before the first token that it decodes
    to, through, all_of_it = (_decoded(tokenizer, tokens[:end]) for end in (at, at + 1, len(tokens)))
    if through.startswith(to) and all_of_it.startswith(through):
        token, after = through[len(to) :], all_of_it[len(through) :]
    else:  # a character of several tokens
        token, after = _decoded(tokenizer, tokens[at : at + 1]), _decoded(tokenizer, tokens[at + 1 :])
    before = _escaped(to)
    return (
        before if len(before) <= _BEFORE else f"...{before[-_BEFORE:]}",
        _cut(_escaped(token), _TOKEN),
        _cut(_escaped(after), _AFTER),
    )


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)) if tokens else ""


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _escaped(text: str) -> str:
    """Nothing in it moves the cursor, changes a colour or turns the line around."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii", "replace") for char in text
    )


def _located(window: Window, row: int) -> tuple[Any, int]:
    """The piece of a scored token, and its place in there."""
    for piece in window.pieces:
        if row < piece.scored:
            return piece, piece.scored_from + row
        row -= piece.scored
    raise IndexError(f"window {window.index} has no scored token {row}")


def stretch(window: Window, losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """The tokens of a window's stretch that lost most: what came before the losses, up to their last input."""
    import numpy as np

    start, best, found = 0, -np.inf, window.pieces[0].tokens[:_SPAN]
    for piece in window.pieces:
        lost = np.zeros(len(piece.tokens))
        lost[piece.scored_from :] = np.nan_to_num(losses[start : start + piece.scored], nan=1e3, posinf=1e3)
        start += piece.scored
        sums = np.cumsum(lost)
        inputs = len(piece.tokens) - 1
        for begin in range(0, max(inputs - _SPAN, 0) + 1):
            end = min(begin + _SPAN, inputs)
            if (made := float(sums[end] - sums[begin])) > best:
                best, found = made, piece.tokens[begin:end]
    return found
