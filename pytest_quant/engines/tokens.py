"""Texts as tokens, with a tokenizer of Hugging Face."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.quiet import quiet
from pytest_quant.errors import NotMeasured, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


CHAT_DAY = datetime(2024, 7, 26)
"""For chat templates that would print today's date: tomorrow it would be another text."""


class Tokens:
    """A tokenizer and what protocols ask of it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Any:
        """That of Hugging Face."""
        return self._tokenizer

    @property
    def can_chat(self) -> bool:
        """Whether it has a chat template."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def stream(self, text: str) -> NDArray[np.int64]:
        """Tokens of the text with the special tokens that the tokenizer itself adds; :class:`NotMeasured` if none."""
        return self._some(self._encode(text, special=True))

    def bare(self, text: str) -> NDArray[np.int64]:
        """Tokens of the text alone; :class:`NotMeasured` if none."""
        return self._some(self._encode(text, special=False))

    def chat(self, messages: Sequence[Mapping[str, str]], *, to_be_answered: bool = False) -> str:
        """The messages as the tokenizer's chat template writes them, with the beginning of an answer where they are
        ``to_be_answered``; :class:`UsageError` where it has none, or refuses them."""
        if not self.can_chat:
            raise UsageError(
                "the tokenizer has no chat template; leave out --quant-chat-template, or use a model tuned for chat"
            )
        try:
            with quiet():
                return write_chat(self._tokenizer, messages, add_generation_prompt=to_be_answered)
        except Exception as error:
            reason = (str(error) or type(error).__name__).strip().splitlines()[0][:300]
            roles = ", ".join(message["role"] for message in messages[:6])
            raise UsageError(f"the chat template refuses messages of {roles}: {reason}") from error

    @cached_property
    def bos(self) -> int | None:
        """The BOS token, if the tokenizer itself puts one before a text."""
        bos = self._tokenizer.bos_token_id
        starts = [self._encode("a", special=special)[:1] for special in (True, False)]
        return int(bos) if bos is not None and starts[0] == [bos] != starts[1] else None

    @property
    def prefix(self) -> int:
        """What lm-eval (0.4.13, ``HFLM.prefix_token_id``) lets the first token follow: BOS if there is one, else EOS.
        :class:`UsageError` if there is neither."""
        found = self._tokenizer.bos_token_id
        if found is None:
            found = self._tokenizer.eos_token_id
        if found is None:
            raise UsageError("the tokenizer has neither a BOS nor an EOS token, and lm-eval-word needs one; use gptq-L")
        return int(found)

    @cached_property
    def prefix_text(self) -> str:
        """How the prefix token is written."""
        return str(self._tokenizer.decode(self.prefix))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        with quiet():
            found: list[int] = self._tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"]
        return found

    def _some(self, ids: list[int]) -> NDArray[np.int64]:
        import numpy as np

        if not ids:
            raise NotMeasured("the corpus has no tokens: it is empty, or the tokenizer knows none of it")
        return np.asarray(ids, dtype=np.int64)


def write_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], **arguments: Any) -> str:
    """The messages as the tokenizer's chat template writes them on :data:`CHAT_DAY`. Raises what that raises."""
    with _on_that_day():
        return str(
            tokenizer.apply_chat_template(
                [dict(each) for each in messages],
                tokenize=False,
                date_string=CHAT_DAY.strftime("%d %b %Y"),
                **arguments,
            )
        )


class _ThatDay(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _ThatDay:
        day = CHAT_DAY
        return cls(day.year, day.month, day.day, tzinfo=tz)


@contextlib.contextmanager
def _on_that_day() -> Iterator[None]:
    """What a template gets of ``strftime_now``. It is a global of the template's, and no function can be passed in its
    place: transformers (5.23, ``render_jinja_template``) lets no callable through."""
    from transformers.utils import chat_template_utils

    today = chat_template_utils.datetime
    chat_template_utils.datetime = _ThatDay
    try:
        yield
    finally:
        chat_template_utils.datetime = today
