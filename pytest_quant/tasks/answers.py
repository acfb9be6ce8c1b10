"""What a reference said to the items of a task: kept for later runs, so that it need not be loaded again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quant import atomic
from pytest_quant.errors import StoreWarning
from pytest_quant.tasks.population import Item, Population
from pytest_quant.tasks.scoring import Reply

_SCHEMA = 1
_LONGEST = 1000


@dataclass(frozen=True)
class AnswersKey:
    """Whose answers, to what, and by which version of lm-eval."""

    model: str
    """Fingerprint."""
    reference: str
    engine: str
    lm_eval: str
    task: Mapping[str, Any]
    """The population's identity."""

    def plain(self) -> dict[str, Any]:
        named = {"model": self.model, "reference": self.reference, "engine": self.engine, "lm_eval": self.lm_eval}
        return {**named, "task": json.loads(json.dumps(self.task))}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode("utf-8")).hexdigest()[:24]


class Answers:
    """The reference's replies by item; what is on the disk is checked before it is believed."""

    def __init__(self, folder: Path, key: AnswersKey, population: Population) -> None:
        self.file = folder / f"{key.digest}.json"
        self._key = key
        self._population = population
        try:
            self._replies = self._read()
        except ValueError as error:
            self._replies = {}
            warnings.warn(
                StoreWarning(f"the reference's answers in {self.file} are not used, and written anew: {error}"),
                stacklevel=2,
            )
        self.stored = frozenset(self._replies)
        """The items that an earlier run's reference answered."""
        self._saved = len(self._replies)

    def __contains__(self, item: object) -> bool:
        return item in self._replies

    def __getitem__(self, item: Item) -> Reply:
        return self._replies[item]

    def __len__(self) -> int:
        return len(self._replies)

    def learn(self, replies: Mapping[Item, Reply]) -> None:
        """Add what was not known."""
        self._replies = {**replies, **self._replies}

    def reread(self) -> None:
        """Add what others have stored meanwhile."""
        with contextlib.suppress(ValueError):
            self.learn({item: reply for item, reply in self._read().items() if item not in self._replies})

    def save(self) -> None:
        """Write what was learned, beside what others wrote in the meantime; where that cannot be, a
        :class:`StoreWarning` says why."""
        if len(self._replies) == self._saved:
            return
        try:
            known = {**self._read(), **self._replies}
        except ValueError:  # that was said when it was read first, or is not from this version
            known = self._replies
        items: dict[str, dict[str, list[Any]]] = {}
        for item, reply in sorted(known.items(), key=lambda pair: (pair[0].task, pair[0].doc_id)):
            kept = [reply.score, reply.said, list(reply.likelihoods)]
            items.setdefault(item.task, {})[str(item.doc_id)] = kept
        content = json.dumps({"schema": _SCHEMA, "key": self._key.plain(), "items": items}, allow_nan=False, indent=0)
        try:
            atomic.replace(self.file, content.encode("utf-8"), prefix="task")
        except OSError as error:
            warnings.warn(
                StoreWarning(f"the reference's answers were not stored in {self.file}: {atomic.cause(error)}"),
                stacklevel=2,
            )
        self._saved = len(self._replies)

    def _read(self) -> dict[Item, Reply]:
        """What the file holds, nothing where there is none; :class:`ValueError` for one that cannot be believed."""
        try:
            return self._parsed(json.loads(self.file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(str(error)[:200]) from error

    def _parsed(self, data: Any) -> dict[Item, Reply]:
        """:class:`ValueError` for anything that this version would not have written."""
        if not isinstance(data, dict) or data.get("schema") != _SCHEMA or data.get("key") != self._key.plain():
            raise ValueError("it is not of this model, task and version")
        if not isinstance(data.get("items"), dict):
            raise ValueError("it has no items")
        found = {}
        for task, replies in data["items"].items():
            if not isinstance(replies, dict):
                raise ValueError(f"the answers to {task!r} are no object")
            for doc_id, kept in replies.items():
                item = Item(task, int(doc_id))
                if item not in self._population.requests:
                    raise ValueError(f"{task} has no item {doc_id}")
                found[item] = _reply(kept, len(self._population.requests[item]))
        return found


def _reply(kept: Any, requests: int) -> Reply:
    if not isinstance(kept, list) or len(kept) != 3:
        raise ValueError("an answer has other parts")
    score, said, likelihoods = kept
    if not _is_number(score) or not 0.0 <= score <= 1.0:
        raise ValueError(f"a score is {str(score)[:20]}")
    if not isinstance(said, str) or len(said) > _LONGEST:
        raise ValueError("an answer is no text")
    if not isinstance(likelihoods, list) or len(likelihoods) not in (0, requests):
        raise ValueError("an answer has other likelihoods than requests")
    if not all(_is_number(each) for each in likelihoods):
        raise ValueError("a likelihood is no finite number")
    return Reply(float(score), said, tuple(float(each) for each in likelihoods))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
