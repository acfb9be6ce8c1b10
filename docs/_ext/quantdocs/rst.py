"""reStructuredText, which docstrings are written in: headings, tables and blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import indent

HEAD = ".. This page is generated from the code when the site is built; edit the code.\n"


def title(text: str, sign: str = "=") -> str:
    """A heading; ``=`` of the page, ``-`` below it."""
    return f"{text}\n{sign * len(text)}\n"


def code(name: str) -> str:
    """A name as it is typed; nothing for none."""
    return f"``{name}``" if name else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int] | None = None) -> str:
    """A table; cells are reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1"]
    if widths:
        lines.append(f"   :widths: {' '.join(map(str, widths))}")
    lines.append("")
    for row in (headers, *rows):
        for place, cell in enumerate(row):
            first, *rest = cell.splitlines() or [""]
            lines.append(f"   {'* -' if place == 0 else '  -'} {first}".rstrip())
            lines += [f"       {line}".rstrip() for line in rest]
    return "\n".join(lines) + "\n"


def block(language: str, text: str) -> str:
    """A block that is shown as it stands."""
    return f".. code-block:: {language}\n\n{indent(text.rstrip(), '   ')}\n"


def page(*parts: str) -> str:
    """A page from its parts."""
    return "\n".join([HEAD, *parts])
