"""Tasks by name, by file and in groups; what cannot be found or has no accuracy to compare."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from task_files import continuations, write_task

from pytest_quant.errors import NotMeasured, Unsupported, UsageError
from pytest_quant.progress import Quiet
from pytest_quant.tasks import harness, population
from pytest_quant.tasks.asked import Asked
from pytest_quant.tasks.catalog import Catalog

pytest.importorskip("lm_eval")


@pytest.fixture
def catalog(monkeypatch):
    """One whose index of lm-eval's own tasks is empty: making it takes half a minute."""
    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager
    made = []

    def manager(include_path=None, include_defaults=True):
        made.append((include_path, include_defaults))
        return whole(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    manager.load = whole.load
    found = Catalog(Quiet())
    found.made = made
    found.__dict__["_files"] = {}
    return found


def build(catalog, **asked):
    told = Asked(**{key: str(value) if isinstance(value, Path) else value for key, value in asked.items()})
    return population.build(catalog.load(told), told, None)


def write_group(folder, **config):
    told = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}], **config}
    (folder / "all.yaml").write_text(yaml.safe_dump({"group": "all", **told}))


@pytest.fixture
def pair(tmp_path):
    """Two tasks of 4 and 12 items."""
    write_task(tmp_path, "few", continuations(4), tag=["some"])
    write_task(tmp_path, "many", continuations(12), tag=["some"])
    return tmp_path


def test_by_name_without_the_index(catalog, pair):
    found = build(catalog, task="few", include_path=pair)
    assert (found.name, len(found.order), found.metric, found.filter) == ("few", 4, "acc", "none")
    assert catalog.made == [(str(pair), False)]


def test_by_file(catalog, pair):
    found = build(catalog, task=pair / "few.yaml")
    assert (found.name, len(found.order)) == ("few", 4)
    assert (None, True) not in catalog.made
    assert found.identity == build(catalog, task="few", include_path=pair).identity


def test_a_task_of_lm_evals_own_without_the_index(monkeypatch):
    """Its file is found by its name among the 14,000."""
    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager
    made = []

    def manager(include_path=None, include_defaults=True):
        made.append(include_defaults)
        return whole(include_path=include_path, include_defaults=include_defaults)

    manager.load = whole.load
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    catalog = Catalog(Quiet())
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **b: (_ for _ in ()).throw(ConnectionError("no network")))
    said = r"documents of arc_easy cannot be had \(ConnectionError: no network\); with a network, `lm-eval run"
    with pytest.raises(NotMeasured, match=said):
        catalog.load(Asked("arc_easy"))
    assert made == [False]
    assert [file.name for file in catalog._files["winogrande"]] == ["default.yaml"]


def test_documents_that_cannot_be_had(catalog, tmp_path):
    write_task(tmp_path, "gone", continuations(2))
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(NotMeasured, match=r"the documents of gone cannot be had.*correct dataset_path") as found:
        build(catalog, task="gone", include_path=tmp_path)
    assert "network" not in str(found.value)


def test_a_task_without_documents(catalog, tmp_path):
    for number, body in enumerate(("docs.select([])", "[]")):
        name = f"none{number}"
        write_task(tmp_path, name, continuations(2))
        file = tmp_path / f"{name}.yaml"
        file.write_text(file.read_text() + f"process_docs: !function {name}.of\n")
        (tmp_path / f"{name}.py").write_text(f"def of(docs):\n    return {body}\n")
        with pytest.raises(UsageError, match=f"the task {name} has no documents"):
            build(catalog, task=name, include_path=tmp_path)


def test_an_unknown_name(catalog, pair):
    with pytest.raises(UsageError, match="no task 'many_': is it many"):
        build(catalog, task="many_", include_path=pair)


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"task": "few", "include_path": "/no/such/folder"}, "is no folder"),
        ({"task": "/no/such/file.yaml"}, "there is no such file"),
        ({"task": "few", "fewshot_as_multiturn": True}, "needs apply_chat_template=True"),
    ],
)
def test_what_is_asked_wrongly(catalog, asked, said):
    with pytest.raises(UsageError, match=said):
        build(catalog, **asked)


def test_a_file_that_is_no_task(catalog, tmp_path):
    (tmp_path / "odd.yaml").write_text("a: 1\n")
    with pytest.raises(UsageError, match="names no task and no group"):
        build(catalog, task=tmp_path / "odd.yaml")


def test_a_tag_has_no_number(catalog, pair):
    with pytest.raises(UsageError, match=r"'some' is a tag.*name its tasks one by one \(few, many\)"):
        build(catalog, task="some", include_path=pair)


def test_a_group_by_size(catalog, pair):
    write_group(pair, task=["few", "many"])
    found = build(catalog, task="all", include_path=pair)
    assert (found.name, len(found.order)) == ("all", 16)
    assert set(found.weights.values()) == {1.0}
    assert "weights" not in found.identity
    assert catalog.made == [(str(pair), False)]
    assert len(build(catalog, task="all", include_path=pair, limit=3).order) == 6
    assert build(catalog, task=pair / "all.yaml").identity == found.identity


def test_a_group_of_a_group(catalog, pair):
    write_group(pair, task=[{"group": "inner", "task": ["few"]}, "many"])
    found = build(catalog, task="all", include_path=pair)
    assert {item.task for item in found.order} == {"few", "many"}
    assert catalog.made == [(str(pair), False)]


def test_a_group_by_task(catalog, pair):
    write_group(pair, task=["few", "many"], aggregate_metric_list=[{"metric": "acc", "weight_by_size": False}])
    found = build(catalog, task="all", include_path=pair)
    assert found.weights == {"few": 1.0, "many": pytest.approx(4 / 12)}
    assert found.identity["weights"] == "each task the same"


def test_members_from_elsewhere_need_the_index(catalog, pair):
    write_group(pair, task=["few", "some"])
    build(catalog, task="all", include_path=pair)
    assert (None, True) in catalog.made


def test_a_group_without_a_number(catalog, pair):
    write_group(pair, task=["few", "many"], aggregate_metric_list=None)
    with pytest.raises(UsageError, match=r"gives the group 'all' no number of its own: name its tasks.*few, many"):
        build(catalog, task="all", include_path=pair)


def test_a_metric_that_the_group_does_not_have(catalog, pair):
    write_group(pair, task=["few", "many"])
    with pytest.raises(UsageError, match="no acc_norm: it aggregates acc"):
        build(catalog, task="all", include_path=pair, metric="acc_norm")


ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_choice": None,
    "doc_to_text": "",
    "doc_to_target": "question",
    "metric_list": [{"metric": "word_perplexity"}],
}
WRITES = {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": "question"}
MEAN = {"aggregation": "mean", "higher_is_better": True}


@pytest.mark.parametrize(
    "config, asked, said",
    [
        (ROLLING, {}, "perplexity_delta with --quant-protocol=lm-eval-word"),
        ({"unsafe_code": True}, {}, "runs the code that a model writes"),
        ({"doc_to_image": ["question"]}, {}, "pictures or sounds"),
        ({"metric_list": [{"metric": "f1"}]}, {}, "no metric that is a mean over its items: f1"),
        ({}, {"metric": "f1_of_all"}, None),
        ({"metric_list": [{"metric": "acc", **MEAN}, {"metric": "f1"}]}, {"metric": "f1"}, "f1 is no mean.*'acc'"),
        ({}, {"filter": "strict"}, "no filter 'strict': it has none"),
        ({"num_fewshot": 0}, {"num_fewshot": 5}, "fixes its number of examples at 0"),
        ({"output_type": "of_ours"}, {}, "cannot build the task"),
    ],
)
def test_tasks_without_an_accuracy(catalog, tmp_path, config, asked, said):
    write_task(tmp_path, "odd", continuations(3), **config)
    if said is None:  # only an item's answer tells the names of some metrics
        assert build(catalog, task="odd", include_path=tmp_path, **asked).metric == asked["metric"]
        return
    with pytest.raises(UsageError, match=said):
        build(catalog, task="odd", include_path=tmp_path, **asked)


def test_more_examples_than_there_are(catalog, pair):
    with pytest.raises(NotMeasured, match="does it have as many examples as num_fewshot=9"):
        build(catalog, task="few", include_path=pair, num_fewshot=9)


def test_the_metric_that_is_taken(catalog, tmp_path):
    metrics = [{"metric": "f1"}, {"metric": "acc_norm", **MEAN}, {"metric": "acc", **MEAN}]
    write_task(tmp_path, "odd", continuations(3), metric_list=metrics)
    assert build(catalog, task="odd", include_path=tmp_path).metric == "acc_norm"
    assert build(catalog, task="odd", include_path=tmp_path, metric="acc").metric == "acc"


def test_identity_is_of_content(catalog, tmp_path):
    docs = continuations(5)
    write_task(tmp_path / "a", "fox", docs)
    write_task(tmp_path / "b", "fox", docs)
    first = build(catalog, task="fox", include_path=tmp_path / "a")
    second = build(catalog, task="fox", include_path=tmp_path / "b")
    assert first.identity == second.identity
    assert first.order == second.order
    assert str(tmp_path) not in str(first.identity)
    changes = [
        {"docs": [{**docs[0], "answer": 3 - docs[0]["answer"]}, *docs[1:]]},
        {"docs": docs[:4]},
        {"config": {"doc_to_text": "{{question}}:"}},
        {"config": {"metadata": {"version": 2.0}}},
        {"config": {"target_delimiter": ""}},
        {"asked": {"num_fewshot": 1}},
        {"asked": {"limit": 4}},
        {"asked": {"system_instruction": "Be right."}},
    ]
    seen = [first.identity]
    for number, change in enumerate(changes):
        folder = tmp_path / str(number)
        write_task(folder, "fox", change.get("docs", docs), **change.get("config", {}))
        found = build(catalog, task="fox", include_path=folder, **change.get("asked", {}))
        assert found.identity not in seen
        seen.append(found.identity)


def test_identity_has_functions_by_their_source(catalog, tmp_path):
    """And neither their addresses nor where their file lies."""
    docs = continuations(3)
    for folder, body in (("a", "x['question']"), ("b", "x['question']"), ("c", "x['question'] + '!'")):
        write_task(tmp_path / folder, "fox", docs, doc_to_text=None)
        file = tmp_path / folder / "fox.yaml"
        file.write_text(file.read_text() + "doc_to_text: !function own.text\n")
        (tmp_path / folder / "own.py").write_text(f"def text(x):\n    return {body}\n")
    one, two, three = (build(catalog, task="fox", include_path=tmp_path / name).identity for name in "abc")
    assert one == two
    assert one["tasks"]["fox"]["config"] != three["tasks"]["fox"]["config"]
    assert one["prompts"] != three["prompts"]


CODE = """
import {helper}

class Base:
    pass

def results(doc, answers):
    return middle(doc, answers)

def middle(doc, answers):
    return {{"acc": {helper}.score(answers, doc)}}
"""


def with_code(folder, helper, score="1.0", own=CODE, more="\n"):
    """A task whose function calls another of its file, which calls one of a module that lies elsewhere."""
    write_task(folder, "fox", continuations(3))
    file = folder / "fox.yaml"
    file.write_text(file.read_text() + "process_results: !function own.results\n")
    (folder / "own.py").write_text(own.format(helper=helper) + more)
    (folder / "unasked.txt").write_text(str(folder))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{helper}.py").write_text(f"def score(answers, doc):\n    return {score}\n")
    return elsewhere


def test_identity_has_all_code_of_a_task(catalog, tmp_path, monkeypatch):
    seen = []
    for name, change in {
        "a": {},
        "b": {},
        "c": {"score": "0.0"},
        "d": {"more": "\n# another line\n"},
    }.items():
        monkeypatch.syspath_prepend(str(with_code(tmp_path / name, "quant_test_helper", **change)))
        monkeypatch.delitem(sys.modules, "quant_test_helper", raising=False)
        seen.append(build(catalog, task="fox", include_path=tmp_path / name).identity["tasks"]["fox"]["code"])
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    (tmp_path / "b" / "beside.py").write_text("# may be loaded by its path\n")
    assert build(catalog, task="fox", include_path=tmp_path / "b").identity["tasks"]["fox"]["code"] not in seen


def test_tests_beside_a_task_are_no_part_of_it(catalog, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(with_code(tmp_path / "a", "quant_test_helper")))
    monkeypatch.delitem(sys.modules, "quant_test_helper", raising=False)
    before = build(catalog, task="fox", include_path=tmp_path / "a").identity
    for name in ("test_own.py", "conftest.py"):
        (tmp_path / "a" / name).write_text("1\n")
    assert build(catalog, task="fox", include_path=tmp_path / "a").identity == before


def test_a_task_without_functions_has_no_code(catalog, pair):
    (pair / "beside.py").write_text("1\n")
    assert "code" not in build(catalog, task="few", include_path=pair).identity["tasks"]["few"]


CLASS = """
from lm_eval.api.task import ConfigurableTask

def score(said, right):
    return float(said {sign} right)

class Fox(ConfigurableTask):
    def __init__(self, config=None):
        super().__init__(config={{key: each for key, each in config.items() if key != "class"}})

    def process_results(self, doc, results):
        values = [each[0] for each in results]
        return {{"acc": score(values.index(max(values)), doc["answer"])}}
"""


def test_identity_has_the_code_of_a_class(catalog, tmp_path):
    seen = []
    for name, sign in (("a", "=="), ("b", "=="), ("c", "!=")):
        write_task(tmp_path / name, "fox", continuations(3))
        file = tmp_path / name / "fox.yaml"
        file.write_text(file.read_text() + "class: !function own.Fox\n")
        (tmp_path / name / "own.py").write_text(CLASS.format(sign=sign))
        seen.append(build(catalog, task="fox", include_path=tmp_path / name).identity)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_what_lm_eval_ships_with_a_task_is_its_code(tmp_path, monkeypatch):
    import lm_eval.tasks
    from lm_eval.api.metrics import mean

    from pytest_quant.tasks import code

    folder = Path(lm_eval.tasks.__file__).parent.resolve()
    of = importlib.import_module("lm_eval.tasks.hellaswag.utils").process_docs
    config = SimpleNamespace(process_docs=of, aggregation=mean, parse=json.loads, metadata=None)
    files = code.files(SimpleNamespace(config=config))
    assert folder / "hellaswag" / "utils.py" in files
    assert all(file.parent == folder / "hellaswag" for file in files)
    (tmp_path / "own.py").write_text("from lm_eval.tasks.hellaswag.utils import process_docs\ndef of(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    config = SimpleNamespace(process_docs=importlib.import_module("own").of, metadata=None)
    monkeypatch.delitem(sys.modules, "own")
    files = code.files(SimpleNamespace(config=config))
    assert files == {tmp_path.resolve() / "own.py", folder / "hellaswag" / "utils.py"}


NONE = """
from lm_eval.api.task import Task

class Fox(Task):
    OUTPUT_TYPE = "multiple_choice"
    def __init__(self, config=None):
        super().__init__(config={key: each for key, each in config.items() if key != "class"})
    def download(self, *arguments):
        pass
    def has_training_docs(self): return False
    has_validation_docs = has_training_docs
    def has_test_docs(self): return True
    def test_docs(self): return []
    def doc_to_text(self, doc): return ""
    doc_to_target = construct_requests = process_results = doc_to_text
    def aggregation(self):
        from lm_eval.api.metrics import mean
        return {"acc": mean}
    def higher_is_better(self): return {"acc": True}
"""


def test_a_class_without_documents(catalog, tmp_path):
    file = write_task(tmp_path, "fox", continuations(1))
    file.write_text(file.read_text() + "class: !function own.Fox\n")
    (tmp_path / "own.py").write_text(NONE)
    with pytest.raises(UsageError, match="the task fox has no documents"):
        build(catalog, task="fox", include_path=tmp_path)


def test_seeds_are_given_back(catalog, pair):
    import random

    import numpy as np

    random.seed(3)
    np.random.seed(3)
    expected = random.Random(3).random(), np.random.RandomState(3).rand()
    build(catalog, task="few", include_path=pair)
    assert (random.random(), np.random.rand()) == expected


def test_templates_are_compiled_once_only_meanwhile():
    from lm_eval import utils

    with harness.compiled_once():
        assert utils.apply_template("{{a}}-{{b}}", {"a": 1, "b": 2}) == "1-2"
        assert utils.apply_template("{{a}}-{{b}}", {"a": 3, "b": 4}) == "3-4"
        assert utils.env.from_string.cache_info().hits == 1
    assert "from_string" not in vars(utils.env)


def test_an_lm_eval_that_is_too_old(monkeypatch):
    import lm_eval.tasks

    class Old:
        pass

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Old)
    with pytest.raises(Unsupported, match=r"0\.4\.12 or later"):
        harness.require()
