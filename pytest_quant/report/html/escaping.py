"""Characters that would turn text around or break a drawing, made visible. Markup is escaped where it is written."""

from __future__ import annotations

import re
from typing import Any

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters but for tab and line ends, those that override the direction of text, and what is no character."""


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
