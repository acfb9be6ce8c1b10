"""What each format is, which backend realizes it, and how it proves itself."""

from __future__ import annotations

from typing import Any

__all__ = ["Asked", "Backend", "Format", "QuantizationArgs", "Stored", "custom", "variant"]

_HOMES = {
    "Asked": "backend",
    "Backend": "backend",
    "Format": "format",
    "QuantizationArgs": "format",
    "Stored": "backend",
    "custom": "own",
    "variant": "own",
}


def __getattr__(name: str) -> Any:
    """What a ``conftest.py``, or a package with a backend of its own, takes from here; imported when used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
