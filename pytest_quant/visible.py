"""Characters that would turn text around, break a line or drive a terminal, made visible. Markup is escaped where it is
written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
"""Control characters but for tab and line ends, those that override the direction of text, and what nobody sees."""
_ENDS = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_BREAKING = re.compile(f"[{''.join(_ENDS)}]")


def visible(text: str) -> str:
    """The text with such characters as ``\\u202e``."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def all_visible(value: Any) -> Any:
    """The same for every text in plain data."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(name)): all_visible(each) for name, each in value.items()}
    return [all_visible(each) for each in value] if isinstance(value, (list, tuple)) else value


def one_line(text: str) -> str:
    """The same, with tabs and line ends visible too: what names of files, models and formats can hold, and what would
    look like a line of ours on a terminal."""
    return _BREAKING.sub(lambda found: _ENDS[found[0]], visible(text))


def lines(texts: Iterable[str]) -> str:
    """Each text in a line of its own."""
    return "\n".join(map(one_line, texts))
