"""Text from anywhere inside GitHub Markdown: it stays text, inside tables and outside them.

Backslashes and entities keep Markdown and HTML away, but not what GitHub makes of the finished text: mentions,
references to issues and commits, addresses, short names of emoji, formulas. None of that happens inside code, so a word
that could become one of them is shown as code.
"""

from __future__ import annotations

import re

from pytest_quant.visible import visible

_ACTIVE = re.compile(
    r"[@`$\\|]|#\w|://|www\.|mailto:|xmpp:|gh-\d|:(?:(?![\d_+-]*:)[\w+-]+|[+-]1|100|1234):"
    r"|(?<![0-9a-z])(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{7,40}(?![0-9a-z])",
    re.IGNORECASE,
)
"""What GitHub makes links, pictures, code or formulas of, wherever it stands in a text."""
_AT_THE_START = re.compile(r"[-+]|[-=]{2,}|#{1,6}|\d{1,9}[.)]")
"""Words that begin a list, or make the line above a heading."""
_MARKUP = re.compile(r"[*_~\[\]!^]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def prose(text: object, *, table: bool = False) -> str:
    """A text on one line, with every word of it shown as it is; ``table`` where it stands in a cell."""
    words = _clean(text).split()
    return " ".join(_word(word, table, first=number == 0 and not table) for number, word in enumerate(words))


def code(text: object, *, table: bool = False) -> str:
    """A text on one line as code, which is never empty; ``table`` where it stands in a cell: only there a pipe takes a
    backslash, and only there that is not seen."""
    shown = " ".join(_clean(text).split()) or "(empty)"
    fence = _longer(shown, 1)
    edge = " " if shown.startswith("`") or shown.endswith("`") else ""
    made = f"{fence}{edge}{shown}{edge}{fence}"
    return made.replace("|", "\\|") if table else made


def block(text: str) -> str:
    """Lines as a block of code."""
    shown = "\n".join(_clean(line) for line in text.splitlines())
    fence = _longer(shown, 3)
    return f"{fence}text\n{shown}\n{fence}"


def _clean(text: object) -> str:
    return visible(str(text))


def _longer(text: str, least: int) -> str:
    """A fence that the text does not contain."""
    runs = [len(run) for run in re.findall("`+", text)]
    return "`" * max(least, max(runs, default=0) + 1)


def _word(word: str, table: bool, *, first: bool) -> str:
    if _ACTIVE.search(word) or (first and _AT_THE_START.fullmatch(word)):
        return code(word, table=table)
    marked = "".join(_ENTITIES.get(each, each) for each in word)
    return _MARKUP.sub(lambda found: "\\" + found.group(), marked)
