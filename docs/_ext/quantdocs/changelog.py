"""The changelog as a page of the site; its links lead from there."""

from __future__ import annotations

from pathlib import Path

CHANGELOG = Path(__file__).parents[3] / "CHANGELOG.md"


def page() -> str:
    """The changelog, in Markdown."""
    return CHANGELOG.read_text(encoding="utf-8").replace("](docs/", "](../")
