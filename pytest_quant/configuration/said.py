"""A value as somebody wrote it, and where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_quant.errors import UsageError

TABLE = "[tool.pytest-quant]"


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
        return UsageError(f"{self.origin}{equals}{self._shown()}: {what}")

    def _shown(self) -> str:
        if isinstance(self.value, str) and self.origin.kind != "table":
            return self.value
        return json.dumps(self.value, default=str, ensure_ascii=False)
