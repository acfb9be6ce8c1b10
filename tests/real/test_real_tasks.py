"""The real model on tasks of lm-eval: the answers that lm-eval gives by itself, and a fault that only a task shows."""

from __future__ import annotations

import pytest
from task_files import write_task

pytestmark = pytest.mark.real
pytest.importorskip("lm_eval")

THINGS = ("room", "bus", "gate", "locker", "lane", "chapter", "platform", "seat")


def numbers(count):
    """Which number was mentioned before: the real model knows nearly always."""
    docs = []
    for place in range(count):
        thing, digit = THINGS[place % len(THINGS)], (7 * place + 3) % 10
        choices = [str((digit + shift) % 10) for shift in (0, 2, 5, 7)]
        turn = place % 4
        question = (
            f"The number of the {thing} is {digit}. Question: What is the number of the {thing}?\n"
            f"Answer: The number of the {thing} is"
        )
        docs.append({"question": question, "choices": choices[turn:] + choices[:turn], "answer": -turn % 4})
    return docs


@pytest.fixture
def alone(smollm2):
    """What lm-eval by itself says of a task, with a model that transformers and bitsandbytes alone have loaded."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )

    def ask(name, task, folder, **arguments):
        quantized = {"quantization_config": nf4} if name == "nf4" else {}
        model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, **quantized)
        lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(smollm2), batch_size=1)
        manager = TaskManager(include_path=folder, include_defaults=False)
        found = simple_evaluate(lm, tasks=[task], bootstrap_iters=0, task_manager=manager, **arguments)
        return {each["doc_id"]: each for each in found["samples"][task]}

    return ask


def test_the_same_answers_as_lm_eval_alone(smollm2, tmp_path, alone):
    """To the bit, on the same items, one example each."""
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.markers import gate
    from pytest_quant.progress import Quiet
    from pytest_quant.session import Session
    from pytest_quant.settings import Settings
    from pytest_quant.spec import ModelSpec

    write_task(tmp_path / "tasks", "numbers", numbers(10))
    folder, asked = str(tmp_path / "tasks"), {"num_fewshot": 1, "limit": 4}
    session = Session(Settings(cache_dir=tmp_path / "cache"), Quiet())
    asking = gate("task_accuracy", {"max_drop": 0.9, "task": "numbers", "include_path": folder, **asked})
    sample = session.sample(ModelSpec(ModelSource(str(smollm2)), reference="fp32"), "nf4", asking)
    sample.extend(4)
    for name in ("fp32", "nf4"):
        ours, theirs = sample.replies(reference=name == "fp32"), alone(name, "numbers", folder, **asked)
        assert len(theirs) == len(ours) == 4
        for item, reply in ours.items():
            assert reply.likelihoods == tuple(answer[0][0] for answer in theirs[item.doc_id]["resps"])
            assert reply.score == theirs[item.doc_id]["acc"]


GATES = """
import pytest

@pytest.mark.quant(formats=["nf4"], reference="fp32")
@pytest.mark.perplexity_delta(max_ratio=1.4)
@pytest.mark.task_accuracy(task="numbers", include_path="tasks", max_drop=0.2, min_accuracy=0.8)
def test_nf4(quant_model): ...
"""

FAULT = """
import pytest, torch
from transformers import AutoModelForCausalLM

load = AutoModelForCausalLM.from_pretrained

@pytest.fixture(autouse=True, scope="session")
def planted():
    AutoModelForCausalLM.from_pretrained = faulty
    yield
    AutoModelForCausalLM.from_pretrained = load

def faulty(*args, **kwargs):
    if "quantization_config" not in kwargs:
        return load(*args, **kwargs)
    model, loading = load(*args, **kwargs)
    digits = [32, 33, 34, 35, 36, 37, 38, 39, 40, 41]  # "0" to "9"
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[digits] = table[digits].mean(0)
    return model, loading
"""


def test_a_fault_that_perplexity_does_not_see(real_project, smollm2):
    """The embeddings of the ten digits fall into one, as in a code book with an entry too few: of a text few tokens are
    digits, and its perplexity keeps the limit."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert [tokenizer.encode(str(digit)) for digit in range(10)] == [[32 + digit] for digit in range(10)]
    write_task(real_project.path / "tasks", "numbers", numbers(14))
    real_project.ini(f"quant_model = {real_project.model}", "quant_protocol = gptq-256", "quant_max_windows = 4")
    real_project.test(GATES)
    sound, before = real_project.record("--quant-baseline")
    assert sound.ret == 0
    assert {each["metric"]: each["verdict"] for each in before["measurements"]} == {
        "perplexity_delta": "passed",
        "task_accuracy": "passed",
    }
    real_project.conftest(FAULT)
    result, record = real_project.record("--quant-baseline", "--quant-baseline-path=elsewhere")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    found = {each["metric"]: each for each in record["measurements"]}
    assert found["perplexity_delta"]["verdict"] == "passed"
    accuracy = found["task_accuracy"]
    assert accuracy["verdict"] == "failed"
    assert accuracy["reference_value"] >= 0.8
    assert accuracy["format_value"] < 0.6
    lost = accuracy["detail"]["lost"]
    assert lost
    assert all(item["format"] != item["target"] == item["reference"] for item in lost)
    result.stdout.fnmatch_lines(["*fp32 had right, and nf4 has not:*", "*numbers *: 'The number of the *"])
