"""Texts as tokens, with a tokenizer of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.quiet import quiet
from pytest_quant.errors import NotMeasured, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


CHAT_DATE = "26 Jul 2024"
"""For chat templates that would print today's: tomorrow it would be another text."""


class Tokens:
    """A tokenizer and what protocols ask of it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def stream(self, text: str) -> NDArray[np.int64]:
        """Tokens of the text with the special tokens that the tokenizer itself adds; :class:`NotMeasured` if none."""
        return self._some(self._encode(text, special=True))

    def bare(self, text: str) -> NDArray[np.int64]:
        """Tokens of the text alone; :class:`NotMeasured` if none."""
        return self._some(self._encode(text, special=False))

    def chat(self, messages: Sequence[Mapping[str, str]], *, to_be_answered: bool = False) -> str:
        """The messages as the tokenizer's chat template writes them, with the beginning of an answer where they are
        ``to_be_answered``; :class:`UsageError` where it has none, or refuses them."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise UsageError(
                "the tokenizer has no chat template; leave out --quant-chat-template, or use a model tuned for chat"
            )
        try:
            with quiet():
                return str(
                    self._tokenizer.apply_chat_template(
                        [dict(each) for each in messages],
                        tokenize=False,
                        date_string=CHAT_DATE,
                        add_generation_prompt=to_be_answered,
                    )
                )
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
