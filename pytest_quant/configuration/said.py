"""A value as somebody wrote it, and where."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_quant.errors import UsageError

TABLE = "[tool.pytest-quant]"
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Origin:
    """Where a value comes from."""

    kind: Literal["command line", "override", "ini", "table", "CI", "default"]
    key: str = ""
    """As it is written there: ``--quant-price``, ``quant_price`` or ``price``."""
    file: Path | None = None
    """Of ``ini`` and ``table``."""

    def __str__(self) -> str:
        if self.kind == "table":
            return f"{self.file}: {TABLE} {self.key}"
        if self.kind == "ini":
            return f"{self.key} in {self.file or 'the ini file'}"
        return f"-o {self.key}" if self.kind == "override" else self.key


@dataclass(frozen=True)
class Said:
    """What was said of one option."""

    value: Any
    """Text from the command line and from ini files, whatever TOML holds from tables; None: nothing."""
    origin: Origin
    root: Path
    """The folder that the names of models, texts and checkpoints are meant from."""
    started: Path
    """The folder that other paths are meant from."""

    def wrong(self, what: str, *, show: bool = True) -> UsageError:
        """The complaint about it, with the value itself unless ``what`` names the part that is wrong."""
        if not show:
            return UsageError(f"{self.origin}: {what}")
        equals = " = " if self.origin.kind == "table" else "="
        return UsageError(f"{self.origin}{equals}{self.shown()}: {what}")

    def shown(self) -> str:
        """The value as it was written, or as TOML would write it."""
        if isinstance(self.value, str) and self.origin.kind != "table":
            return self.value
        return toml(self.value)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        pairs = (f"{name if _BARE.fullmatch(name) else toml(name)} = {toml(each)}" for name, each in value.items())
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)  # inf, nan and dates among them
