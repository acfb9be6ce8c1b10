"""What a run knows of a reference: what was stored, and what it learned itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pytest_quant.corpora.windows import Windows
from pytest_quant.errors import StoreWarning
from pytest_quant.metrics.pairing import TOP_K
from pytest_quant.reference import ReferenceKey, Store, StoredReference, StoreError, WindowReference
from pytest_quant.reference.windows import Windows as StoredWindows


class KnownReference:
    """The reference's word on the first windows of a population, in their drawn order; it grows as they are scored.

    ``kept`` holds what was built or imported on purpose: it counts whatever it was measured with. ``own`` holds what
    earlier runs of the same stack learned by the way, and takes what this one learns.
    """

    def __init__(self, kept: Store, own: Store, key: ReferenceKey, windows: Windows, *, read: bool = True) -> None:
        self._own = own
        self._key = key
        self._population = windows
        on_purpose = self._read(kept, on_purpose=True) if read else None
        by_the_way = self._read(own, on_purpose=False) if read else None
        found = [reference for reference in (on_purpose, by_the_way) if reference is not None]
        best = max(found, key=lambda reference: len(reference.windows), default=None)
        self.on_purpose = best is not None and best is on_purpose
        """Whether what is known was built or imported on purpose."""
        self.imported = self.on_purpose and best is not None and best.origin == "imported"
        self.top_k = TOP_K if best is None else best.top_k
        self._from_store: StoredWindows | None = None if best is None else best.windows
        self._learned: list[WindowReference] = []
        self._saved = 0
        self.before: int | None = None
        """How many windows the stores held before this run, where another worker may have added to them; None: all."""

    def __len__(self) -> int:
        return len(self._from_store or ()) + len(self._learned)

    @property
    def stored(self) -> int:
        """How many of the windows an earlier run had stored."""
        held = len(self._from_store or ())
        return held if self.before is None else min(self.before, held)

    @property
    def highest_token(self) -> int:
        """The highest token that what is stored names; -1 where nothing is."""
        return -1 if self._from_store is None else int(self._from_store.top_ids.max())

    @property
    def complete(self) -> bool:
        """Whether every window of the population is known."""
        return len(self) >= len(self._population.drawn)

    def windows(self, start: int, count: int) -> Sequence[WindowReference]:
        """``count`` windows from ``start``, which must be known."""
        return [self._window(position) for position in range(start, start + count)]

    def learn(self, start: int, windows: Sequence[WindowReference]) -> None:
        """Add windows that were scored from ``start``; those that are known stay as they are."""
        self._learned.extend(windows[max(len(self) - start, 0) :])

    def reread(self) -> None:
        """Add what others have stored meanwhile, beyond what is known."""
        found = None if self.on_purpose else self._read(self._own, on_purpose=False)
        if found is None or found.top_k != self.top_k or len(found.windows) <= len(self):
            return
        self._learned.extend(found.windows[len(self) :])
        self._saved = len(self._learned)

    @property
    def digest(self) -> str:
        """A name that two references share only where they are the same."""
        return self._key.digest

    @property
    def mean(self) -> float | None:
        """Mean NLL over the whole population, nats a token (or word); None while it is not known."""
        return self._mean if self.complete else None

    @cached_property
    def _mean(self) -> float:
        drawn = self._population.drawn
        total = sum(float(self._window(i).nll.sum(dtype=float)) for i in range(len(drawn)))
        return total / sum(window.weight for window in drawn)

    def save(self, recorded: Callable[[], Mapping[str, Any]]) -> None:
        """Store what was learned; where that cannot be, a :class:`StoreWarning` says why."""
        if len(self._learned) == self._saved or self.on_purpose or not self._is_sound():
            return  # what was kept on purpose may come from another stack, and is not continued as this one's
        try:
            self._own.write(self.whole(recorded()))
        except StoreError as error:
            warnings.warn(StoreWarning(f"the reference was not stored: {error}"), stacklevel=2)
        self._saved = len(self._learned)

    def whole(self, recorded: Mapping[str, Any]) -> StoredReference:
        """All that is known, to be stored. :class:`StoreError` where nothing is."""
        windows = StoredWindows.of([*(self._from_store or ()), *self._learned])
        total = int(self._population.identity["windows"])
        return StoredReference(self._key, windows, total, windows.top_k, recorded=recorded)

    def _is_sound(self) -> bool:
        """Whether everything learned is finite; a reference that answers NaN is reported where it is used."""
        import numpy as np

        return all(bool(np.isfinite(window.nll).all()) for window in self._learned)

    def _window(self, position: int) -> WindowReference:
        stored = len(self._from_store or ())
        return (
            self._from_store[position] if self._from_store and position < stored else self._learned[position - stored]
        )

    def _read(self, store: Store, *, on_purpose: bool) -> StoredReference | None:
        """What a store holds. What was kept on purpose and is damaged is an error; what was not, is learned again."""
        try:
            found = store.read(self._key)
            if found is not None:
                self._check(found, store)
        except StoreError as error:
            if on_purpose:
                raise
            warnings.warn(StoreWarning(f"the stored reference is not used: {error}"), stacklevel=2)
            return None
        return found

    def _check(self, found: StoredReference, store: Store) -> None:
        lengths = [window.scored for window in self._population.drawn]
        known = [int(length) for length in found.windows.lengths]
        if known[: len(lengths)] != lengths[: len(known)]:
            raise StoreError(
                f"{store.path(self._key.digest, found.origin)}: its windows are not those of the protocol, though it "
                f"says so; delete it"
            )
