"""What can go wrong, in the words that a user reads.

Every message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class QuantError(Exception):
    """Base of all errors that pytest-quant raises on purpose."""


class UsageError(QuantError):
    """A marker, an option or a file says something that cannot be understood."""


class Unsupported(QuantError):
    """The device, the libraries or the memory cannot run a format: a skip.

    The three parts are what was asked, what was found and what would be needed.
    """

    def __init__(self, asked: str, found: str, needed: str) -> None:
        self.asked, self.found, self.needed = asked, found, needed
        super().__init__(f"asked: {asked}; found: {found}; needed: {needed}")


class StoreWarning(UserWarning):
    """A stored reference cannot be used or written; the run goes on without it."""


class NotMeasured(QuantError):
    """A measurement could not be made, so no gate on it can pass."""


class ProofFailed(NotMeasured):
    """The loaded model is not in the format that it was asked to be in."""


class NotFinite(NotMeasured):
    """The quantized model produced NaN or infinity."""


_LIKE = 0.66
"""How much of two words must agree: ``nf5`` is like ``nf4`` (0.67), ``ceiling`` not like ``config`` (0.62)."""


def like(word: str, known: Iterable[str], rest: str = "") -> str:
    """``; did you mean X?`` for a word that is almost one of those that are known, else nothing; with ``rest``, such as
    ``there are A, B``, that follows as a sentence, or by itself."""
    from difflib import get_close_matches

    names = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), names, n=1, cutoff=_LIKE)
    if not found:
        return f"; {rest}" if rest else ""
    hint = f"; did you mean {names[found[0]]}?"
    return f"{hint} {rest[0].upper()}{rest[1:]}" if rest else hint
