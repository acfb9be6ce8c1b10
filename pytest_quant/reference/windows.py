"""What the reference said, token by token: one window, many windows, and a stored reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

from pytest_quant.reference.errors import StoreError
from pytest_quant.reference.key import ReferenceKey

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Origin = Literal["built", "imported"]

FLOOR = -1e4
"""The lowest log-probability that is stored, in nats: exp of it is zero in every floating-point type."""


@dataclass(frozen=True, eq=False)
class WindowReference:
    """One window of T predicted tokens; logarithms are natural.

    Arrays of other types are cast. What is below `FLOOR` is raised to it: -inf only in `rest_log_mass`, where it means
    that the top K tokens hold all the mass; elsewhere -inf stays, to be refused when it is stored. Raises StoreError
    if the shapes do not fit together or an id is not a whole number from 0 to 2**32 - 1.
    """

    nll: NDArray[np.float32]
    """(T,) negative log-likelihood of the true token, nats."""
    top_ids: NDArray[np.uint32]
    """(T, K), most probable first."""
    top_log_probs: NDArray[np.float16]
    """(T, K), nats."""
    rest_log_mass: NDArray[np.float32]
    """(T,) log of the probability of all tokens that are not among the top K; `FLOOR` where there is none."""

    def __post_init__(self) -> None:
        import numpy as np

        raw = {name: np.asarray(value) for name, value in vars(self).items()}
        shapes = {name: array.shape for name, array in raw.items()}
        tokens, wide = shapes["nll"], shapes["top_ids"]
        if (
            len(tokens) != 1
            or len(wide) != 2
            or (*tokens, wide[1]) != wide
            or shapes["top_log_probs"] != wide
            or shapes["rest_log_mass"] != tokens
            or 0 in wide
        ):
            raise StoreError(
                f"window of a reference: the shapes {shapes} do not fit together; they must be (T,) and (T, K), at "
                "least one of each."
            )
        ids = raw["top_ids"]
        if ids.dtype.kind not in "iu" or int(ids.min()) < 0 or int(ids.max()) >= 2**32:
            raise StoreError("window of a reference: top_ids must be whole numbers from 0 to 2**32 - 1.")
        log_probs = raw["top_log_probs"]
        low = np.isfinite(log_probs) & (log_probs < FLOOR)
        cast = {
            "nll": raw["nll"].astype(np.float32),
            "top_ids": ids.astype(np.uint32),
            "top_log_probs": np.where(low, FLOOR, log_probs).astype(np.float16),
            "rest_log_mass": np.maximum(raw["rest_log_mass"], FLOOR).astype(np.float32),
        }
        for name, array in cast.items():
            array.flags.writeable = False
            object.__setattr__(self, name, array)


@dataclass(frozen=True, eq=False)
class Windows(Sequence[WindowReference]):
    """Windows by their position in the drawn order, in flat arrays of N tokens; a window is cut out when asked for."""

    nll: NDArray[np.float32]
    """(N,)"""
    top_ids: NDArray[np.uint16] | NDArray[np.uint32]
    """(N, K); of two bytes where all ids allow it."""
    top_log_probs: NDArray[np.float16]
    """(N, K)"""
    rest_log_mass: NDArray[np.float32]
    """(N,)"""
    lengths: NDArray[np.int64]
    """(M,) predicted tokens of each window; their sum is N."""

    @classmethod
    def of(cls, windows: Iterable[WindowReference]) -> Windows:
        """The windows, in the drawn order from its first. Raises StoreError if there are none or K varies."""
        import numpy as np

        parts = list(windows)
        widths = sorted({part.top_ids.shape[1] for part in parts})
        if len(widths) != 1:
            found = f"windows with different numbers of top tokens: {widths}" if widths else "no window"
            raise StoreError(f"windows of a reference: found {found}; give one or more, all with the same.")
        ids = np.concatenate([part.top_ids for part in parts])
        narrow = int(ids.max()) < 2**16
        return cls(
            nll=np.concatenate([part.nll for part in parts]),
            top_ids=ids.astype(np.uint16) if narrow else ids,
            top_log_probs=np.concatenate([part.top_log_probs for part in parts]),
            rest_log_mass=np.concatenate([part.rest_log_mass for part in parts]),
            lengths=np.array([len(part.nll) for part in parts], dtype=np.int64),
        )

    def extended(self, more: Iterable[WindowReference]) -> Windows:
        """These windows and then those that are drawn next. Raises StoreError if K varies."""
        return Windows.of([*self, *more])

    @property
    def top_k(self) -> int:
        """K, the number of tokens of which each position keeps the log-probability."""
        return int(self.top_ids.shape[1])

    @cached_property
    def _ends(self) -> list[int]:
        return [int(end) for end in self.lengths.cumsum()]

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, position: int) -> WindowReference: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[WindowReference, ...]: ...
    def __getitem__(self, position: int | slice) -> WindowReference | tuple[WindowReference, ...]:
        if isinstance(position, slice):
            return tuple(self._window(number) for number in range(*position.indices(len(self))))
        number = position + len(self) if position < 0 else position
        if not 0 <= number < len(self):
            raise IndexError(f"window {position} of {len(self)}")
        return self._window(number)

    def __iter__(self) -> Iterator[WindowReference]:
        return (self._window(number) for number in range(len(self)))

    def _window(self, number: int) -> WindowReference:
        import numpy as np

        part = slice(self._ends[number] - int(self.lengths[number]), self._ends[number])
        ids = self.top_ids[part].astype(np.uint32)
        return WindowReference(self.nll[part], ids, self.top_log_probs[part], self.rest_log_mass[part])


@dataclass(frozen=True, eq=False)
class StoredReference:
    """The reference's word on the first M windows of the `total` that a protocol defines."""

    key: ReferenceKey
    windows: Windows
    total: int
    top_k: int
    origin: Origin = "built"
    """Decided by the place where a file lies, never by its content."""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """For people: "model" (its short name, shown in lists), packages, device, date, commit. In JSON types."""

    @property
    def complete(self) -> bool:
        """Whether it holds every window that the protocol defines."""
        return len(self.windows) == self.total
