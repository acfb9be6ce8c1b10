"""Prompts as a model's chat template writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_quant.engines.tokens import write_chat
from pytest_quant.errors import UsageError


@dataclass(frozen=True)
class Chat:
    """``apply`` makes one text of a conversation; ``template`` is the hash of the template that it uses."""

    apply: Callable[..., str]
    template: str


def of(tokenizer: Any, name: str) -> Chat:
    """The chat template of a model's tokenizer, as ``lm-eval`` applies it, but with a fixed date: what a template
    prints of today would be another prompt tomorrow. :class:`UsageError` where the tokenizer has none."""
    from jinja2.exceptions import TemplateError

    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise UsageError(
            f"the tokenizer of {name} has no chat template; leave out apply_chat_template, or use a model tuned "
            f"for chat"
        )

    def write(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return write_chat(
            tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def apply(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        try:
            return write(messages, add_generation_prompt)
        except TemplateError:  # as lm-eval does: some templates know no system's turn
            return write([each for each in messages if each["role"] != "system"], add_generation_prompt)

    return Chat(apply, hashlib.sha256(str(template).encode("utf-8")).hexdigest()[:16])
