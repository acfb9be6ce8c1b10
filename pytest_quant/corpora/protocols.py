"""Perplexity protocols: how a token stream is cut into windows, and what of each is scored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEED = 0
"""Of the fixed order in which windows are drawn."""


@dataclass(frozen=True)
class Protocol:
    """``gptq-L``: disjoint windows of L tokens, the first of each is context, the tail is dropped (GPTQ, Frantar
    et al. 2022). ``hf-strided-L-S``: windows of L advanced by S, what the one before scored is masked, the tail
    is kept (Hugging Face's guide to perplexity of fixed-length models)."""

    name: str
    length: int
    stride: int

    @property
    def strided(self) -> bool:
        return self.name.startswith("hf-strided")


@dataclass(frozen=True)
class Window:
    """Tokens of one scored sequence; ``tokens[scored_from:]`` are predicted."""

    index: int
    tokens: NDArray[np.int64]
    scored_from: int

    @property
    def scored(self) -> int:
        """Number of predicted tokens."""
        return len(self.tokens) - self.scored_from


@dataclass(frozen=True)
class Windows:
    """The finite set that a protocol defines, in the order in which it is drawn."""

    drawn: tuple[Window, ...]
    identity: Mapping[str, Any]


def parse(name: str) -> Protocol:
    """The protocol of that name; :class:`UsageError` says which forms there are."""
    if match := re.fullmatch(r"gptq-(\d+)", name):
        length = stride = int(match[1])
    elif match := re.fullmatch(r"hf-strided-(\d+)-(\d+)", name):
        length, stride = int(match[1]), int(match[2])
    else:
        raise UsageError(f"unknown protocol {name!r}; write gptq-L (gptq-2048) or hf-strided-L-S (hf-strided-1024-512)")
    if length < 2 or not 1 <= stride <= length:
        raise UsageError(f"protocol {name!r}: windows need at least 2 tokens, and a stride of 1 to the window's length")
    exact = f"gptq-{length}" if name.startswith("gptq") else f"hf-strided-{length}-{stride}"
    return Protocol(exact, length, stride)


def cut(
    stream: NDArray[np.int64], protocol: Protocol, *, corpus: Mapping[str, str], max_windows: int | None = None
) -> Windows:
    """All windows of a token stream in their fixed random order; with ``max_windows`` the first of that order
    become the whole finite set. :class:`UsageError` if the text is too short for one window."""
    windows = _strided(stream, protocol) if protocol.strided else _disjoint(stream, protocol)
    if not windows:
        raise UsageError(
            f"the corpus {corpus['name']!r} has {len(stream)} tokens, not enough for one window of {protocol.name}; "
            f"use a longer text or a shorter window"
        )
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"{max_windows} windows are none; draw at least 1")
    drawn = sorted(windows, key=lambda window: _draw(window.index))
    subset = None if max_windows is None or max_windows >= len(windows) else max_windows
    identity: dict[str, Any] = {
        "name": protocol.name,
        "corpus": dict(corpus),
        "tokens_sha256": hashlib.sha256(stream.tobytes()).hexdigest()[:32],
        "window": protocol.length,
        "stride": protocol.stride,
        "bos": "as the tokenizer adds it, once at the start of the stream",
        "tail": "kept" if protocol.strided else "dropped",
        "scored": "what the window before did not score" if protocol.strided else "all but the first token",
        "logits_dtype": "float32",
        "windows": len(windows),
    }
    if subset is not None:
        identity["subset"] = {"windows": subset, "seed": SEED}
    return Windows(tuple(drawn[:subset]), identity)


def _draw(index: int) -> bytes:
    """The rank of a window in the random order: the same on every machine, in every version of every library."""
    return hashlib.sha256(f"pytest-quant:{SEED}:{index}".encode()).digest()


def _disjoint(stream: NDArray[np.int64], protocol: Protocol) -> list[Window]:
    length = protocol.length
    return [Window(i, stream[i * length : (i + 1) * length], 1) for i in range(len(stream) // length)]


def _strided(stream: NDArray[np.int64], protocol: Protocol) -> list[Window]:
    windows = []
    scored_to = 0
    for index, begin in enumerate(range(0, len(stream), protocol.stride)):
        end = min(begin + protocol.length, len(stream))
        first = max(scored_to - begin, 1)
        if end - begin > first:
            windows.append(Window(index, stream[begin:end], first))
        scored_to = end
        if end == len(stream):
            break
    return windows
