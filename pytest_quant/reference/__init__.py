"""What an unquantized model said, token by token, stored once under its fingerprint and the protocol's identity."""

from pytest_quant.reference.bound import coarse_kl
from pytest_quant.reference.errors import DamagedError, StoreError
from pytest_quant.reference.key import ReferenceKey
from pytest_quant.reference.store import Entry, Store
from pytest_quant.reference.windows import FLOOR, StoredReference, WindowReference, Windows

__all__ = [
    "FLOOR",
    "DamagedError",
    "Entry",
    "ReferenceKey",
    "Store",
    "StoreError",
    "StoredReference",
    "WindowReference",
    "Windows",
    "coarse_kl",
]
