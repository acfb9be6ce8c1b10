"""What a stored reference is of: two models, formats, engines or protocols never share one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quant.baseline import BaselineError, canonical
from pytest_quant.reference.errors import StoreError


@dataclass(frozen=True)
class ReferenceKey:
    """`model` is the model's fingerprint, `dtype` the reference format's name ("fp16", "fp32", ...).

    `protocol` is a protocol's identity. Its "subset" is left out: how many windows a run draws does not change their
    order, so a longer reference serves a shorter run. The rest is kept in plain JSON types, as it is read from a file.

    Raises StoreError if a name is empty or the protocol is not JSON with finite numbers.
    """

    model: str
    dtype: str
    engine: str
    protocol: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("model", "dtype", "engine"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise StoreError(f"key of a stored reference: {name} is {value!r}; give it a name.")
        if not isinstance(self.protocol, Mapping):
            raise StoreError(f"key of a stored reference: protocol is {self.protocol!r}; give a protocol's identity.")
        try:
            plain = canonical({name: value for name, value in self.protocol.items() if name != "subset"})
        except BaselineError as error:
            raise StoreError(f"key of a stored reference: protocol: {error}") from None
        object.__setattr__(self, "protocol", json.loads(plain))

    def __hash__(self) -> int:
        return hash(self.canonical)

    @property
    def canonical(self) -> str:
        """Canonical JSON of the whole key."""
        return canonical(vars(self))

    @property
    def digest(self) -> str:
        """The first 32 hexadecimal digits of the SHA-256 of the canonical JSON: the name of the file."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:32]
