"""Hashes of what a task is: the same on every machine, whatever it was read from."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "num_fewshot", "tag", "task_alias")
"""Of a config: where the documents come from, which are hashed themselves, and what changes no number. The few-shot
count has a place of its own."""
_SHORT = 16


def config(task: Any) -> str:
    """Of a task's resolved config: functions by their source, and nothing of the files that it was read from."""
    told = {name: value for name, value in vars(task.config).items() if name not in _PLACES}
    told["metadata"] = {name: each for name, each in (told.get("metadata") or {}).items() if name != "config_source"}
    return of(_plain(told))


def documents(docs: Iterable[Mapping[str, Any]]) -> str:
    """Of documents in their order."""
    digest = hashlib.sha256()
    for doc in docs:
        digest.update(json.dumps(_plain(doc), sort_keys=True).encode("utf-8") + b"\n")
    return digest.hexdigest()[:_SHORT]


def of(value: Any) -> str:
    """Of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()[:_SHORT]


def _plain(value: Any) -> Any:
    """The value as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_plain(each), sort_keys=True) for each in value)
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if isinstance(value, functools.partial):
        return ["partial", _plain(value.func), _plain(value.args), _plain(value.keywords)]
    if callable(value):
        return _source(value)
    if hasattr(value, "tolist"):  # numpy's
        return _plain(value.tolist())
    if hasattr(value, "__dict__"):
        return {"type": type(value).__name__, **{name: _plain(each) for name, each in vars(value).items()}}
    return type(value).__name__


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return str(getattr(function, "__qualname__", type(function).__name__))
