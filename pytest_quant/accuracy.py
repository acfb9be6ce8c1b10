"""Accuracy of a format on tasks of lm-eval: its items are answered beside the reference, as many as the gates need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pytest_quant.distribution.one_at_a_time import first_word, turn
from pytest_quant.engines.memory import give_back, is_out_of_memory
from pytest_quant.engines.source import ModelSource
from pytest_quant.environment import stack
from pytest_quant.errors import NotFinite, NotMeasured, ProofFailed, QuantError, UsageError
from pytest_quant.formats import kv_cache
from pytest_quant.identity import reference_runs_on
from pytest_quant.metrics.accuracy import ItemScore, task_accuracy
from pytest_quant.metrics.answer import Answer
from pytest_quant.tasks import chat, harness, language_model, population, scoring
from pytest_quant.tasks.answers import Answers, AnswersKey
from pytest_quant.tasks.asked import Asked
from pytest_quant.tasks.catalog import Catalog
from pytest_quant.tasks.population import Item, Population
from pytest_quant.tasks.scoring import Reply

if TYPE_CHECKING:
    from pytest_quant.gates.gate import Gate
    from pytest_quant.hardware import Device
    from pytest_quant.model import ModelHandle
    from pytest_quant.progress import Progress
    from pytest_quant.settings import Settings
    from pytest_quant.spec import ModelSpec
    from pytest_quant.turns import Turns

_SHOWN = 20
"""Items that are told of by name where the answers differ."""
_AHEAD, _AHEAD_AT_LEAST = 4, 256
"""How many times the items that are asked for the reference answers, and how many at least, where it has to be loaded
in the place of the format for them."""


@dataclass(frozen=True, eq=False)
class _Question:
    """A task as one model's reference and formats are asked it."""

    population: Population
    known: Answers
    """The reference's replies."""
    prompts: Sequence[str]
    """All of them, without what they are continued with: their lengths say how many fit at once."""


class Accuracy:
    """Asks items on demand; what was answered serves every later gate on the same task."""

    def __init__(
        self,
        settings: Settings,
        device: Device,
        turns: Turns,
        fingerprint: Callable[[ModelSource], str],
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._device = device
        self._turns = turns
        self._fingerprint = fingerprint
        self._progress = progress
        self._catalog = Catalog(progress)
        self._populations: dict[tuple[Asked, ModelSource | None], Population] = {}
        self._questions: dict[tuple[ModelSpec, Asked], _Question] = {}
        self._samples: dict[tuple[ModelSpec, str, Asked], Items] = {}
        self._tokenizers: WeakKeyDictionary[ModelHandle, Any] = WeakKeyDictionary()
        self._tokens: dict[ModelSource, Any] = {}

    def sample(self, spec: ModelSpec, format_name: str, gate: Gate) -> Items:
        """The task's items, with what both models have answered so far.

        Raises :class:`UsageError` for a task that is unknown or has no accuracy to compare, :class:`NotMeasured` where
        its documents cannot be had, ``Unsupported`` where lm-eval is not installed or the format cannot run here.
        """
        if format_name == spec.reference:
            raise UsageError(f"{format_name} is the reference itself: its difference from the reference is 0")
        asked = Asked.of(gate, self._settings.tasks)
        key = (spec, format_name, asked)
        if key not in self._samples:
            self._samples[key] = Items(self, spec, format_name, self._question(spec, asked))
        return self._samples[key]

    def forget(self, spec: ModelSpec) -> None:
        """Forget every answer of a model and its reference: somebody changed one of them."""
        self._samples = {key: each for key, each in self._samples.items() if key[0] != spec}
        self._questions = {key: each for key, each in self._questions.items() if key[0] != spec}

    def format(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in the format, in the place of the reference where both do not fit."""
        return self._turns.format(spec, format_name)

    def replies(
        self, handle: ModelHandle, spec: ModelSpec, question: _Question, items: Sequence[Item]
    ) -> Mapping[Item, Reply]:
        """What a model says to items, asked together; these in smaller batches where memory does not suffice."""
        format_name = handle.format.name
        if handle not in self._tokenizers:
            self._tokenizers[handle] = language_model.own_tokenizer(handle.loaded)
        tokenizer = self._tokenizers[handle]
        who = f"the {format_name} {'reference' if format_name == spec.reference else 'model'}"
        size = self._prompts_at_once(handle, question)
        while True:
            try:
                with harness.silence():
                    lm = language_model.wrap(handle.loaded, format_name, tokenizer, size)
                    found = scoring.score(lm, who, question.population, items, str(lm.device))
                return dict(zip(items, found, strict=True))
            except NotFinite as error:
                if format_name != spec.reference:
                    raise
                raise NotMeasured(str(error)) from None
            except Exception as error:
                if isinstance(error, QuantError) or not is_out_of_memory(error) or size == 1:
                    raise
            size //= 2
            give_back(self._device)

    def block(self, handle: ModelHandle, question: _Question) -> int:
        """How many items are asked together, so that each has the same company in every run."""
        at_once = self._prompts_at_once(handle, question)
        return 1 if at_once == 1 else language_model.BLOCK

    def learn(self, spec: ModelSpec, format_name: str, question: _Question, items: Sequence[Item]) -> None:
        """Have the reference answer those of the first items that it has not answered yet, in their blocks; of several
        workers one at a time, so that no item is answered twice in a run.

        Where it has to be loaded for that in the place of the format, it answers more of them than are asked for, each
        time four times as many: a task of 14,000 items then takes four loads at most, and one that is decided by a few
        hundred is not answered to its end. What it said serves every format."""
        known, together = question.known, self._settings.together
        if all(item in known for item in items):
            return
        with turn(together, f"answers-{known.file.stem}"):
            if together is not None:
                known.reread()
            try:
                self._learn(spec, format_name, question, items)
            finally:
                known.save()

    def _learn(self, spec: ModelSpec, format_name: str, question: _Question, items: Sequence[Item]) -> None:
        known, order = question.known, question.population.order
        if all(item in known for item in items):
            return
        reference = self._turns.reference(spec, format_name)
        size = self.block(reference, question)
        if self._turns.are_taken(spec, format_name):
            items = order[: max(_AHEAD * len(items), _AHEAD_AT_LEAST)]
        for place, item in enumerate(items):
            if item in known:
                continue
            start = place // size * size
            self.show(spec, spec.reference, question, start)
            known.learn(self.replies(reference, spec, question, order[start : start + size]))

    def show(self, spec: ModelSpec, format_name: str, question: _Question, answered: int) -> None:
        of = question.population
        self._progress.show(f"{format_name}: {spec.source.short} on {of.name}, {answered}/{len(of.order)} items")

    def _prompts_at_once(self, handle: ModelHandle, question: _Question) -> int:
        alone = handle.format.input_activations is not None
        return language_model.prompts_at_once(handle.loaded, handle.tokenizer, question.prompts, alone=alone)

    def _question(self, spec: ModelSpec, asked: Asked) -> _Question:
        if (spec, asked) not in self._questions:
            of = self._population(spec.source, asked)
            runs_on = reference_runs_on(spec, self._device)
            key = AnswersKey(self._fingerprint(spec.source), spec.reference, runs_on, harness.installed(), of.identity)
            folder = self._settings.cache_dir / "runs" / stack(self._device) / "tasks"
            prompts = [str(each[0].args[0]) for each in of.requests.values()]
            together, name = self._settings.together, f"answers-{key.digest}"
            with turn(together, name):
                known = Answers(folder, key, of)
                if first_word(together, name, len(known.stored)) == 0:
                    known.stored = frozenset()  # another worker of this run wrote them
            self._questions[spec, asked] = _Question(of, known, prompts)
        return self._questions[spec, asked]

    def _population(self, source: ModelSource, asked: Asked) -> Population:
        key = (asked, source if asked.apply_chat_template else None)
        if key not in self._populations:
            asked.check()
            template = chat.of(self._tokenizer(source), source.short) if asked.apply_chat_template else None
            found = self._catalog.load(asked)
            self._progress.show(f"making the prompts of {found.name}")
            self._populations[key] = population.build(found, asked, template)
        return self._populations[key]

    def _tokenizer(self, source: ModelSource) -> Any:
        """The base model's, whichever format asks first."""
        from pytest_quant.engines.loading import open_tokens

        if source not in self._tokens:
            self._tokens[source] = open_tokens(source)[0].tokenizer
        return self._tokens[source]


class Items:
    """A task's items in their drawn order, answered by a format and its reference as far as was asked."""

    noun = "items"

    def __init__(self, room: Accuracy, spec: ModelSpec, format_name: str, question: _Question) -> None:
        self._room = room
        self._spec = spec
        self._format = format_name
        self._question = question
        self._replies: dict[Item, Reply] = {}
        self._drawn = 0

    @property
    def total(self) -> int:
        return len(self._question.population.order)

    @property
    def drawn(self) -> int:
        return self._drawn

    @property
    def telling(self) -> bool:
        """Whether one of the models has something right, and they differ in what they give the choices."""
        pairs = self._pairs()
        return any(theirs.score or ours.score for theirs, ours in pairs) and not _alike(pairs)

    @property
    def reference_stored(self) -> int:
        """Of the drawn items, those that the reference answered in an earlier run."""
        return sum(item in self._question.known.stored for item in self._items())

    def extend(self, count: int) -> None:
        """Have both models answer up to ``count`` more. Raises :class:`NotMeasured` where one of them cannot."""
        goal = min(self._drawn + count, self.total)
        order = self._question.population.order
        try:
            self._room.learn(self._spec, self._format, self._question, order[:goal])
            handle = self._room.format(self._spec, self._format)
            size = self._room.block(handle, self._question)
            for start in range(self._drawn // size * size, goal, size):
                items = order[start : start + size]
                if any(item not in self._replies for item in items):
                    self._room.show(self._spec, self._format, self._question, start)
                    self._replies.update(self._room.replies(handle, self._spec, self._question, items))
        finally:
            self._question.known.save()
        self._drawn = goal

    def answer(self, alpha: float) -> Answer:
        """Drop, recovery and the reference's accuracy. :class:`ProofFailed` for a format that gives every choice of all
        items exactly the likelihood that the reference gives it; :class:`NotMeasured` where stored answers were scored
        in another way than those of now."""
        pairs = self._pairs()
        self._require_one_scoring(pairs)
        if self._drawn == self.total and _alike(pairs):
            raise ProofFailed(
                f"{self._format} gives all {self.total} items of {self._question.population.name} exactly the "
                f"{self._spec.reference} reference's likelihoods: the reference was measured by mistake, or the format "
                f"was not applied (a KV cache format is reached only by prompts of more than {kv_cache.FIRST} tokens)"
            )
        weights = [self._question.population.weights[item.task] for item in self._items()]
        scores = [
            ItemScore(theirs.score, ours.score, weight) for (theirs, ours), weight in zip(pairs, weights, strict=True)
        ]
        equal = set(self._question.population.weights.values()) == {1.0}
        quantities, figures = task_accuracy(scores, self.total, alpha, equal=equal)
        return Answer(
            main="drop",
            quantities=quantities,
            figures=figures,
            scores=[each.format for each in scores],
            weights=weights,
            reference_scores=[each.reference for each in scores],
        )

    def replies(self, *, reference: bool) -> Mapping[Item, Reply]:
        """What the format, or its reference, said to each item drawn so far."""
        return {item: self._question.known[item] if reference else self._replies[item] for item in self._items()}

    def identity(self) -> Mapping[str, Any]:
        """What the task is, by the hashes of its parts."""
        return self._question.population.identity

    def detail(self) -> Mapping[str, Any]:
        """For people: how the task was asked, and items that only one of the models got right (or more of)."""
        of = self._question.population
        changed = [(item, *pair) for item, pair in zip(self._items(), self._pairs(), strict=True)]
        lost = [self._told(*each) for each in changed if each[1].score > each[2].score]
        gained = [self._told(*each) for each in changed if each[1].score < each[2].score]
        return {
            "task": of.name,
            "metric": of.metric,
            "filter": of.filter,
            "num_fewshot": of.num_fewshot,
            "lost_items": len(lost),
            "gained_items": len(gained),
            "lost": lost[:_SHOWN],
            "gained": gained[:_SHOWN],
        }

    def _items(self) -> Sequence[Item]:
        return self._question.population.order[: self._drawn]

    def _pairs(self) -> list[tuple[Reply, Reply]]:
        """The reference's reply and the format's to each drawn item."""
        theirs, ours = self.replies(reference=True), self.replies(reference=False)
        return [(theirs[item], ours[item]) for item in self._items()]

    def _require_one_scoring(self, pairs: Sequence[tuple[Reply, Reply]]) -> None:
        known = self._question.known
        for item, (theirs, ours) in zip(self._items(), pairs, strict=True):
            same = theirs.likelihoods and theirs.likelihoods == ours.likelihoods
            if same and theirs.score != ours.score and item in known.stored:
                raise NotMeasured(
                    f"both models give the choices of {item.task} {item.doc_id} the same likelihoods, but "
                    f"{theirs.score:g} and {ours.score:g} of the metric: the reference's answers were stored when "
                    f"other code scored them; delete {known.file}"
                )

    def _told(self, item: Item, theirs: Reply, ours: Reply) -> dict[str, Any]:
        of = self._question.population
        return {
            "task": item.task,
            "doc_id": item.doc_id,
            "question": scoring.question(of, item),
            "target": scoring.target(of, item),
            "reference": theirs.said,
            "format": ours.said,
        }


def _alike(pairs: Sequence[tuple[Reply, Reply]]) -> bool:
    """Whether nothing but likelihoods was asked for, and none of them differs."""
    return all(theirs.likelihoods and theirs.likelihoods == ours.likelihoods for theirs, ours in pairs)
