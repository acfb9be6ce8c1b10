"""Long sentences in lines of one width."""

from __future__ import annotations

from textwrap import wrap

WIDTH = 100


def filled(text: str, head: str, margin: str | None = None) -> list[str]:
    """``text`` in lines of at most :data:`WIDTH` characters: the first begins with ``head``, the others with ``margin``
    or, where there is none, with ``head`` again. No word is broken."""
    return wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=head if margin is None else margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
