"""Chat templates, and how many prompts go through a model at once."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
from task_files import continuations, write_task

from pytest_quant.engines.tokens import Tokens
from pytest_quant.errors import UsageError
from pytest_quant.progress import Quiet
from pytest_quant.tasks import chat, language_model, population
from pytest_quant.tasks.asked import Asked
from pytest_quant.tasks.catalog import Catalog

pytest.importorskip("lm_eval")

TEMPLATE = (
    "{% if date_string %}<{{ date_string }}>{% endif %}"
    "{% for each in messages %}[{{ each.role }}]{{ each.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def tokenizer(byte_tokenizer):
    found = copy.deepcopy(byte_tokenizer)
    found.chat_template = TEMPLATE
    return found


def build(folder, tokenizer, **asked):
    write_task(folder, "fox", continuations(4))
    told = Asked("fox", include_path=str(folder), apply_chat_template=True, **asked)
    return population.build(Catalog(Quiet()).load(told), told, chat.of(tokenizer, "a model"))


def prompts(found):
    return [requests[0].args[0] for requests in found.requests.values()]


def test_prompts_as_the_template_writes_them(tmp_path, tokenizer):
    found = build(tmp_path, tokenizer, system_instruction="Go on.")
    docs = continuations(4)
    assert prompts(found)[0] == f"<26 Jul 2024>[system]Go on.[user]{docs[0]['question']}[assistant]"
    assert found.identity["system_instruction"] == "Go on."


def test_examples_as_turns_or_in_one(tmp_path, tokenizer):
    turns = build(tmp_path, tokenizer, num_fewshot=2, fewshot_as_multiturn=True)
    one = build(tmp_path, tokenizer, num_fewshot=2)
    assert [prompt.count("[user]") for prompt in prompts(turns)] == [3] * 4
    assert [prompt.count("[user]") for prompt in prompts(one)] == [1] * 4
    assert turns.identity != one.identity


def test_another_template_is_another_task(tmp_path, tokenizer):
    before = build(tmp_path, tokenizer).identity
    tokenizer.chat_template = TEMPLATE + " "
    after = build(tmp_path, tokenizer).identity
    assert before["chat_template"]["sha256"] != after["chat_template"]["sha256"]


def test_a_template_that_knows_no_system(tmp_path, tokenizer):
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
    )
    assert "[system]" not in prompts(build(tmp_path, tokenizer, system_instruction="Go on."))[0]


TODAY = "{{ strftime_now('%A %d.%m.%Y') }}|" + TEMPLATE


def test_prompts_do_not_change_with_the_day(tmp_path, tokenizer):
    """Neither by ``date_string`` nor by the function that prints today's date."""
    from transformers.utils import chat_template_utils

    today = chat_template_utils.datetime
    tokenizer.chat_template = TODAY
    assert prompts(build(tmp_path, tokenizer))[0].startswith("Friday 26.07.2024|<26 Jul 2024>")
    assert Tokens(tokenizer).chat([{"role": "user", "content": "A"}]) == "Friday 26.07.2024|<26 Jul 2024>[user]A"
    assert chat_template_utils.datetime is today
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(UsageError):
        Tokens(tokenizer).chat([{"role": "user", "content": "A"}])
    assert chat_template_utils.datetime is today


def test_without_a_template(byte_tokenizer):
    with pytest.raises(UsageError, match="the tokenizer of a model has no chat template"):
        chat.of(byte_tokenizer, "a model")


def held(memory, *, kind="cuda", vocabulary=128_000, own_cache=False):
    device = SimpleNamespace(kind=kind, memory_bytes=memory)
    return SimpleNamespace(
        engine="transformers", device=device, vocabulary=vocabulary, has_own_cache=own_cache, max_positions=4096
    )


def test_prompts_at_once(byte_tokenizer):
    prompts = ["a" * 100, "b" * 500, "c"]

    def at_once(loaded, alone=False):
        return language_model.prompts_at_once(loaded, byte_tokenizer, prompts, alone=alone)

    # 500 tokens of 128,000 logits in FP32, three times: 768 MB a prompt, of a sixteenth of the memory
    assert at_once(held(24e9)) == 1
    assert at_once(held(80e9)) == 4
    assert at_once(held(160e9)) == 8
    assert at_once(held(80e9, vocabulary=2000)) == 16
    assert at_once(held(80e9), alone=True) == 1
    assert at_once(held(80e9, own_cache=True)) == 1
    assert at_once(held(80e9, kind="cpu")) == 1
    assert at_once(held(None)) == 1


def test_asked_is_the_gate_without_its_limits(tmp_path):
    from pytest_quant.gates.gate import Gate

    gate = Gate("task_accuracy", (("max_drop", 0.1),), (("limit", 3), ("task", "fox")))
    assert Asked.of(gate) == Asked("fox", limit=3)
    assert Asked.of(gate, tmp_path) == Asked("fox", limit=3, include_path=str(tmp_path))
    named = replace(gate, parameters=(("include_path", "here"), ("task", "fox")))
    assert Asked.of(named, tmp_path).include_path == "here"
