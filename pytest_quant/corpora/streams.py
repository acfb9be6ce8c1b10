"""A corpus as tokens: joined into one stream, or document by document."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_quant.corpora.corpus import Conversation, Corpus
from pytest_quant.errors import NotMeasured, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Encoder(Protocol):
    """What cutting asks of a tokenizer; :class:`pytest_quant.engines.tokens.Tokens` is one."""

    def stream(self, text: str) -> NDArray[np.int64]: ...

    def bare(self, text: str) -> NDArray[np.int64]: ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str: ...

    @property
    def bos(self) -> int | None: ...

    @property
    def prefix(self) -> int: ...

    @property
    def prefix_text(self) -> str: ...


@dataclass(frozen=True)
class Document:
    """Tokens of one document and the number of its words, as lm-eval counts them."""

    tokens: NDArray[np.int64]
    words: int


def stream(corpus: Corpus, tokens: Encoder, *, chat_template: bool = False) -> NDArray[np.int64]:
    """The whole corpus as one token stream.

    With the chat template each document is one message of a user, or the conversation that it is; blank ones are left
    out, nothing stands between, and no special tokens are added to what the template writes. :class:`UsageError` for
    conversations without it.
    """
    if chat_template:
        return tokens.bare("".join(as_texts(corpus, tokens, chat_template=True)))
    _refuse_conversations(corpus)
    return tokens.stream(corpus.text)


def as_texts(corpus: Corpus, tokens: Encoder, *, chat_template: bool = False) -> tuple[str, ...]:
    """Each document as the text that :func:`stream` makes of it. :class:`UsageError` for conversations without the chat
    template."""
    if chat_template:
        return tuple(tokens.chat(messages) for messages in _chats(corpus))
    _refuse_conversations(corpus)
    return tuple(str(document) for document in corpus.documents)


def documents(corpus: Corpus, tokens: Encoder) -> tuple[Document, ...]:
    """Each document with the tokens that lm-eval (0.4.13, ``HFLM.tok_encode``) gives it: as the tokenizer encodes it,
    but without special tokens where the text itself begins with the prefix token.

    :class:`UsageError` for conversations and for a document of no tokens.
    """
    _refuse_conversations(corpus)
    found = []
    for number, document in enumerate(corpus.documents):
        assert isinstance(document, str)
        text = corpus.detokenized[number] if corpus.detokenized else document
        try:
            encoded = tokens.bare(text) if text.startswith(tokens.prefix_text) else tokens.stream(text)
        except NotMeasured:
            raise UsageError(
                f"document {number + 1} of the corpus {corpus.name!r} has no tokens; leave it out, or use a protocol "
                f"that joins the documents, such as gptq-2048"
            ) from None
        found.append(Document(encoded, words(document)))
    return tuple(found)


def words(text: str) -> int:
    """As lm-eval's task wikitext counts them: the parts between white space, an empty one at either end included."""
    return len(re.split(r"\s+", text))


def _chats(corpus: Corpus) -> list[list[dict[str, str]]]:
    chats = []
    for document in corpus.documents:
        if isinstance(document, Conversation):
            chats.append(document.for_template())
        elif document.strip():
            chats.append([{"role": "user", "content": document}])
    return chats


def _refuse_conversations(corpus: Corpus) -> None:
    if corpus.conversations:
        raise UsageError(
            f"the corpus {corpus.name!r} holds conversations, which only a chat template makes text of; "
            f"give --quant-chat-template"
        )
