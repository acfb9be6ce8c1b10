"""The fenced blocks of a Markdown page, the commands of a console block, and whether a page's output was printed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_BLOCK = re.compile(r"^(?P<fence>```+)(?P<kind>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind the fence, its lines, and the line of the page that it begins at."""

    kind: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in its order."""
    return [
        Block(match["kind"].strip(), match["text"], page.count("\n", 0, match.start()) + 1)
        for match in _BLOCK.finditer(page)
    ]


def commands(console: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, without its comment, and the lines that are shown below it."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command.partition("  #")[0].strip(), output.splitlines()


def not_printed(shown: Sequence[str], printed: Sequence[str], tolerance: float = 0.0) -> list[str]:
    """The lines that were not printed, each looked for behind the one before it.

    A line of three dots stands for any lines, and three dots at the end of a line for its rest. Blank lines and widths
    of columns do not count; numbers may be off by the share ``tolerance``, and by as much of 1 below 1.
    """
    missing, place = [], 0
    for line in shown:
        if not line.strip() or line.strip() == "...":
            continue
        found = next((n for n in range(place, len(printed)) if _same(line, printed[n], tolerance)), None)
        if found is None:
            missing.append(line)
        else:
            place = found + 1
    return missing


def _same(shown: str, printed: str, tolerance: float) -> bool:
    pattern, line = _plain(shown), _plain(printed)
    if pattern.endswith("..."):
        pattern = pattern[:-3].rstrip()
        words = len(_NUMBER.sub("0", pattern))
        return _NUMBER.sub("0", line)[:words] == _NUMBER.sub("0", pattern) and _near(pattern, line, tolerance)
    return _NUMBER.sub("0", line) == _NUMBER.sub("0", pattern) and _near(pattern, line, tolerance)


def _near(shown: str, printed: str, tolerance: float) -> bool:
    pairs = zip(_numbers(shown), _numbers(printed), strict=False)
    return all(math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance) for one, other in pairs)


def _numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(line)]


def _plain(line: str) -> str:
    return " ".join(line.split())
