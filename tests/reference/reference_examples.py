"""Small references for the tests of this folder; importable by spawned processes, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pytest_quant.reference import ReferenceKey, Store, StoredReference, WindowReference, Windows

TOTAL = 40


def key(**changed: Any) -> ReferenceKey:
    protocol = {"name": "gptq-8", "corpus": {"name": "news", "sha256": "ab"}, "tokens_sha256": "cd", "windows": TOTAL}
    given = {"model": "fingerprint", "dtype": "fp16", "engine": "transformers", "protocol": protocol}
    return ReferenceKey(**{**given, **changed})


def window(number: int, *, tokens: int = 7, top_k: int = 3, vocabulary: int = 256) -> WindowReference:
    """Window `number`: the same numbers whenever it is made."""
    random = np.random.default_rng(number)
    masses = -np.sort(-random.dirichlet(np.ones(top_k), size=tokens), axis=1) * 0.75
    return WindowReference(
        nll=random.exponential(3, tokens),
        top_ids=random.integers(0, vocabulary, (tokens, top_k)),
        top_log_probs=np.log(np.maximum(masses, 1e-8)),
        rest_log_mass=np.log(1 - masses.sum(axis=1)),
    )


def reference(count: int = 4, *, of: ReferenceKey | None = None, **shape: int) -> StoredReference:
    windows = Windows.of([window(number, **{"tokens": 7 + number % 3, **shape}) for number in range(count)])
    recorded = {"model": "tiny-llama", "date": "2025-01-01T00:00:00Z", "packages": {"numpy": "2.0"}}
    return StoredReference(of or key(), windows, TOTAL, windows.top_k, recorded=recorded)


def same(a: StoredReference | None, b: StoredReference) -> bool:
    assert a is not None
    names = ("nll", "top_ids", "top_log_probs", "rest_log_mass", "lengths")
    arrays = [(getattr(a.windows, name), getattr(b.windows, name)) for name in names]
    return (
        (a.key, a.total, a.top_k, a.recorded) == (b.key, b.total, b.top_k, b.recorded)
        and all(x.dtype == y.dtype for x, y in arrays)
        and all(np.array_equal(x, y) for x, y in arrays)
    )


def extend(folder: Path, turn: int, turns: int) -> tuple[int, int]:
    """Read the reference and extend it by one or two windows, again and again: reads made, windows at the end.

    Raises whatever reading or writing raises, and AssertionError if the reference ever gets shorter or wrong.
    """
    store = Store(folder)
    longest = 0
    for number in range(turns):
        found = store.read(key())
        count = 0 if found is None else len(found.windows)
        assert count >= longest, f"{count} windows after {longest}"
        assert found is None or same(found, reference(count))
        longest = min(count + 1 + (number + turn) % 2, TOTAL)
        store.write(reference(longest))
    return turns, longest
