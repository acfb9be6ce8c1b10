"""Prompts and their greedy continuations: what is read, what is asked of the models, and what is said of a change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from together import Together

from pytest_quant.continuations import Continuations
from pytest_quant.corpora import prompts
from pytest_quant.corpora.corpus import Conversation
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.transformers import TransformersModel
from pytest_quant.errors import NotFinite, NotMeasured, UsageError
from pytest_quant.gates.gate import Gate
from pytest_quant.population import Population
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

SENTENCE = "The quick brown fox jumps over the lazy dog. "
PROMPTS = ("The quick", "brown fox", "jumps over the", "azy d", "zzzz", "The quick brown fox jumps")
END = 2
"""The end token of the tiny model's generation config."""
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"

pytestmark = pytest.mark.usefixtures("libraries")


def gate(**parameters: Any) -> Gate:
    return Gate("generation_match", (), tuple(sorted(parameters.items())))


class Run:
    """The room with the tiny model in fp32 and nf4, and which model continued which prompt."""

    def __init__(self, session: Session, model: Path, kept: dict[str, Any]) -> None:
        self.session, self.kept = session, kept
        self.spec = ModelSpec(ModelSource(str(model)), reference="fp32")
        self.room = Continuations(session.settings, Population(session.settings), Together(self.model), Quiet())
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def model(self, spec: ModelSpec, name: str) -> Any:
        if name not in self.kept:
            self.kept[name] = self.session.model(self.spec, name)
        return self.kept[name]

    def sample(self, format: str = "nf4", **parameters: Any) -> Any:
        return self.room.sample(self.spec, format, gate(**parameters))


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return {}


@pytest.fixture
def run(tiny_llama, tmp_path, kept, monkeypatch) -> Run:
    (tmp_path / "corpus.txt").write_text(SENTENCE * 30)
    session = Session(Settings(str(tmp_path / "corpus.txt"), "gptq-64", cache_dir=tmp_path / "cache"), Quiet())
    found = Run(session, tiny_llama, kept)
    whole = TransformersModel.continue_greedily

    def noted(model: Any, tokens: Any, *rest: Any) -> Any:
        name = next(name for name, handle in kept.items() if handle.loaded is model)
        found.asked.append((name, tuple(tokens.tolist())))
        return whole(model, tokens, *rest)

    monkeypatch.setattr(TransformersModel, "continue_greedily", noted)
    return found


@pytest.fixture
def chat(run, byte_tokenizer, monkeypatch) -> Run:
    """The tokenizer has a chat template."""
    monkeypatch.setattr(run.room._tokens(run.spec)._tokenizer, "chat_template", CHAT)
    return run


def ids(text: str) -> list[int]:
    """Two steps through a byte's number: the tokenizer has one token a byte, in its own order."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [alphabet.index(letter) for piece, _ in level.pre_tokenize_str(text) for letter in piece]


def test_both_models_continue_every_prompt_once(run):
    sample = run.sample(prompts=PROMPTS, max_new_tokens=8)
    assert (sample.noun, sample.total, sample.drawn) == ("prompts", 6, 0)
    sample.extend(4)
    assert sample.drawn == 4
    sample.extend(4)
    assert sample.drawn == 6
    assert sorted(run.asked) == sorted((name, tuple(ids(p))) for p in PROMPTS for name in ("fp32", "nf4"))


def test_the_reference_is_asked_once_for_all_formats_and_gates(run):
    run.sample(prompts=PROMPTS, max_new_tokens=8).extend(6)
    run.sample("int8", prompts=PROMPTS, max_new_tokens=8).extend(6)
    run.sample(prompts=PROMPTS, max_new_tokens=8).extend(6)
    assert [sum(name == one for one, _ in run.asked) for name in ("fp32", "nf4", "int8")] == [6, 6, 6]


def test_the_order_is_random_and_the_same_in_every_run(run, tiny_llama, kept):
    run.sample(prompts=PROMPTS, max_new_tokens=2).extend(6)
    other = Run(run.session, tiny_llama, kept)
    first, run.asked[:] = list(run.asked), []
    other.sample(prompts=PROMPTS, max_new_tokens=2).extend(6)
    assert run.asked == first
    assert [tokens for name, tokens in first if name == "nf4"] != [tuple(ids(p)) for p in PROMPTS]


def test_what_is_forgotten_is_asked_again(run):
    run.sample(prompts=PROMPTS[:2], max_new_tokens=2).extend(2)
    run.room.forget(run.spec)
    assert run.sample(prompts=PROMPTS[:2], max_new_tokens=2).drawn == 0
    run.sample(prompts=PROMPTS[:2], max_new_tokens=2).extend(2)
    assert len(run.asked) == 8


def test_the_answer_is_that_of_the_tokens(run):
    sample = run.sample(prompts=PROMPTS, max_new_tokens=12)
    sample.extend(6)
    answer = sample.answer(0.01)
    shares = []
    for number in sample._order:
        tokens = np.array(ids(PROMPTS[number]))
        one, other = (run.kept[name].loaded.continue_greedily(tokens, 12, {END}) for name in ("fp32", "nf4"))
        length = max(len(one), len(other))
        shares.append(sum(a == b for a, b in zip(one, other, strict=False)) / length)
    assert answer.scores == shares
    assert answer.main == "share"
    assert answer.quantities["share"].value == pytest.approx(np.mean(shares))
    assert answer.quantities["share"].is_exact
    assert answer.weights == [1.0] * 6


def test_what_changed_is_told_by_the_earliest_difference_first(run, monkeypatch):
    said = {"fp32": "the lazy dog", "nf4": "the lazy cat"}
    place = {PROMPTS[0]: 3, PROMPTS[1]: 9, PROMPTS[2]: 0, PROMPTS[3]: 12}

    def scripted(model: Any, tokens: Any, *_: Any) -> Any:
        name = next(name for name, handle in run.kept.items() if handle.loaded is model)
        text = next(p for p in PROMPTS if ids(p) == tokens.tolist())
        first = place[text]
        return np.array(ids(said["fp32"][:first] + ("!" if name == "nf4" else "") + said["fp32"][first:])[:12])

    monkeypatch.setattr(TransformersModel, "continue_greedily", scripted)
    sample = run.sample(prompts=PROMPTS[:4], max_new_tokens=12)
    sample.extend(4)
    assert sample.answer(0.01).figures == {"changed": 3.0, "first_divergence_median": 3.0}
    assert sample.detail() == {
        "changed": [
            {"prompt": PROMPTS[2], "first": 0, "common": "", "reference": "the lazy dog", "format": "!the lazy do"},
            {"prompt": PROMPTS[0], "first": 3, "common": "the", "reference": " lazy dog", "format": "! lazy do"},
            {"prompt": PROMPTS[1], "first": 9, "common": "the lazy ", "reference": "dog", "format": "!do"},
        ]
    }
    json.dumps(sample.detail())


def test_long_prompts_are_shown_shortened(run, monkeypatch):
    monkeypatch.setattr(
        TransformersModel,
        "continue_greedily",
        lambda model, *_: np.array([5 if model is run.kept["nf4"].loaded else 6]),
    )
    sample = run.sample(prompts=("a" * 300,), max_new_tokens=2)
    sample.extend(1)
    assert sample.detail()["changed"][0]["prompt"] == "a" * 197 + "..."


def test_nothing_changed_tells_nothing(run, monkeypatch):
    monkeypatch.setattr(TransformersModel, "continue_greedily", lambda *_: np.array([5]))
    sample = run.sample(prompts=PROMPTS, max_new_tokens=2)
    sample.extend(6)
    assert sample.detail() == {}


def silent(run, monkeypatch, *names: str, prompts: tuple[str, ...] = PROMPTS) -> None:
    """Models that end at once, after these prompts."""
    tokens = [ids(prompt) for prompt in prompts]

    def scripted(model: Any, prompt: Any, *_: Any) -> Any:
        name = next(name for name, handle in run.kept.items() if handle.loaded is model)
        return np.array([END] if name in names and prompt.tolist() in tokens else [7, END])

    monkeypatch.setattr(TransformersModel, "continue_greedily", scripted)


def test_a_reference_that_says_nothing_is_not_measured(run, monkeypatch):
    silent(run, monkeypatch, "fp32")
    sample = run.sample(prompts=PROMPTS, max_new_tokens=2)
    assert not sample.telling
    sample.extend(5)
    sample.answer(0.01)
    assert not sample.telling
    sample.extend(1)
    with pytest.raises(NotMeasured, match="the fp32 reference says nothing after any of 6 prompts"):
        sample.answer(0.01)


def test_a_format_alone_that_says_nothing_agrees_nowhere(run, monkeypatch):
    silent(run, monkeypatch, "nf4")
    sample = run.sample(prompts=PROMPTS, max_new_tokens=2)
    sample.extend(6)
    assert sample.telling
    assert sample.answer(0.01).quantities["share"].value == 0.0
    assert "empty" not in sample.detail()


def test_prompts_that_neither_continues_are_counted(run, monkeypatch):
    silent(run, monkeypatch, "fp32", "nf4", prompts=PROMPTS[:2])
    sample = run.sample(prompts=PROMPTS, max_new_tokens=2)
    sample.extend(6)
    assert sample.telling
    assert sample.answer(0.01).figures == {"changed": 0.0, "empty": 2.0}
    assert sample.detail() == {"empty": 2}
    assert sample.reference_stored == 0


@pytest.mark.parametrize("name, error", [("fp32", NotMeasured), ("nf4", NotFinite)])
def test_a_model_that_gives_nan_is_named(run, monkeypatch, name, error):
    def broken(model: Any, *_: Any) -> Any:
        if model is run.kept[name].loaded:
            raise NotFinite("the logits after 9 tokens are NaN or infinite")
        return np.array([7, END])

    sample = run.sample(prompts=PROMPTS, max_new_tokens=2)
    monkeypatch.setattr(TransformersModel, "continue_greedily", broken)
    with pytest.raises(NotMeasured, match=rf"the {name} \w+ cannot continue '.*': the logits after 9") as found:
        sample.extend(1)
    assert type(found.value) is error


def test_the_reference_is_no_format(run):
    with pytest.raises(UsageError, match="fp32 is the reference itself"):
        run.sample("fp32", prompts=PROMPTS)


def test_identity_is_that_of_the_prompts(run, tmp_path):
    (tmp_path / "one.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "two.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    told = run.sample(prompts=PROMPTS, max_new_tokens=4).identity()
    assert told.keys() == {"prompts", "sha256", "max_new_tokens", "chat_template", "end_tokens"}
    assert (told["prompts"], told["max_new_tokens"], told["chat_template"]) == (6, 4, False)
    for name in ("one.txt", "two.jsonl"):
        assert run.sample(prompts=str(tmp_path / name), max_new_tokens=4).identity() == told
    for other in ({"prompts": PROMPTS[:5]}, {"prompts": PROMPTS[::-1]}, {"max_new_tokens": 5}):
        assert run.sample(**{"prompts": PROMPTS, "max_new_tokens": 4, **other}).identity() != told


def test_prompts_of_the_corpus_are_spread_over_it(run):
    sample = run.sample()
    assert sample.total == 32
    stream = ids(SENTENCE * 30)
    expected = [stream[start : start + 32] for start in (number * len(stream) // 32 for number in range(32))]
    assert [prompt.tokens.tolist() for prompt in sample._prompts.all] == expected
    assert sample._prompts.all[0].text == SENTENCE[:32]
    assert run.sample(limit=5).total == 5


def test_prompts_of_the_corpus_begin_with_bos(run, monkeypatch):
    monkeypatch.setattr(type(run.room._tokens(run.spec)), "bos", 3)
    assert all(prompt.tokens[0] == 3 and len(prompt.tokens) == 33 for prompt in run.sample()._prompts.all)


def test_a_corpus_that_is_too_short_is_told(run):
    with pytest.raises(UsageError, match="100 prompts of 32 tokens need a corpus of 3200, which has 1350"):
        run.sample(limit=100)


def test_a_limit_takes_the_first(run):
    sample = run.sample(prompts=PROMPTS, limit=2)
    assert [prompt.text for prompt in sample._prompts.all] == list(PROMPTS[:2])


def test_a_chat_template_makes_a_question_of_a_prompt(chat):
    sample = chat.sample(prompts=PROMPTS[:1], chat_template=True)
    assert sample._prompts.all[0].tokens.tolist() == ids("[user]The quick[bot]")
    assert sample._prompts.all[0].text == "The quick"
    assert sample.identity() != chat.sample(prompts=PROMPTS[:1]).identity()


def test_conversations_are_asked_up_to_the_last_answer(chat, tmp_path):
    turns = [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}))
    sample = chat.sample(prompts=str(tmp_path / "chats.jsonl"))
    assert sample._prompts.all[0].tokens.tolist() == ids("[system]S[user]A[assistant]B[user]C[bot]")
    assert sample._prompts.all[0].text == "C"


def test_messages_need_a_chat_template(run, tmp_path):
    (tmp_path / "chats.jsonl").write_text('\n{"messages": [{"role": "user", "content": "A"}]}')
    said = "no chat template"
    with pytest.raises(UsageError, match=rf"^chats\.jsonl, line 2: it is a conversation, but .*{said}") as one:
        run.sample(prompts=str(tmp_path / "chats.jsonl"))
    with pytest.raises(
        UsageError, match=rf"prompt 1 of .*chat_template=True.*{said}.*leave out chat_template"
    ) as other:
        run.sample(prompts=PROMPTS, chat_template=True)
    assert "--quant-chat-template" not in f"{one.value} {other.value}"


def test_a_template_that_refuses_names_the_prompt(chat, monkeypatch):
    monkeypatch.setattr(chat.room._tokens(chat.spec)._tokenizer, "chat_template", "{{ raise_exception('not so') }}")
    with pytest.raises(UsageError, match=r"prompt 1 of .*: the chat template refuses messages of user: not so"):
        chat.sample(prompts=PROMPTS, chat_template=True)


@pytest.mark.parametrize(
    "parameters, said",
    [
        ({"prompts": ("a", "")}, r"prompt 2 of prompts=\(\.\.\.\): it has no tokens"),
        ({"chat_template": True}, r"chat_template=True\) needs prompts="),
        ({"prompts": ()}, "holds no prompt"),
        (
            {"prompts": ("a" * 500,)},
            r"prompt 1 of .*: its 500 tokens and 32 new ones do not fit the model's 512 positions",
        ),
        ({"limit": 0}, "limit=0 leaves nothing"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 leaves nothing"),
        ({"prompts": "nowhere.txt"}, "'nowhere.txt' is the path of no file"),
    ],
)
def test_prompts_that_cannot_be_used(run, parameters, said):
    with pytest.raises(UsageError, match=said):
        run.sample(**parameters)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"other": 1}\n', r"p\.jsonl, line 2, has other, but no prompt"),
        ("p.jsonl", b'"a"\n{"prompt": \n', r"p\.jsonl, line 2, is not JSON"),
        ("p.jsonl", b'{"prompt": 3}\n', r"p\.jsonl, line 1, holds a int"),
        ("p.jsonl", b"{\n", r"p\.jsonl, line 1, is not JSON"),
        ("p.jsonl", b"\n\n", r"'p\.jsonl' holds no prompt"),
        ("p.txt", b"a\n\xff\n", r"p\.txt, line 2, is not UTF-8"),
        ("p.txt", b" \n", r"'p\.txt' holds no prompt"),
        ("p.csv", b"a\n", r"p\.csv"),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_place(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        prompts.read(str(tmp_path / name))


@pytest.mark.parametrize(
    "name, content",
    [
        ("p.txt", "\ufeffone\r\n\r\n two \n"),
        ("p.jsonl", '{"prompt": "one"}\n\n{"prompt": " two ", "text": "no"}\n'),
        ("p.jsonl", '{"text": "one"}\n{"text": " two "}'),
        ("p.jsonl", '{"text": "one"}\n{"prompt": " two "}'),
        ("p.jsonl", '{"prompt": "one"}\n{"text": " two "}'),
        ("p.jsonl", '"one"\n{"prompt": " two "}'),
        ("p.ndjson", '\ufeff"one"\n" two "'),
    ],
)
def test_prompts_of_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert [each.prompt for each in prompts.read(str(tmp_path / name))] == ["one", " two "]


def test_prompts_know_their_lines(tmp_path):
    (tmp_path / "p.txt").write_text("\none\n\ntwo\n")
    (tmp_path / "p.jsonl").write_text('\n"one"\n\n{"text": "two"}\n')
    for name in ("p.txt", "p.jsonl"):
        assert [each.place for each in prompts.read(str(tmp_path / name))] == [f"{name}, line 2", f"{name}, line 4"]
    assert [each.place for each in prompts.read(("a", "b"))] == [
        "prompt 1 of prompts=(...)",
        "prompt 2 of prompts=(...)",
    ]


def test_a_column_can_be_named(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "one", "text": "no"}\n')
    assert [each.prompt for each in prompts.read(f"{tmp_path / 'p.jsonl'}:question")] == ["one"]


def test_conversations_are_read(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"messages": [{"role": "user", "content": "A"}]}')
    assert prompts.read(str(tmp_path / "p.jsonl"))[0].prompt == Conversation((("user", "A"),))


def continued(handle: Any, text: str, count: int) -> list[int]:
    return handle.loaded.continue_greedily(np.array(ids(text)), count, handle.loaded.end_tokens).tolist()


def test_the_continuation_is_that_of_generate(run):
    import torch

    handle = run.model(run.spec, "fp32")
    for text in PROMPTS:
        inputs = torch.tensor([ids(text)])
        out = handle.model.generate(inputs, max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert continued(handle, text, 20) == out[0, inputs.shape[1] :].tolist()


def test_the_models_generation_config_does_not_change_what_it_says(run, monkeypatch):
    import torch

    handle = run.model(run.spec, "fp32")
    before = continued(handle, "zzzz", 24)
    config = handle.model.generation_config
    for name, value in {"repetition_penalty": 5.0, "min_new_tokens": 24, "do_sample": True, "top_k": 3}.items():
        monkeypatch.setattr(config, name, value)
    assert continued(handle, "zzzz", 24) == before
    theirs = handle.model.generate(torch.tensor([ids("zzzz")]), max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert theirs[0, 4:].tolist() != before  # what it would have done


def test_a_continuation_ends_with_the_first_end_token(run):
    handle = run.model(run.spec, "fp32")
    whole = handle.loaded.continue_greedily(np.array(ids("The quick")), 12, set())
    assert len(whole) == 12
    end = int(whole[5])
    cut = handle.loaded.continue_greedily(np.array(ids("The quick")), 12, {end})
    assert cut.tolist() == whole[: whole.tolist().index(end) + 1].tolist()


def test_end_tokens_are_those_of_the_generation_config(run, monkeypatch):
    loaded = run.model(run.spec, "fp32").loaded
    config = loaded.model.generation_config
    for given, expected in ((7, {7}), ([7, 9], {7, 9}), (None, {loaded.tokenizer.eos_token_id})):
        monkeypatch.setattr(config, "eos_token_id", given)
        assert loaded.end_tokens == expected


def test_a_kv_cache_format_is_read_while_continuing(run):
    """Its first token comes from the prompt's own forward, the others from what the cache gives back."""
    plain, cached = run.model(run.spec, "fp32"), run.model(run.spec, "fp32+kv-int2-g32")
    prompt = "zzzz qqqq xxxx jjjj"
    assert continued(cached, prompt, 1) == continued(plain, prompt, 1)
    sample = run.sample("fp32+kv-int2-g32", prompts=(prompt, *PROMPTS), max_new_tokens=32)
    sample.extend(7)
    assert sample.answer(0.01).quantities["same"].value < 1.0
    with pytest.raises(UsageError, match="max_new_tokens=1 reads nothing from the KV cache"):
        run.sample("fp32+kv-int2-g32", prompts=PROMPTS, max_new_tokens=1)


def test_logits_of_nan_are_no_continuation(run, monkeypatch):
    import torch

    loaded = run.model(run.spec, "fp32").loaded

    class Out:
        logits = torch.full((1, 1, 256), float("nan"))
        past_key_values = None

    monkeypatch.setattr(loaded, "fed", lambda *_: Out)
    with pytest.raises(NotFinite, match="after 3 tokens"):
        loaded.continue_greedily(np.array([1, 2, 3]), 4, set())
