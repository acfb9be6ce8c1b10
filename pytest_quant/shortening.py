"""Texts that are shown to people: no longer than they can be read."""

from __future__ import annotations


def shortened(text: str, most: int = 200) -> str:
    """The beginning of a text, with dots where the rest was left out: ``most`` characters in all."""
    return text if len(text) <= most else text[: most - 3] + "..."
