"""examples/lm_eval_tasks.py, offline: lm-eval's own configs of its five tasks, with documents of the same columns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lm_eval")
ROOT = Path(__file__).parents[2]
WORDS = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog."]


def ends(number):
    """The right continuation of the sentence at place 0, and three wrong ones; of the first document all are the same,
    so that the first choice is taken, which is right: no model has nothing right."""
    cut = 3 + number % 4
    if number == 0:
        return " ".join(WORDS[:cut]), [WORDS[cut]] * 4
    return " ".join(WORDS[:cut]), [WORDS[(cut + shift) % len(WORDS)] for shift in (0, 2, 4, 6)]


def winogrande(number):
    start, choices = ends(number)
    sentence = f"{start} _ {' '.join(WORDS[5:])}"
    answer = 1 + number % 2
    options = choices[:2] if answer == 1 else choices[1::-1]
    return {"sentence": sentence, "option1": options[0], "option2": options[1], "answer": str(answer)}


def hellaswag(number):
    start, choices = ends(number)
    turn = number % 4
    return {
        "ind": number,
        "activity_label": "Running",
        "ctx_a": "A text goes on.",
        "ctx_b": start,
        "endings": choices[turn:] + choices[:turn],
        "label": str(-turn % 4),
    }


def arc(number):
    start, choices = ends(number)
    turn = number % 4
    told = {"text": choices[turn:] + choices[:turn], "label": list("ABCD")}
    return {"id": str(number), "question": start, "choices": told, "answerKey": "ABCD"[-turn % 4]}


def mmlu(number):
    start, choices = ends(number)
    return {"question": start, "subject": "anatomy", "choices": choices, "answer": number % 4}


TASKS = {
    "winogrande": ("winogrande/default.yaml", winogrande, ("train", "validation")),
    "hellaswag": ("hellaswag/hellaswag.yaml", hellaswag, ("train", "validation")),
    "arc_challenge": ("arc/arc_challenge.yaml", arc, ("train", "validation", "test")),
    "arc_easy": ("arc/arc_easy.yaml", arc, ("train", "validation", "test")),
    "mmlu_anatomy": ("mmlu/default/mmlu_anatomy.yaml", mmlu, ("dev", "test")),
    "mmlu_virology": ("mmlu/default/mmlu_virology.yaml", mmlu, ("dev", "test")),
}


@pytest.fixture
def local(tmp_path):
    """A folder of the tasks under their own names: lm-eval's files, with the documents read from here."""
    import lm_eval.tasks

    packaged = Path(lm_eval.tasks.__file__).parent
    for name, (file, made, splits) in TASKS.items():
        files = {}
        for split in splits:
            data = tmp_path / f"{name}-{split}.jsonl"
            data.write_text("".join(json.dumps(made(number)) + "\n" for number in range(10)))
            files[split] = str(data)
        told = {
            "include": str(packaged / file),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(told))
    group = {
        "group": "mmlu",
        "task": ["mmlu_anatomy", "mmlu_virology"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (tmp_path / "mmlu.yaml").write_text(yaml.safe_dump(group))
    return tmp_path


def test_every_gate_of_the_example(project, local):
    shutil.copy(ROOT / "examples" / "lm_eval_tasks.py", project.path / "lm_eval_tasks.py")
    example = (project.path / "lm_eval_tasks.py").read_text()
    # what the tiny model knows of such questions is another matter
    for tight in ("0.55", "0.35", "0.28", "0.45", "0.26"):
        assert f"min_accuracy={tight}" in example
        example = example.replace(f"min_accuracy={tight}", "min_accuracy=0.01")
    for tight in ("max_drop=0.02", "max_drop=0.03"):
        example = example.replace(tight, "max_drop=0.5")
    (project.path / "lm_eval_tasks.py").write_text(example.replace("min_recovery=0.97", "min_recovery=0.3"))
    project.ini(f"quant_model = {project.model}", f"quant_tasks = {local}")
    result, record = project.record("--quant-baseline", "lm_eval_tasks.py", "-k", "task_")
    found = {(each["identity"]["protocol"]["task"], each["format"]): each for each in record["measurements"]}
    assert {task for task, _ in found} == {"winogrande", "hellaswag", "arc_challenge", "arc_easy", "mmlu"}
    assert len(found) == 10
    assert {each["verdict"] for each in found.values()} == {"passed"}
    assert result.ret == 0
    told = {task: each["identity"]["protocol"] for (task, _), each in found.items()}
    assert told["hellaswag"]["metric"] == told["arc_challenge"]["metric"] == "acc_norm"
    assert told["mmlu"]["tasks"].keys() == {"mmlu_anatomy", "mmlu_virology"}
    assert all(part["num_fewshot"] == 5 for each in told.values() for part in each["tasks"].values())


def test_the_perplexity_of_the_example(project):
    """``lm-eval-word`` on documents of one's own stands for WikiText-2, which is not here."""
    shutil.copy(ROOT / "examples" / "lm_eval_tasks.py", project.path / "lm_eval_tasks.py")
    documents = ["The quick brown fox jumps over the lazy dog. " * 4] * 6
    (project.path / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    result, record = project.record(
        *("--quant-baseline", "lm_eval_tasks.py", "-k", "wikitext"),
        *("-o", "quant_protocol=lm-eval-word", "-o", "quant_corpus=docs.jsonl", "-o", "quant_max_windows="),
    )
    assert result.ret in (0, 1)  # what such a model loses is another matter
    assert {each["format"] for each in record["measurements"]} == {"int8", "nf4"}
    assert all(each["verdict"] in ("passed", "failed") for each in record["measurements"])
    assert all(each["identity"]["protocol"]["name"] == "lm-eval-word-512" for each in record["measurements"])
