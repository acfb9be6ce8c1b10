"""Tasks of one's own on disk: their YAML and a few documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def write_task(folder: Path, name: str, docs: Sequence[Mapping[str, Any]], **config: Any) -> Path:
    """A task's YAML file and its documents beside it; ``config`` replaces or adds keys, ``None`` leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    told = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
        **config,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in told.items() if value is not None}), encoding="utf-8")
    return file


def continuations(count: int) -> list[dict[str, Any]]:
    """Beginnings of the sentence that the tiny model learnt, with the right end among four."""
    words = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog."]
    docs = []
    for number in range(count):
        cut = 2 + number % 6
        start = " ".join(words[max(cut - 2 - number % 3, 0) : cut])
        ends = [" ".join(words[(cut + shift) % 9 :][:2]) for shift in (0, 3, 5, 7)]
        docs.append({"question": f"{start}", "choices": ends[number % 4 :] + ends[: number % 4], "answer": -number % 4})
    return docs
