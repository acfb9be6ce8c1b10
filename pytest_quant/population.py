"""The texts of a run, as tokens and as windows of each model's tokenizer."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pytest_quant.corpora import protocols, texts
from pytest_quant.corpora.corpus import Corpus
from pytest_quant.corpora.protocols import Windows
from pytest_quant.corpora.streams import stream
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.tokens import Tokens
from pytest_quant.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.settings import Settings


class Population:
    """Reads the corpus once, and tokenizes it once for each model. No weight is read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._protocol = protocols.parse(settings.protocol)
        self._opened: dict[ModelSource, tuple[Tokens, int | None]] = {}
        self._streams: dict[ModelSource, NDArray[np.int64]] = {}
        self._windows: dict[ModelSource, Windows] = {}

    def stream(self, source: ModelSource, vocabulary: int) -> NDArray[np.int64]:
        """The corpus as one stream of tokens, from which prompts are taken.

        :class:`UsageError` where a token is beyond the ``vocabulary`` that the model knows.
        """
        if source not in self._streams:
            tokens, _ = self._open(source)
            self._streams[source] = stream(self._corpus, tokens, chat_template=self._settings.chat_template)
        found = self._streams[source]
        self._check(source, int(found.max()), vocabulary)
        return found

    def windows(self, source: ModelSource) -> Windows:
        """The finite set of windows that quality is measured on, in the order in which they are drawn."""
        if source not in self._windows:
            tokens, longest = self._open(source)
            self._windows[source] = protocols.draw(
                self._corpus,
                self._protocol,
                tokens,
                max_windows=self._settings.max_windows,
                max_length=longest,
                chat_template=self._settings.chat_template,
            )
        return self._windows[source]

    def check(self, source: ModelSource, vocabulary: int) -> None:
        """:class:`UsageError` where a window has a token beyond the ``vocabulary`` that the model knows."""
        pieces = (piece for window in self.windows(source).drawn for piece in window.pieces)
        self._check(source, max(int(piece.tokens.max()) for piece in pieces), vocabulary)

    def _check(self, source: ModelSource, highest: int, vocabulary: int) -> None:
        if highest >= vocabulary:
            raise UsageError(
                f"the tokenizer of {source.short} gives token {highest}, but the model knows {vocabulary}: "
                f"they do not belong together"
            )

    def _open(self, source: ModelSource) -> tuple[Tokens, int | None]:
        from pytest_quant.engines.loading import open_tokens

        if source not in self._opened:
            self._opened[source] = open_tokens(source)
        return self._opened[source]

    @cached_property
    def _corpus(self) -> Corpus:
        return texts.load(self._settings.corpus, documents=self._protocol.by_document)
