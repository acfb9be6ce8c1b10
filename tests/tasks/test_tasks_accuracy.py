"""Items of a task, answered by a format and its reference."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import pytest
import yaml
from task_files import continuations, write_task
from together import Together

from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotFinite, NotMeasured, ProofFailed, QuantError, StoreWarning, Unsupported, UsageError
from pytest_quant.markers import gate
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec
from pytest_quant.stats import betting

pytest.importorskip("lm_eval")


@pytest.fixture
def tasks(tmp_path):
    """A folder with one task of 14 items."""
    write_task(tmp_path / "tasks", "fox", continuations(14))
    return tmp_path / "tasks"


@pytest.fixture
def spec(tiny_llama):
    return ModelSpec(ModelSource(str(tiny_llama)), reference="fp32")


@pytest.fixture
def session(tmp_path):
    return Session(Settings(cache_dir=tmp_path / "cache"), Quiet())


def ask(folder, task="fox", **parameters):
    return gate("task_accuracy", {"max_drop": 0.5, "task": task, "include_path": str(folder), **parameters})


def alone(model, tokenizer, folder, task, filter="none", **arguments):
    """What lm-eval's own ``simple_evaluate`` says, by task and document."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(lm, tasks=[task], bootstrap_iters=0, task_manager=manager, **arguments)
    return {
        (name, each["doc_id"]): each
        for name, samples in found["samples"].items()
        for each in samples
        if each["filter"] == filter
    }


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )


@pytest.mark.parametrize("arguments", [{}, {"num_fewshot": 3}, {"num_fewshot": 2, "limit": 9}])
def test_the_same_answers_as_lm_eval_alone(session, spec, tiny_llama, tasks, arguments):
    """To the bit, whatever the order in which they are drawn; few-shot examples are those of a whole run."""
    sample = session.accuracy.sample(spec, "int8", ask(tasks, **arguments))
    for count in (3, 1, 100):
        sample.extend(count)
    theirs = alone(*load(tiny_llama), tasks, "fox", **arguments)
    ours = sample.replies(reference=True)
    assert len(ours) == len(theirs) == arguments.get("limit", 14)
    for item, reply in ours.items():
        same = theirs[item.task, item.doc_id]
        assert reply.likelihoods == tuple(answer[0][0] for answer in same["resps"])
        assert reply.score == same["acc"]
    int8 = session.model(spec, "int8")
    quantized = alone(int8.model, int8.tokenizer, tasks, "fox", **arguments)
    for item, reply in sample.replies(reference=False).items():
        assert reply.likelihoods == tuple(answer[0][0] for answer in quantized[item.task, item.doc_id]["resps"])


@pytest.mark.parametrize("filter", [None, "whole"])
def test_texts_are_generated_as_lm_eval_does(session, spec, tiny_llama, tmp_path, filter):
    docs = [{"question": doc["question"], "answer": doc["choices"][doc["answer"]]} for doc in continuations(8)]
    write_task(
        tmp_path / "tasks",
        "writes",
        docs,
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 12, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        filter_list=[
            {
                "name": "start",
                "filter": [
                    {"function": "regex", "regex_pattern": "(^ ?[a-zA-Z]+ [a-zA-Z]+)"},
                    {"function": "take_first"},
                ],
            },
            {"name": "whole", "filter": [{"function": "take_first"}]},
        ],
    )
    asked = {} if filter is None else {"filter": filter}
    sample = session.accuracy.sample(spec, "int8", ask(tmp_path / "tasks", "writes", **asked))
    sample.extend(100)
    used = filter or "start"
    assert (sample.identity()["metric"], sample.identity()["filter"]) == ("exact_match", used)
    theirs = alone(*load(tiny_llama), tmp_path / "tasks", "writes", used)
    replies = sample.replies(reference=True)
    for item, reply in replies.items():
        same = theirs[item.task, item.doc_id]
        assert reply.said == same["filtered_resps"][0].strip()
        assert reply.score == same["exact_match"]
        assert reply.likelihoods == ()
    assert any(reply.score for reply in replies.values()) is (used == "start")


def test_drawn_in_one_fixed_order(session, spec, tasks, tmp_path):
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    assert (sample.noun, sample.total, sample.drawn) == ("items", 14, 0)
    sample.extend(4)
    assert sample.drawn == 4
    first = list(sample.replies(reference=False))
    assert [item.doc_id for item in first] != [0, 1, 2, 3]
    again = Session(Settings(cache_dir=tmp_path / "elsewhere"), Quiet())
    whole = again.accuracy.sample(spec, "int8", ask(tasks))
    whole.extend(100)
    assert whole.drawn == 14
    assert list(whole.replies(reference=False))[:4] == first
    assert session.accuracy.sample(spec, "int8", ask(tasks, max_drop=0.1)) is sample


def test_the_answer_is_paired(session, spec, tasks):
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    sample.extend(100)
    found = sample.answer(0.01)
    ours, theirs = sample.replies(reference=False), sample.replies(reference=True)
    assert found.main == "drop"
    assert list(found.scores) == [reply.score for reply in ours.values()]
    assert list(found.reference_scores) == [reply.score for reply in theirs.values()]
    drop = found.quantities["drop"]
    assert drop.low == drop.value == drop.high
    assert drop.value == pytest.approx((sum(found.reference_scores) - sum(found.scores)) / 14)
    assert 0.5 < found.quantities["reference_accuracy"].value < 1.0


def test_the_reference_is_not_loaded_when_its_answers_are_known(session, spec, tasks, tmp_path):
    first = session.accuracy.sample(spec, "int8", ask(tasks))
    first.extend(6)
    assert first.reference_stored == 0
    second = Session(Settings(cache_dir=tmp_path / "cache"), Quiet())
    sample = second.accuracy.sample(spec, "int8", ask(tasks))
    sample.extend(6)
    assert second.models.find(spec, "fp32") is None
    assert sample.replies(reference=True) == first.replies(reference=True)
    assert sample.reference_stored == 6
    sample.extend(1)  # one that nobody knows
    assert second.models.find(spec, "fp32") is not None


def test_other_questions_have_other_files(session, spec, tasks, tmp_path):
    for arguments in ({}, {"num_fewshot": 1}, {"limit": 5}):
        session.accuracy.sample(spec, "int8", ask(tasks, **arguments)).extend(1)
    files = list((tmp_path / "cache").rglob("tasks/*.json"))
    assert len(files) == 3
    other = ModelSpec(spec.source, reference="bf16")
    session.accuracy.sample(other, "int8", ask(tasks)).extend(1)
    assert len(list((tmp_path / "cache").rglob("tasks/*.json"))) == 4


def damage_score(data):
    next(iter(data["items"]["fox"].values()))[0] = 1.5


def damage_number(data):
    next(iter(data["items"]["fox"].values()))[2][0] = float("nan")


def damage_item(data):
    data["items"]["fox"]["99"] = [1.0, "", []]


def damage_count(data):
    next(iter(data["items"]["fox"].values()))[2].pop()


def damage_key(data):
    data["key"]["model"] = "another"


def damage_schema(data):
    data["schema"] = 2


def damage_said(data):
    next(iter(data["items"]["fox"].values()))[1] = 7


def damage_shape(data):
    data["items"] = [1]


@pytest.mark.parametrize(
    "damage",
    [
        damage_score,
        damage_number,
        damage_item,
        damage_count,
        damage_key,
        damage_schema,
        damage_said,
        damage_shape,
        None,
    ],
)
def test_a_damaged_file_is_not_believed(session, spec, tasks, tmp_path, damage):
    first = session.accuracy.sample(spec, "int8", ask(tasks))
    first.extend(3)
    (file,) = (tmp_path / "cache").rglob("tasks/*.json")
    good = file.read_bytes()
    if damage is None:
        file.write_bytes(good[: len(good) // 2])
    else:
        data = json.loads(good)
        damage(data)
        file.write_text(json.dumps(data))
    second = Session(Settings(cache_dir=tmp_path / "cache"), Quiet())
    with pytest.warns(StoreWarning, match="not used, and written anew"):
        sample = second.accuracy.sample(spec, "int8", ask(tasks))
    sample.extend(3)
    assert sample.replies(reference=True) == first.replies(reference=True)
    assert sample.reference_stored == 0
    assert file.read_bytes() == good


def test_stored_answers_that_other_code_scored(session, spec, tasks, tmp_path, monkeypatch):
    """As where a task computes its scores with an installed library, whose code is no part of the task."""
    first = session.accuracy.sample(spec, "int8", ask(tasks))
    first.extend(14)
    (file,) = (tmp_path / "cache").rglob("tasks/*.json")
    data = json.loads(file.read_text())
    for kept in data["items"]["fox"].values():
        kept[0] = 1.0 - kept[0]
    file.write_text(json.dumps(data))
    second = Session(Settings(cache_dir=tmp_path / "cache"), Quiet())
    fp32 = second.model(spec, "fp32")
    monkeypatch.setattr(second.accuracy, "_turns", Together(lambda spec, name: fp32))
    sample = second.accuracy.sample(spec, "int8", ask(tasks))
    sample.extend(2)
    with pytest.raises(NotMeasured, match=r"stored when other code scored them; delete .*\.json") as found:
        sample.answer(0.01)
    assert str(file) in str(found.value)


def test_two_runs_at_once_keep_what_both_learnt(session, spec, tasks, tmp_path):
    other = Session(Settings(cache_dir=tmp_path / "cache"), Quiet())
    one, two = (run.accuracy.sample(spec, "int8", ask(tasks)) for run in (session, other))
    one.extend(3)
    two.extend(1)
    two.extend(1)
    (file,) = (tmp_path / "cache").rglob("tasks/*.json")
    assert len(json.loads(file.read_text())["items"]["fox"]) == 3
    one._question.known.learn({one._question.population.order[9]: one.replies(reference=True)[one._items()[0]]})
    one._question.known.save()
    two.extend(2)
    assert len(json.loads(file.read_text())["items"]["fox"]) == 5


def test_scores_of_changed_helpers_are_asked_anew(session, spec, tmp_path):
    """The function that a config names calls a second one, and that a third in the file beside: what was stored under
    their old code is not what is scored now."""
    folder = tmp_path / "tasks"
    write_task(folder, "helped", continuations(6))
    file = folder / "helped.yaml"
    file.write_text(file.read_text() + "process_results: !function own.results\n")
    (folder / "own.py").write_text(
        "import importlib.util\nfrom pathlib import Path\n"
        "spec = importlib.util.spec_from_file_location('beside', Path(__file__).with_name('beside.py'))\n"
        "beside = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(beside)\n"
        "def best(answers):\n    values = [each[0] for each in answers]\n    return values.index(max(values))\n"
        "def results(doc, answers):\n    return {'acc': beside.score(best(answers), doc['answer'])}\n"
    )
    (folder / "beside.py").write_text("def score(said, right):\n    return float(said == right)\n")
    before = session.accuracy.sample(spec, "int8", ask(folder, "helped"))
    before.extend(6)
    # of another length: Python takes a file of the same second and size for the one that it compiled
    (folder / "beside.py").write_text("def score(said, right):\n    return float(not said == right)\n")
    (folder / "own.py").touch()  # another process would import it anew; lm-eval does in this one
    after = Session(Settings(cache_dir=tmp_path / "cache"), Quiet()).accuracy.sample(
        spec, "int8", ask(folder, "helped")
    )
    after.extend(6)
    assert after.identity()["tasks"]["helped"]["code"] != before.identity()["tasks"]["helped"]["code"]
    assert after.reference_stored == 0
    scores = [
        [each.score for _, each in sorted(sample.replies(reference=True).items(), key=str)]
        for sample in (before, after)
    ]
    assert scores[0] == [1.0 - score for score in scores[1]]


def test_a_cache_that_cannot_be_written_is_only_said(session, spec, tasks, tmp_path):
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    (stack,) = {session.accuracy._questions[key].known.file.parent.parent for key in session.accuracy._questions}
    stack.parent.mkdir(parents=True, exist_ok=True)
    stack.write_text("a file, where a folder should be")
    with pytest.warns(StoreWarning, match="were not stored"):
        sample.extend(1)
    assert sample.drawn == 1


def test_lm_evals_cache_of_requests_plays_no_part(session, spec, tasks, tmp_path, monkeypatch):
    """Its key says nothing of the documents or the model: it would serve any task of that name."""
    from lm_eval.caching import cache

    folder = tmp_path / "poison"
    folder.mkdir()
    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(folder))
    monkeypatch.setattr(cache, "PATH", str(folder))
    asked = []
    monkeypatch.setattr(cache, "_cache_file_path", lambda name: asked.append(name) or str(folder / "requests"))
    (folder / "requests").write_bytes(pickle.dumps([["poison"]]))
    assert cache.load_from_cache("any", cache=True) == [["poison"]]
    asked.clear()
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    sample.extend(100)
    assert asked == []
    assert [file.name for file in folder.iterdir()] == ["requests"]
    ours, theirs = sample.replies(reference=False), sample.replies(reference=True)
    assert all(ours[item].likelihoods != theirs[item].likelihoods for item in ours)


def test_the_reference_measured_by_mistake(session, spec, tasks, monkeypatch):
    fp32 = session.model(spec, "fp32")
    monkeypatch.setattr(session.accuracy, "_turns", Together(lambda spec, name: fp32))
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    sample.extend(5)
    assert any(sample.answer(0.01).scores)
    assert not sample.telling
    sample.extend(100)
    with pytest.raises(ProofFailed, match="all 14 items of fox exactly the fp32 reference's likelihoods"):
        sample.answer(0.01)


def test_early_items_that_say_nothing_decide_nothing(session, spec, tmp_path):
    doc = {"question": "The quick", "choices": ["zzzzzzzz", "brown fox"]}
    for name, answer in (("wrong", 0), ("right", 1)):
        write_task(tmp_path / "tasks", name, [{**doc, "answer": answer}] * 3)
    sample = session.accuracy.sample(spec, "int8", ask(tmp_path / "tasks", "wrong"))
    assert not sample.telling
    sample.extend(2)
    assert sample.answer(0.01).quantities["drop"].value == 0.0
    assert not sample.telling
    sample.extend(1)
    with pytest.raises(NotMeasured, match="neither model has any of the 3 items right"):
        sample.answer(0.01)
    other = session.accuracy.sample(spec, "int8", ask(tmp_path / "tasks", "right"))
    other.extend(1)
    assert other.telling


def test_the_reference_itself_is_no_format(session, spec, tasks):
    with pytest.raises(UsageError, match="is the reference itself"):
        session.accuracy.sample(spec, "fp32", ask(tasks))


def test_a_kv_cache_format_is_used(session, spec, tiny_llama, tmp_path):
    docs = [
        {**doc, "question": ("The quick brown fox jumps over the lazy dog. " * 5) + doc["question"]}
        for doc in continuations(4)
    ]
    write_task(tmp_path / "tasks", "long", docs)
    sample = session.accuracy.sample(spec, "fp32+kv-int2-g32", ask(tmp_path / "tasks", "long"))
    sample.extend(100)
    ours, theirs = sample.replies(reference=False), sample.replies(reference=True)
    assert all(ours[item].likelihoods != theirs[item].likelihoods for item in ours)
    plain = alone(*load(tiny_llama), tmp_path / "tasks", "long")
    assert all(
        reply.likelihoods == tuple(answer[0][0] for answer in plain[item.task, item.doc_id]["resps"])
        for item, reply in theirs.items()
    )


def test_texts_go_through_a_kv_cache_format(session, spec, tmp_path, monkeypatch):
    write_task(
        tmp_path / "tasks",
        "writes",
        [{"question": "The quick brown fox", "answer": "jumps"}],
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="answer",
        generation_kwargs={"until": ["."], "max_gen_toks": 6, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    handle = session.model(spec, "fp32+kv-int2-g32")
    made = []
    new = handle.loaded._cached.new
    monkeypatch.setattr(type(handle.loaded._cached), "new", lambda self, config: made.append(new(config)) or made[-1])
    sample = session.accuracy.sample(spec, "fp32+kv-int2-g32", ask(tmp_path / "tasks", "writes"))
    sample.extend(1)
    assert made
    assert made[-1].get_seq_length() > len("The quick brown fox")


def test_the_model_and_its_tokenizer_stay_as_they_are(session, spec, tasks):
    for name in ("int8", "fp32"):
        session.model(spec, name)
    before = dict(session.model(spec, "int8").tokenizer.special_tokens_map)
    session.accuracy.sample(spec, "int8", ask(tasks)).extend(3)
    assert not session.models.changed()
    assert dict(session.model(spec, "int8").tokenizer.special_tokens_map) == before


def test_nothing_is_printed(session, spec, tasks, capfd):
    session.model(spec, "int8"), session.model(spec, "fp32")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.accuracy.sample(spec, "int8", ask(tasks, num_fewshot=2)).extend(3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name, error", [("int8", NotFinite), ("fp32", NotMeasured)])
def test_nan_is_no_answer(session, spec, tasks, name, error):
    import torch

    with torch.no_grad():
        session.model(spec, name).model.model.norm.weight[0] = float("nan")
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    with pytest.raises(error, match=rf"the {name} (model|reference) gave a log-likelihood of nan at fox \d+") as found:
        sample.extend(2)
    assert type(found.value) is error


def test_nan_while_texts_are_generated(session, spec, tmp_path):
    import torch

    write_task(
        tmp_path / "tasks",
        "writes",
        [{"question": "The quick brown fox", "answer": "jumps"}],
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="answer",
        generation_kwargs={"until": ["."], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    with torch.no_grad():
        session.model(spec, "int8").model.model.norm.weight[0] = float("nan")
    with pytest.raises(NotFinite, match=r"the int8 model gave NaN while it continued a prompt \(in writes 0\)"):
        session.accuracy.sample(spec, "int8", ask(tmp_path / "tasks", "writes")).extend(1)


def test_a_failure_of_lm_eval_names_the_item(session, spec, tasks, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    def fail(self, requests, disable_tqdm=False):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(HFLM, "loglikelihood", fail)
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    with pytest.raises(
        NotMeasured, match=r"lm-eval failed on the fp32 reference at fox \d+: RuntimeError: no such luck"
    ):
        sample.extend(1)
    assert sample.drawn == 0


def test_out_of_memory_is_tried_in_smaller_batches(session, spec, tasks, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    from pytest_quant.tasks import language_model

    monkeypatch.setattr(language_model, "prompts_at_once", lambda *arguments, **named: 4)
    whole, sizes = HFLM.loglikelihood, []

    def tight(self, requests, disable_tqdm=False):
        import torch

        sizes.append(self.batch_size)
        if self.batch_size > 1:
            raise torch.OutOfMemoryError("too much")
        return whole(self, requests, disable_tqdm)

    monkeypatch.setattr(HFLM, "loglikelihood", tight)
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    sample.extend(3)
    assert sizes == [4, 2, 1, 4, 2, 1]
    assert sample.drawn == 3


def test_several_at_once_are_always_the_same_several(session, spec, tasks, tmp_path, monkeypatch):
    """Padding changes the last bits, so that an item has the same company however many were asked for."""
    from pytest_quant.tasks import language_model

    monkeypatch.setattr(language_model, "prompts_at_once", lambda *arguments, **named: 4)
    monkeypatch.setattr(language_model, "BLOCK", 5)
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    for count in (1, 2, 1, 5, 100):
        sample.extend(count)
    other = Session(Settings(cache_dir=tmp_path / "elsewhere"), Quiet()).accuracy
    whole = other.sample(spec, "int8", ask(tasks))
    whole.extend(100)
    for reference in (True, False):
        assert sample.replies(reference=reference) == whole.replies(reference=reference)


def test_what_was_changed_is_told(session, spec, tmp_path):
    import torch

    write_task(tmp_path / "tasks", "fox", continuations(14), doc_to_text="Once more.\n\n{{question}}")
    handle = session.model(spec, "int8")
    with torch.no_grad():
        handle.model.model.norm.weight.neg_()
    sample = session.accuracy.sample(spec, "int8", ask(tmp_path / "tasks"))
    sample.extend(100)
    detail = sample.detail()
    assert (detail["task"], detail["metric"], detail["filter"], detail["num_fewshot"]) == ("fox", "acc", "none", 0)
    assert detail["lost_items"] == len(detail["lost"]) > 3
    assert sample.answer(0.01).figures["lost"] == detail["lost_items"]
    docs = continuations(14)
    for item in detail["lost"]:
        doc = docs[item["doc_id"]]
        assert item["question"] == doc["question"].strip()
        assert item["target"] == item["reference"] == doc["choices"][doc["answer"]]
        assert item["format"] in doc["choices"]
        assert item["format"] != item["target"]
    json.dumps(detail)


def test_a_changed_model_is_forgotten(session, spec, tasks):
    sample = session.accuracy.sample(spec, "int8", ask(tasks))
    sample.extend(2)
    session.accuracy.forget(spec)
    again = session.accuracy.sample(spec, "int8", ask(tasks))
    assert again is not sample
    assert again.drawn == 0


def test_without_lm_eval(session, spec, tasks, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(Unsupported, match=r"needed: pip install 'pytest-quant\[lm-eval\]'"):
        session.accuracy.sample(spec, "int8", ask(tasks))


@pytest.mark.usefixtures("tasks")
def test_a_folder_of_the_run_serves_where_none_is_named(tmp_path, spec):
    session = Session(Settings(cache_dir=tmp_path / "cache", tasks=tmp_path / "tasks"), Quiet())
    found = session.accuracy.sample(spec, "int8", gate("task_accuracy", {"max_drop": 0.1, "task": "fox"}))
    assert found.total == 14


def test_every_error_is_one_of_ours(session, spec, tmp_path):
    """A task that lm-eval cannot build says so."""
    write_task(tmp_path / "tasks", "odd", continuations(3), metric_list=[{"metric": "no_such_metric"}])
    with pytest.raises(QuantError, match="odd"):
        session.accuracy.sample(spec, "int8", ask(tmp_path / "tasks", "odd")).extend(1)


def test_a_folder_of_the_run_that_is_not_there_is_named_as_such(tmp_path, spec):
    session = Session(Settings(cache_dir=tmp_path / "cache", tasks=tmp_path / "nowhere"), Quiet())
    with pytest.raises(UsageError, match=r"quant_tasks=.*nowhere is no folder"):
        session.accuracy.sample(spec, "int8", gate("task_accuracy", {"max_drop": 0.1, "task": "fox"}))


def test_the_chat_template_is_the_base_models(session, spec, tasks, byte_tokenizer, monkeypatch):
    """Whichever format asks first; some checkpoints come with another."""
    asked = []
    template = "{% for each in messages %}[{{ each.role }}]{{ each.content }}{% endfor %}"

    def tokenizer(source):
        asked.append(source)
        found = copy.deepcopy(byte_tokenizer)
        found.chat_template = template
        return found

    monkeypatch.setattr(session.accuracy, "_tokenizer", tokenizer)
    sample = session.accuracy.sample(spec, "int8", ask(tasks, apply_chat_template=True))
    assert asked == [spec.source]
    assert session.models.find(spec, "int8") is None
    assert "[user]" in sample._question.prompts[0]


def test_weights_that_are_alike_by_chance_are_no_equal_weights(session, spec, tmp_path):
    """A few items of one task of a group, before any of the other."""
    folder = tmp_path / "tasks"
    doc = {"question": "The quick", "choices": ["zzzzzzzz", "brown fox"], "answer": 1}
    write_task(folder, "few", [doc] * 4)
    write_task(folder, "many", [{**doc, "answer": 0}] * 16)
    told = {
        "group": "all",
        "task": ["few", "many"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}],
    }
    (folder / "all.yaml").write_text(yaml.safe_dump(told))
    sample = session.accuracy.sample(spec, "int8", ask(folder, "all"))
    order = sample._question.population.order
    object.__setattr__(sample._question.population, "order", sorted(order, key=lambda item: item.task))
    sample.extend(4)
    found = sample.answer(0.1)
    assert set(found.weights) == {1.0}
    low = found.quantities["reference_accuracy"].low
    assert low == betting.ratio(found.reference_scores, found.weights, 20, 0.1).low
    assert low != betting.mean(found.reference_scores, 20, 0.1, low=0.0, high=1.0).low
