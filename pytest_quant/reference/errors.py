"""What can go wrong with stored references."""

from __future__ import annotations

from pytest_quant.errors import QuantError


class StoreError(QuantError):
    """A stored reference cannot be read, understood, written or found."""


class DamagedError(StoreError):
    """A file is not, or no longer, the stored reference that it should be: worth nothing, and may be deleted."""
