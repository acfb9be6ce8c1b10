"""Rows of a file as documents: which column holds them, and whether they are texts or conversations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pytest_quant.corpora.corpus import Conversation
from pytest_quant.errors import UsageError

COLUMNS = ("text", "page", "content", "messages")
"""Where a document is looked for, in this order."""


def column_of(names: Collection[str], asked: str | None, place: str, columns: Sequence[str] = COLUMNS) -> str:
    """The column ``asked`` for, else the first of ``columns``; :class:`UsageError` where there is none."""
    found = next((name for name in ((asked,) if asked else columns) if name in names), None)
    if found is None:
        there = ", ".join(sorted(map(str, names))[:8]) or "nothing"
        raise UsageError(
            f"{place} has {there}, but no {asked or ', '.join(columns[:-1]) + ' or ' + columns[-1]}; "
            f"name the column after the file, as in data.jsonl:COLUMN"
        )
    return found


def documents(rows: Iterable[tuple[str, Any]]) -> tuple[str, ...] | tuple[Conversation, ...]:
    """Values with their places as documents. :class:`UsageError` names the place of a value that is neither a text
    nor a list of messages, or of another kind than those before it."""
    texts: list[str] = []
    conversations: list[Conversation] = []
    for place, value in rows:
        if isinstance(value, str):
            texts.append(_encodable(value, place))
        elif isinstance(value, list):
            conversations.append(_conversation(value, place))
        else:
            raise UsageError(f"{place} holds {_kind(value)}, where a text or a list of messages belongs")
        if texts and conversations:
            raise UsageError(f"{place} mixes texts and conversations in one corpus; put them into two files")
    return tuple(conversations) if conversations else tuple(texts)


def _conversation(value: list[Any], place: str) -> Conversation:
    messages = []
    for number, message in enumerate(value, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise UsageError(f'{place} has a message {number} that is not {{"role": a text, "content": a text}}')
        messages.append((_encodable(role, place), _encodable(content, place)))
    if not messages:
        raise UsageError(f"{place} holds a conversation of no messages; leave it out")
    return Conversation(tuple(messages))


def _encodable(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{place} holds half of a surrogate pair, which is no text: {error}") from None
    return text


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
