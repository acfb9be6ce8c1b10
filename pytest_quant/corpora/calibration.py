"""Calibration sets: the texts that a quantizer looks at, one corpus or a mix, packed into full windows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pytest_quant.corpora import texts
from pytest_quant.corpora.corpus import Corpus
from pytest_quant.corpora.streams import Encoder, as_texts
from pytest_quant.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHARE = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)\s*\*)?\s*(.*\S)\s*")


@dataclass(frozen=True)
class Mix:
    """What a calibration set is drawn from: corpora by name, each with its share of the windows."""

    parts: tuple[tuple[str, Fraction], ...]

    def __str__(self) -> str:
        if len(self.parts) == 1:
            return self.parts[0][0]
        return ",".join(f"{float(share):g}*{name}" for name, share in self.parts)


@dataclass(frozen=True)
class CalibrationSet:
    """``windows`` ``(samples, tokens)`` of token ids, all full: nothing is padded."""

    windows: NDArray[np.int64]
    identity: dict[str, Any]
    """Where they come from: each corpus with its hash and its number of windows, the seed, and the hash of the ids."""


def parse(text: str) -> Mix:
    """``NAME``, or ``0.5*NAME,0.5*OTHER``: names as those of ``--quant-corpus``. :class:`UsageError` where the shares
    are not those of a whole."""
    parts = []
    for part in text.split(","):
        match = _SHARE.fullmatch(part)
        if match is None:
            raise UsageError(f"the calibration set {text!r} names no corpus; write NAME, or 0.5*NAME,0.5*OTHER")
        parts.append((match[2], None if match[1] is None else Fraction(match[1])))
    if len(parts) == 1 and parts[0][1] is None:
        return Mix(((parts[0][0], Fraction(1)),))
    shares = [share for _, share in parts if share is not None]
    if len(shares) != len(parts) or sum(shares) != 1 or 0 in shares:
        raise UsageError(
            f"the calibration set {text!r}: each corpus needs a share above 0, and the shares must add up to 1; write "
            f"0.5*NAME,0.5*OTHER"
        )
    if len({name for name, _ in parts}) < len(parts):
        raise UsageError(f"the calibration set {text!r} names a corpus twice")
    return Mix(tuple((name, share) for name, share in parts if share is not None))


def draw(
    mix: Mix, tokens: Encoder, *, samples: int, length: int, seed: int = 0, chat_template: bool = False
) -> CalibrationSet:
    """``samples`` windows of ``length`` tokens. Documents come in a seeded order and stand one behind the other, with
    the tokenizer's BOS or EOS between them; the windows of the corpora are shuffled into one another.

    :class:`UsageError` where a corpus has too few tokens.
    """
    import numpy as np

    order = np.random.default_rng(seed)
    drawn, described = [], []
    for (name, share), count in zip(mix.parts, _counts(mix, samples), strict=True):
        corpus = texts.load(name)
        stream = _packed(corpus, tokens, order, count * length, chat_template=chat_template)
        there = len(stream) // length
        if there < count:
            raise UsageError(
                f"the calibration corpus {name!r} has {there} windows of {length} tokens, {count} are asked for; ask "
                f"for fewer samples or tokens, or give a longer text"
            )
        chosen = np.sort(order.permutation(there)[:count])
        drawn.append(stream[: there * length].reshape(there, length)[chosen])
        described.append({"corpus": corpus.name, "sha256": corpus.sha256, "share": float(share), "windows": count})
    windows = np.concatenate(drawn)
    windows = windows[order.permutation(len(windows))]
    digest = hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest()
    identity: dict[str, Any] = {"corpora": described, "samples": samples, "tokens": length, "seed": seed}
    if chat_template:
        identity["chat_template"] = True
    return CalibrationSet(windows, {**identity, "sha256": digest})


def _counts(mix: Mix, samples: int) -> Sequence[int]:
    """Whole numbers of windows that add up: what is left over goes to the largest remainders."""
    exact = [share * samples for _, share in mix.parts]
    counts = [int(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: samples - sum(counts)]:
        counts[i] += 1
    for (name, share), count in zip(mix.parts, counts, strict=True):
        if count == 0:
            raise UsageError(f"{float(share):g} of {samples} samples is no sample of {name!r}; ask for more samples")
    return counts


def _packed(
    corpus: Corpus, tokens: Encoder, order: np.random.Generator, wanted: int, *, chat_template: bool
) -> NDArray[np.int64]:
    """Documents in a random order, one behind the other, until there are as many tokens as wanted."""
    import numpy as np

    documents = as_texts(corpus, tokens, chat_template=chat_template)
    between = _between(tokens)
    pieces, length = [], 0
    for number in order.permutation(len(documents)):
        if not documents[number].strip():
            continue
        pieces.append(np.concatenate((between, tokens.bare(documents[number]))))
        length += len(pieces[-1])
        if length >= wanted:
            break
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def _between(tokens: Encoder) -> NDArray[np.int64]:
    import numpy as np

    try:
        return np.array([tokens.prefix], dtype=np.int64)
    except UsageError:  # neither BOS nor EOS
        return np.zeros(0, dtype=np.int64)
