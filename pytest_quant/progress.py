"""Progress of long work, told to whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """``show`` replaces the one line that stands for the work under way; ``clear`` takes it away."""

    def show(self, text: str) -> None: ...

    def clear(self) -> None: ...


class Quiet:
    """Shows nothing: in a pipe, in a file, in a worker."""

    def show(self, text: str) -> None:
        pass

    def clear(self) -> None:
        pass
