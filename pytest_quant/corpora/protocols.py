"""Perplexity protocols: how a corpus is cut into windows, what of each is scored, and the identity of that question."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quant.corpora import windows as cutting
from pytest_quant.corpora.corpus import Corpus
from pytest_quant.corpora.streams import Document, Encoder, documents, stream
from pytest_quant.corpora.windows import Piece, Window, Windows
from pytest_quant.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SEED", "Encoder", "Piece", "Protocol", "Window", "Windows", "draw", "parse", "stream"]

SEED = 0
"""Of the fixed order in which windows are drawn."""

_FORMS = (
    "gptq-L (gptq-2048), hf-strided-L-S (hf-strided-1024-512), llamacpp-L (llamacpp-512), "
    "lm-eval-word or lm-eval-word-L (lm-eval-word-2048)"
)


@dataclass(frozen=True)
class Protocol:
    """One of these, ``length`` (L) and ``stride`` (S) in tokens:

    - ``gptq-L``: disjoint windows of L, the first token of each is context, the tail is dropped (GPTQ, Frantar et al.
      2022);
    - ``hf-strided-L-S``: windows of L advanced by S, what the one before scored is context, the tail is kept (Hugging
      Face's guide to perplexity of fixed-length models);
    - ``llamacpp-L``: disjoint windows of L, BOS in the place of the first token, only the second half is scored, the
      tail is dropped (``llama-perplexity``);
    - ``lm-eval-word-L``: every document by itself in steps of L, counted by its words; without L, which is then None,
      the model's own maximum (lm-eval's ``wikitext``, ``word_perplexity``).
    """

    family: str
    length: int | None
    stride: int | None

    @property
    def name(self) -> str:
        numbers = (self.length, self.stride) if self.family == "hf-strided" else (self.length,)
        return "-".join([self.family, *(str(number) for number in numbers if number is not None)])

    @property
    def by_document(self) -> bool:
        """Whether documents are scored one by one; if so, ask for the corpus with ``documents=True``."""
        return self.family == "lm-eval-word"


def parse(name: str) -> Protocol:
    """The protocol of that name; :class:`UsageError` says which forms there are."""
    if match := re.fullmatch(r"(gptq|llamacpp|lm-eval-word)-(\d+)", name):
        protocol = Protocol(match[1], int(match[2]), int(match[2]))
    elif match := re.fullmatch(r"(hf-strided)-(\d+)-(\d+)", name):
        protocol = Protocol(match[1], int(match[2]), int(match[3]))
    elif name == "lm-eval-word":
        return Protocol(name, None, None)
    else:
        raise UsageError(f"unknown protocol {name!r}; write {_FORMS}")
    assert protocol.length is not None
    assert protocol.stride is not None
    if protocol.length < 2 or not 1 <= protocol.stride <= protocol.length:
        raise UsageError(f"protocol {name!r}: windows need at least 2 tokens, and a stride of 1 to the window's length")
    if protocol.family == "llamacpp" and (protocol.length < 4 or protocol.length % 2):
        raise UsageError(f"protocol {name!r}: half of a window is scored, so it needs an even length of at least 4")
    return protocol


def draw(
    corpus: Corpus,
    protocol: Protocol,
    tokens: Encoder,
    *,
    max_windows: int | None = None,
    max_length: int | None = None,
    chat_template: bool = False,
) -> Windows:
    """All windows of a corpus in their fixed random order; with ``max_windows`` the first of that order become the
    whole finite set. ``max_length`` is the longest input of the model, which ``lm-eval-word`` takes as its L.

    :class:`UsageError` if the text is too short for one window, or does not fit the protocol.
    """
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"{max_windows} windows are none; draw at least 1")
    if protocol.by_document:
        found, identity = _by_document(corpus, protocol, tokens, max_length, chat_template)
    else:
        found, identity = _by_stream(corpus, protocol, tokens, chat_template)
    if max_windows is not None and max_windows < len(found):
        identity["subset"] = {"windows": max_windows, "seed": SEED}
    drawn = sorted(found, key=lambda window: _rank(window.index))
    return Windows(tuple(drawn[:max_windows]), identity, "word" if protocol.by_document else "token")


def _by_stream(
    corpus: Corpus, protocol: Protocol, tokens: Encoder, chat_template: bool
) -> tuple[list[Window], dict[str, Any]]:
    assert protocol.length is not None
    assert protocol.stride is not None
    whole = stream(corpus, tokens, chat_template=chat_template)
    bos = (
        "as the chat template writes it"
        if chat_template
        else "as the tokenizer adds it, once at the start of the stream"
    )
    if protocol.family == "gptq":
        found = cutting.disjoint(whole, protocol.length)
        tail, scored = "dropped", "all but the first token"
    elif protocol.family == "hf-strided":
        found = cutting.strided(whole, protocol.length, protocol.stride)
        tail, scored = "kept", "what the window before did not score"
    else:
        found = cutting.second_halves(whole, protocol.length, tokens.bos)
        tail, scored = "dropped", "from token L/2 + 1"
        if tokens.bos is not None:
            bos = f"{tokens.bos} in the place of the first token of each window"
    if not found:
        raise UsageError(
            f"the corpus {corpus.name!r} has {len(whole)} tokens, not enough for one window of {protocol.name}; "
            f"use a longer text or a shorter window"
        )
    identity = {
        **_opening(corpus, protocol.name, whole),
        "window": protocol.length,
        "stride": protocol.stride,
        "bos": bos,
        "tail": tail,
        "scored": scored,
        **_closing(found),
    }
    if chat_template:
        identity["chat_template"] = True
    return found, identity


def _by_document(
    corpus: Corpus, protocol: Protocol, tokens: Encoder, max_length: int | None, chat_template: bool
) -> tuple[list[Window], dict[str, Any]]:
    if chat_template:
        raise UsageError(
            f"protocol {protocol.name!r} scores documents as they are, as lm-eval does; leave out "
            f"--quant-chat-template, or use a protocol such as gptq-2048"
        )
    length = protocol.length or max_length
    if length is None:
        raise UsageError("the model does not say its longest input; write it into the protocol, as lm-eval-word-2048")
    prefix = tokens.prefix
    read = documents(corpus, tokens)
    found = [Window(i, cutting.rolling(each.tokens, prefix, length), each.words) for i, each in enumerate(read)]
    identity = {
        **_opening(corpus, f"{protocol.family}-{length}", _flat(prefix, read)),
        "window": length,
        "stride": length,
        "bos": f"{prefix} before each document, and what the tokenizer adds",
        "tail": "kept, after as much context as there is room for",
        "scored": "every token of each document",
        "unit": "words",
        **_closing(found),
    }
    return found, identity


def _opening(corpus: Corpus, name: str, tokens: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "name": name,
        "corpus": {"name": corpus.name, "sha256": corpus.sha256},
        "tokens_sha256": hashlib.sha256(tokens.tobytes()).hexdigest()[:32],
    }


def _closing(found: list[Window]) -> dict[str, Any]:
    return {"logits_dtype": "float32", "windows": len(found)}


def _flat(prefix: int, read: tuple[Document, ...]) -> NDArray[np.int64]:
    """The prefix token, then of each document its number of tokens, its number of words and its tokens."""
    import numpy as np

    parts = [[prefix], *(part for each in read for part in ([len(each.tokens), each.words], each.tokens))]
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def _rank(index: int) -> bytes:
    """The rank of a window in the random order: the same on every machine, in every version of every library."""
    return hashlib.sha256(f"pytest-quant:{SEED}:{index}".encode()).digest()
