"""lm-eval by itself, and through pytest-quant, on the same items: the same answers, and how long each takes.

    python benchmarks/lm_eval_alone.py .models/SmolLM2-135M-Instruct [--items 40] [--fewshot 2] [--task NAME ...]

Without ``--task`` a small task of its own is written and asked: capitals by multiple choice. lm-eval by itself is its
``simple_evaluate`` with its ``hf`` model and batch size 1; nf4 is loaded there by transformers and bitsandbytes alone.
The times are of the answers, without loading models or finding tasks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from pytest_quant.engines.source import ModelSource
from pytest_quant.markers import gate
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec
from pytest_quant.tasks import harness

CAPITALS = {
    **{"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo"},
    **{"China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Portugal": "Lisbon"},
    **{"Austria": "Vienna", "Ireland": "Dublin", "Sweden": "Stockholm", "Norway": "Oslo", "Poland": "Warsaw"},
    **{"Denmark": "Copenhagen", "Hungary": "Budapest", "Cuba": "Havana", "Peru": "Lima", "Canada": "Ottawa"},
}
YAML = """\
task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def write_task(folder: Path, items: int) -> None:
    """The task's file and its documents."""
    cities = list(CAPITALS.values())
    docs = []
    for number in range(items):
        country = list(CAPITALS)[number % len(CAPITALS)]
        right = cities.index(CAPITALS[country])
        choices = [cities[(right + shift) % len(cities)] for shift in (0, 3 + number // 20, 7, 11)]
        turn = number % 4
        docs.append({"country": country, "choices": choices[turn:] + choices[:turn], "answer": -turn % 4})
    data = folder / "capitals.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    (folder / "capitals.yaml").write_text(YAML.format(data=data), encoding="utf-8")


def alone(model: Any, tokenizer: Any, task: str, folder: str | None, shots: int, limit: int) -> tuple[dict, float]:
    """Each item's log-likelihoods and score by lm-eval itself, by task and document; and the seconds."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with harness.silence():
        manager = TaskManager(include_path=folder, include_defaults=folder is None)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
        started = time.perf_counter()
        found = simple_evaluate(
            lm, tasks=[task], num_fewshot=shots, limit=limit, bootstrap_iters=0, task_manager=manager
        )
        seconds = time.perf_counter() - started
    answers = {}
    for name, samples in found["samples"].items():
        for each in samples:
            lls = tuple(answer[0][0] for answer in each["resps"])
            answers[name, each["doc_id"]] = (lls, each[each["metrics"][0]])
    return answers, seconds


def load(folder: str, name: str) -> Any:
    """The model as transformers alone loads it, computing in FP32."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    given = {} if name == "fp32" else {"quantization_config": config}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--fewshot", type=int, default=2)
    parser.add_argument("--task", action="append")
    told = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(told.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = None if told.task else temporary
        if folder:
            write_task(Path(temporary), told.items)
        session = Session(Settings(cache_dir=Path(temporary) / "cache"), Quiet())
        spec = ModelSpec(ModelSource(told.model), reference="fp32")
        for task in told.task or ["capitals"]:
            asked = {"task": task, "limit": told.items, "num_fewshot": told.fewshot}
            if folder:
                asked["include_path"] = folder
            session.model(spec, "fp32"), session.model(spec, "nf4")
            sample = session.sample(spec, "nf4", gate("task_accuracy", {"max_drop": 0.9, **asked}))
            started = time.perf_counter()
            sample.extend(sample.total)
            ours = time.perf_counter() - started
            theirs = 0.0
            for name, reference in (("fp32", True), ("nf4", False)):
                model = load(told.model, name)
                found, seconds = alone(model, tokenizer, task, folder, told.fewshot, told.items)
                theirs += seconds
                same = 0
                for item, reply in sample.replies(reference=reference).items():
                    same += (reply.likelihoods, reply.score) == found[item.task, item.doc_id]
                right = sum(score for _, score in found.values()) / len(found)
                print(f"{task} {name}: {same} of {len(found)} items the same to the bit; accuracy {right:.3f}")
                del model
            print(f"{task}: lm-eval alone {theirs:.1f} s for both models, through pytest-quant {ours:.1f} s")


if __name__ == "__main__":
    main()
