"""Libraries that only some corpora need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pytest_quant.errors import UsageError


def require(module: str, what: str, requirement: str = "'pytest-quant[corpora]'") -> Any:
    """The module; :class:`UsageError` with the ``pip install`` that ``what`` needs where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise UsageError(f"{what} needs the library {library} ({error}): pip install {requirement}") from None
