"""Which model is meant, and what may be done to open it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelSource:
    """A local folder or a hub id; ``revision`` is a hub's branch, tag or commit."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path | None:
        """The local folder, if that is what the name is."""
        path = Path(self.name)
        return path if self.name and path.is_dir() else None

    @property
    def short(self) -> str:
        """The last part of the name, for people and for file names."""
        return Path(self.name).name if self.folder else self.name
