"""What a corpus is: documents with a name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Conversation:
    """Messages of a chat, each a role and what it said."""

    messages: tuple[tuple[str, str], ...]

    def for_template(self) -> list[dict[str, str]]:
        """As chat templates want it: ``[{"role": ..., "content": ...}, ...]``."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True)
class Corpus:
    """Texts or conversations, never both; ``detokenized`` is what lm-eval scores in the place of WikiText's pages,
    whose words it counts before."""

    name: str
    documents: tuple[str, ...] | tuple[Conversation, ...]
    separator: str = "\n\n"
    detokenized: tuple[str, ...] | None = None

    @property
    def conversations(self) -> bool:
        """Whether only a chat template can make text of it."""
        return any(isinstance(document, Conversation) for document in self.documents[:1])

    @cached_property
    def text(self) -> str:
        """The documents joined by the separator; a conversation stands as the JSON of its messages."""
        return self.separator.join(
            json.dumps(each.for_template(), ensure_ascii=False) if isinstance(each, Conversation) else each
            for each in self.documents
        )

    @cached_property
    def sha256(self) -> str:
        """Of the text in UTF-8. Where one document ends is no part of it: a protocol that goes by documents hashes
        their tokens one by one."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()
