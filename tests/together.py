"""Models that are always in memory together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Together:
    """What a room asks for models, where they all fit: ``get`` gives each."""

    def __init__(self, get: Callable[[Any, str], Any]) -> None:
        self.beside = self.format = get

    def reference(self, spec: Any, format_name: str) -> Any:
        return self.beside(spec, spec.reference)

    def are_taken(self, spec: Any, format_name: str) -> bool:
        return False

    def part(self, spec: Any, format_name: str) -> bool:
        return False
