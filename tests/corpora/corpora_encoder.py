"""A tokenizer whose tokens are the numbers that the text is written in."""

from __future__ import annotations

import numpy as np

from pytest_quant.errors import NotMeasured

ROLES = {"system": 6, "user": 7, "assistant": 8}


class FakeEncoder:
    """``"5 6"`` is tokens 5 and 6. ``bos`` is added to a text, ``prefix`` is what lm-eval would use."""

    prefix_text = "<s>"

    def __init__(self, bos: int | None = None, prefix: int = 2) -> None:
        self.bos = bos
        self.prefix = prefix if bos is None else bos

    def stream(self, text: str) -> np.ndarray:
        return self._some([] if self.bos is None else [self.bos], text)

    def bare(self, text: str) -> np.ndarray:
        return self._some([], text)

    def chat(self, messages) -> str:
        return "".join(f" {ROLES[each['role']]} {each['content']} 9 " for each in messages)

    @staticmethod
    def _some(added: list[int], text: str) -> np.ndarray:
        ids = added + [int(word) for word in text.replace("<s>", " 1 ").split()]
        if not ids:
            raise NotMeasured("no tokens")
        return np.array(ids, dtype=np.int64)


class ByteEncoder:
    """One token a byte; 0 stands between documents."""

    prefix_text = "\0"
    bos = None
    prefix = 0

    def stream(self, text: str) -> np.ndarray:
        return self.bare(text)

    def bare(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8).astype(np.int64)

    def chat(self, messages) -> str:
        return "".join(f"<{each['role']}>{each['content']}" for each in messages)


def positions(tokens: int, start: int = 100) -> str:
    """The text of tokens 100, 101, ..."""
    return " ".join(str(start + position) for position in range(tokens))
