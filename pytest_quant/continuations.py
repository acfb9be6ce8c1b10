"""Greedy continuations of prompts, by a format and by its reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quant.corpora import prompts as reading
from pytest_quant.corpora.corpus import Conversation
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.tokens import Tokens
from pytest_quant.errors import NotFinite, NotMeasured, UsageError
from pytest_quant.gates.gate import Gate
from pytest_quant.metrics.answer import Answer
from pytest_quant.metrics.generation import Match, compare, generation_match
from pytest_quant.population import Population
from pytest_quant.progress import Progress
from pytest_quant.settings import Settings
from pytest_quant.shortening import shortened
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.model import ModelHandle
    from pytest_quant.turns import Turns

FROM_CORPUS = 32
"""Prompts that are taken from the corpus unless a limit says how many."""
CORPUS_PROMPT = 32
"""Tokens of each of these."""
_SHOWN = 200
"""Characters of a prompt that is shown."""
_LISTED = 100
"""Prompts that are listed with how they changed, at most."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the models get it, and as people do."""

    tokens: NDArray[np.int64]
    text: str
    place: str
    """Where it was given."""


@dataclass(frozen=True)
class Prompts:
    """All prompts of a gate in their own order."""

    all: Sequence[Prompt]
    max_new_tokens: int
    chat_template: bool

    @property
    def sha256(self) -> str:
        """Of the token ids."""
        ids = json.dumps([prompt.tokens.tolist() for prompt in self.all])
        return hashlib.sha256(ids.encode()).hexdigest()


@dataclass(frozen=True)
class Pair:
    """What both models said after one prompt."""

    match: Match
    empty: tuple[bool, bool]
    """Whether the reference, and whether the format, said nothing but its end."""
    change: Mapping[str, Any] | None
    """How they differ, for people; None where they do not."""


@dataclass(frozen=True)
class _Facts:
    """What is asked of a model that need not be in memory any more."""

    vocabulary: int
    max_positions: int | None
    has_cache_format: bool
    end_tokens: tuple[int, ...]
    tokenizer: Any


class Continuations:
    """Has prompts continued on demand; what the reference said serves every format."""

    def __init__(
        self,
        settings: Settings,
        population: Population,
        turns: Turns,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._population = population
        self._turns = turns
        self._progress = progress
        self._facts: dict[tuple[ModelSpec, str], _Facts] = {}
        self._opened: dict[ModelSource, Tokens] = {}
        self._prompts: dict[tuple[ModelSource, tuple[tuple[str, Any], ...]], Prompts] = {}
        self._samples: dict[tuple[ModelSpec, str, tuple[tuple[str, Any], ...]], ContinuationSample] = {}
        self._said: dict[ModelSpec, dict[tuple[bytes, int], NDArray[np.int64]]] = {}

    def sample(self, spec: ModelSpec, format_name: str, gate: Gate) -> ContinuationSample:
        """The gate's prompts with what was said after them so far.

        :class:`UsageError` for prompts that cannot be read, have no tokens or do not fit the model.
        """
        if format_name == spec.reference:
            raise UsageError(f"{format_name} is the reference itself: it continues every prompt as the reference does")
        key = (spec, format_name, gate.parameters)
        if key not in self._samples:
            format = self._known(spec, format_name, self._turns.format(spec, format_name))
            if (spec, spec.reference) not in self._facts:
                self._known(spec, spec.reference, self._turns.reference(spec, format_name))
            reference = self._facts[spec, spec.reference]
            prompts = self._prompts_of(spec, gate)
            for name, facts in ((format_name, format), (spec.reference, reference)):
                _check(spec, name, facts, prompts)
            said = self._said.setdefault(spec, {})
            self._samples[key] = ContinuationSample(
                spec, format_name, prompts, reference, self._turns, self._progress, said
            )
        return self._samples[key]

    def forget(self, spec: ModelSpec) -> None:
        """Forget all that a model and its reference said: somebody changed one of them."""
        self._samples = {key: sample for key, sample in self._samples.items() if key[0] != spec}
        self._facts = {key: facts for key, facts in self._facts.items() if key[0] != spec}
        self._said.pop(spec, None)

    def _known(self, spec: ModelSpec, name: str, handle: ModelHandle) -> _Facts:
        loaded = handle.loaded
        self._facts[spec, name] = facts = _Facts(
            loaded.vocabulary,
            loaded.max_positions,
            handle.format.kv_cache is not None,
            tuple(sorted(loaded.end_tokens)),
            handle.tokenizer,
        )
        return facts

    def _prompts_of(self, spec: ModelSpec, gate: Gate) -> Prompts:
        key = (spec.source, gate.parameters)
        if key not in self._prompts:
            told = dict(gate.parameters)
            limit, most = told.get("limit"), int(told.get("max_new_tokens", 32))
            for name, number in (("limit", limit), ("max_new_tokens", most)):
                if number is not None and number < 1:
                    raise UsageError(f"{name}={number} leaves nothing to compare; give 1 or more")
            chat = bool(told.get("chat_template", False))
            given = told.get("prompts")
            if chat and given is None:
                raise UsageError(
                    "generation_match(chat_template=True) needs prompts=: the beginning of a corpus is no message of "
                    "a user"
                )
            found = self._from_corpus(spec, limit) if given is None else self._given(spec, given, limit, chat=chat)
            self._prompts[key] = Prompts(found, most, chat)
        return self._prompts[key]

    def _from_corpus(self, spec: ModelSpec, limit: int | None) -> list[Prompt]:
        """Beginnings of equal parts of the run's corpus, each after the BOS token where the tokenizer puts one."""
        import numpy as np

        reference = self._facts[spec, spec.reference]
        stream = self._population.stream(spec.source, reference.vocabulary)
        count, bos = limit or FROM_CORPUS, self._tokens(spec).bos
        if len(stream) < count * CORPUS_PROMPT:
            raise UsageError(
                f"{count} prompts of {CORPUS_PROMPT} tokens need a corpus of {count * CORPUS_PROMPT}, which has "
                f"{len(stream)}; give a smaller limit, prompts, or a longer text (--quant-corpus)"
            )
        found = []
        for number in range(count):
            start = number * len(stream) // count
            piece = stream[start : start + CORPUS_PROMPT]
            text = str(reference.tokenizer.decode(piece))
            whole = piece if bos is None or piece[0] == bos else np.insert(piece, 0, bos)
            found.append(Prompt(whole, text, f"prompt {number + 1} of the corpus"))
        return found

    def _given(self, spec: ModelSpec, given: str | tuple[str, ...], limit: int | None, *, chat: bool) -> list[Prompt]:
        tokens, found = self._tokens(spec), []
        for each in reading.read(given)[:limit]:
            messages = _messages(each.prompt, chat=chat)
            try:
                if messages is None:
                    encoded = tokens.stream(str(each.prompt))
                else:
                    encoded = tokens.bare(_chat(tokens, messages, each, spec.source.short))
            except NotMeasured:
                encoded = None
            if encoded is None or each.prompt == "":
                raise UsageError(f"{each.place}: it has no tokens; leave it out")
            text = str(each.prompt) if messages is None else messages[-1]["content"]
            found.append(Prompt(encoded, text, each.place))
        return found

    def _tokens(self, spec: ModelSpec) -> Tokens:
        from pytest_quant.engines.loading import open_tokens

        if spec.source not in self._opened:
            self._opened[spec.source] = open_tokens(spec.source)[0]
        return self._opened[spec.source]


class ContinuationSample:
    """The prompts of one gate in a fixed random order, and how both models continued the first of them.

    One prompt is continued at a time: in a batch it would be padded, and rounded otherwise.
    """

    noun = "prompts"

    def __init__(
        self,
        spec: ModelSpec,
        format_name: str,
        prompts: Prompts,
        reference: _Facts,
        turns: Turns,
        progress: Progress,
        said: dict[tuple[bytes, int], NDArray[np.int64]],
    ) -> None:
        import numpy as np

        self._spec = spec
        self._format = format_name
        self._prompts = prompts
        self._tokenizer = reference.tokenizer
        self._turns = turns
        self._progress = progress
        self._said = said
        self._ends = list(reference.end_tokens)
        self._sha256 = prompts.sha256
        self._order = np.random.default_rng(int(self._sha256[:16], 16)).permutation(len(prompts.all))
        self._pairs: list[Pair] = []

    @property
    def total(self) -> int:
        return len(self._prompts.all)

    @property
    def drawn(self) -> int:
        return len(self._pairs)

    @property
    def telling(self) -> bool:
        """Whether the reference said anything so far."""
        return not all(pair.empty[0] for pair in self._pairs)

    @property
    def reference_stored(self) -> int:
        """None of the drawn prompts: what the reference said is kept for the session only."""
        return 0

    def extend(self, count: int) -> None:
        """Have both models continue up to ``count`` more prompts. :class:`NotFinite` where the format gives NaN,
        :class:`NotMeasured` where the reference does.

        The reference is first. Where it has to be loaded for that in the place of the format, it continues every prompt
        of the gate, so that it is loaded once for all formats."""
        prompts = [self._prompts.all[number] for number in self._order[self.drawn : self.drawn + count]]
        self._learn(prompts)
        model = self._turns.format(self._spec, self._format)
        for prompt in prompts:
            theirs = self._said[self._key(prompt)]
            self._pairs.append(self._pair(prompt, theirs, self._continued(model, prompt)))
            self._progress.show(
                f"{self._format}: continuing prompts of {self._spec.source.short} {self.drawn}/{self.total}"
            )

    def answer(self, alpha: float) -> Answer:
        """:class:`NotMeasured` where the reference ends every prompt of all at once: a format could not do worse. One
        that does so alone differs from it everywhere."""
        if self.drawn == self.total and not self.telling:
            raise NotMeasured(
                f"the {self._spec.reference} reference says nothing after any of {self.total} prompts: its first token "
                f"is its end; give prompts that ask for an answer (chat_template=True for a model tuned for chat)"
            )
        matches = [pair.match for pair in self._pairs]
        quantities, figures = generation_match(matches, self.total, alpha)
        if self._empty:
            figures = {**figures, "empty": float(self._empty)}
        return Answer("share", quantities, figures, [match.share for match in matches], [1.0] * self.drawn)

    def identity(self) -> Mapping[str, Any]:
        return {
            "prompts": self.total,
            "sha256": self._sha256,
            "max_new_tokens": self._prompts.max_new_tokens,
            "chat_template": self._prompts.chat_template,
            "end_tokens": self._ends,
        }

    def detail(self) -> Mapping[str, Any]:
        """``changed``: the prompts that are continued otherwise, those that differ first before the others, each with
        what both said, and what either said then; ``empty``: how many prompts neither model said anything after."""
        found = sorted((pair.change for pair in self._pairs if pair.change is not None), key=lambda it: it["first"])
        told: dict[str, Any] = {"changed": found[:_LISTED]} if found else {}
        return {**told, "empty": self._empty} if self._empty else told

    @property
    def _empty(self) -> int:
        """Prompts that neither model said anything after: they count as the same."""
        return sum(all(pair.empty) for pair in self._pairs)

    def _key(self, prompt: Prompt) -> tuple[bytes, int]:
        return prompt.tokens.tobytes(), self._prompts.max_new_tokens

    def _learn(self, prompts: Sequence[Prompt]) -> None:
        """Have the reference continue the prompts; all of the gate, where the format has to give way to it."""
        if all(self._key(prompt) in self._said for prompt in prompts):
            return
        model = self._turns.reference(self._spec, self._format)
        apart = self._turns.are_taken(self._spec, self._format)
        for prompt in self._prompts.all if apart else prompts:
            if self._key(prompt) not in self._said:
                self._said[self._key(prompt)] = self._continued(model, prompt)
                if apart:
                    self._progress.show(
                        f"{self._spec.reference}: continuing prompts of {self._spec.source.short} "
                        f"{len(self._said)}/{self.total}, alone: {self._format} does not fit beside it"
                    )

    def _continued(self, model: ModelHandle, prompt: Prompt) -> NDArray[np.int64]:
        name = model.format.name
        try:
            return model.loaded.continue_greedily(prompt.tokens, self._prompts.max_new_tokens, self._ends)
        except NotFinite as error:
            if name == self._spec.reference:
                raise NotMeasured(f"the {name} reference cannot continue {_shown(prompt)!r}: {error}") from None
            raise NotFinite(f"the {name} model cannot continue {_shown(prompt)!r}: {error}") from None

    def _pair(self, prompt: Prompt, reference: NDArray[np.int64], format: NDArray[np.int64]) -> Pair:
        match = compare(reference.tolist(), format.tolist())
        change = None
        if match.first is not None:
            decode = self._tokenizer.decode
            change = {
                "prompt": _shown(prompt),
                "first": match.first,
                "common": str(decode(reference[: match.first])),
                "reference": str(decode(reference[match.first :])),
                "format": str(decode(format[match.first :])),
            }
        return Pair(match, (self._is_empty(reference), self._is_empty(format)), change)

    def _is_empty(self, said: NDArray[np.int64]) -> bool:
        return all(int(token) in self._ends for token in said)


def _check(spec: ModelSpec, name: str, model: _Facts, prompts: Prompts) -> None:
    """That a model knows the tokens and has room for them."""
    if model.has_cache_format and prompts.max_new_tokens < 2:
        raise UsageError(f"max_new_tokens=1 reads nothing from the KV cache of {name}; give 2 or more")
    for prompt in prompts.all:
        if int(prompt.tokens.max()) >= model.vocabulary:
            raise UsageError(
                f"the tokenizer of {spec.source.short} gives token {int(prompt.tokens.max())}, but the model "
                f"knows {model.vocabulary}: they do not belong together"
            )
        if model.max_positions is not None and len(prompt.tokens) + prompts.max_new_tokens > model.max_positions:
            raise UsageError(
                f"{prompt.place}: its {len(prompt.tokens)} tokens and {prompts.max_new_tokens} new ones do not "
                f"fit the model's {model.max_positions} positions; shorten it, or give a smaller max_new_tokens"
            )


def _messages(prompt: str | Conversation, *, chat: bool) -> list[dict[str, str]] | None:
    """What goes through the chat template: a conversation up to its last question, or a text as such; None for a text
    that is continued as it is."""
    if isinstance(prompt, Conversation):
        messages = prompt.for_template()
        while len(messages) > 1 and messages[-1]["role"] == "assistant":
            messages.pop()
        return messages
    return [{"role": "user", "content": prompt}] if chat else None


def _chat(tokens: Tokens, messages: Sequence[Mapping[str, str]], given: reading.Given, model: str) -> str:
    """A prompt as the chat template writes it; :class:`UsageError` names its place."""
    if not tokens.can_chat:
        of = isinstance(given.prompt, Conversation)
        asked = "it is a conversation" if of else "it is to be a message (chat_template=True)"
        instead = "give texts" if of else "leave out chat_template"
        raise UsageError(
            f"{given.place}: {asked}, but the tokenizer of {model} has no chat template; {instead}, or use a model "
            f"tuned for chat"
        )
    try:
        return tokens.chat(messages, to_be_answered=True)
    except UsageError as error:
        raise UsageError(f"{given.place}: {error}") from error


def _shown(prompt: Prompt) -> str:
    return shortened(prompt.text, _SHOWN)
