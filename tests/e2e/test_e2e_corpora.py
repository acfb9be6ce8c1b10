"""Corpora and protocols, through the command line and the ini file: what is measured, and what a mistake says."""

from __future__ import annotations

import json
import random
import shutil

import pytest

WORDS = ("The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog.")
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
GATE = """
import pytest

@pytest.mark.quant(formats=["nf4"])
@pytest.mark.perplexity_delta(max_ratio=3)
def test_gate(quant_model): ...
"""


def text(seed: int, count: int = 40) -> str:
    picks = random.Random(seed)
    return " ".join(picks.choice(WORDS) for _ in range(count))


@pytest.fixture
def plain(project):
    """A project that says neither corpus nor protocol."""
    (project.path / "corpus.txt").unlink()
    settings = ("quant_reference = fp32", f"quant_model = {project.model}")
    (project.path / "pytest.ini").write_text("\n".join(["[pytest]", *settings, ""]))
    project.test(GATE)
    return project


@pytest.fixture
def chatty(plain):
    """Its model has a chat template."""
    folder = plain.path / "chatty"
    shutil.copytree(plain.model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with (plain.path / "pytest.ini").open("a") as ini:
        ini.write("\nquant_protocol = gptq-32\n")
    return plain


def write_jsonl(project, *rows, name: str = "data.jsonl") -> None:
    (project.path / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def measured(project, *arguments: str):
    """The one measurement of a green run, on all windows."""
    result, record = project.record("--quant-full", *arguments)
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    (found,) = record["measurements"]
    assert found["verdict"] == "passed"
    assert found["windows"]["used"] == found["windows"]["total"]
    return found


def mistake(project, *arguments: str) -> str:
    """What a red run says of its mistake, which is one message, with no traceback and nothing recorded."""
    result = project.gate(*arguments)
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED, pytest.ExitCode.USAGE_ERROR)
    result.stdout.no_re_match_line(r".*\d passed")
    for ours in ("*pytest_quant/*.py*", "*Traceback*", "*INTERNALERROR*", "*During handling*"):
        result.stdout.no_fnmatch_line(ours)
        result.stderr.no_fnmatch_line(ours)
    assert project.baselines == {}
    return "\n".join([*result.outlines, *result.errlines])


def test_llamacpp_scores_the_second_halves(plain):
    (plain.path / "corpus.txt").write_text(text(0, 100))
    size = len((plain.path / "corpus.txt").read_bytes())
    found = measured(plain, "--quant-corpus=corpus.txt", "--quant-protocol=llamacpp-64")
    protocol = found["identity"]["protocol"]
    assert (protocol["name"], protocol["window"], protocol["tail"]) == ("llamacpp-64", 64, "dropped")
    assert found["windows"]["total"] == size // 64
    gptq = measured(plain, "--quant-corpus=corpus.txt", "--quant-protocol=gptq-64")
    assert gptq["windows"] == found["windows"]
    assert gptq["reference_value"] != found["reference_value"]


def test_lm_eval_word_scores_each_document_of_json_lines(plain):
    write_jsonl(plain, {"text": text(1, 30)}, {"text": text(2, 50)}, {"text": text(3, 1)})
    found = measured(plain, "--quant-corpus=data.jsonl", "--quant-protocol=lm-eval-word-64")
    assert found["windows"]["total"] == 3
    protocol = found["identity"]["protocol"]
    assert (protocol["name"], protocol["unit"], protocol["window"]) == ("lm-eval-word-64", "words", 64)
    longest = measured(plain, "--quant-corpus=data.jsonl", "--quant-protocol=lm-eval-word")
    assert longest["identity"]["protocol"]["name"] == "lm-eval-word-512", "the model's own maximum"
    assert longest["reference_value"] > 5, "perplexity by words, not by bytes"


def test_the_baseline_of_a_word_protocol_gives_a_difference_of_zero(plain):
    write_jsonl(plain, *({"text": text(seed, 5 + seed)} for seed in range(12)))
    arguments = ("--quant-corpus=data.jsonl", "--quant-protocol=lm-eval-word-32", "--quant-baseline")
    assert plain.run(*arguments).ret == 0
    result, record = plain.record(*arguments, "--quant-missing=fail")
    assert result.ret == 0
    (found,) = record["measurements"]
    assert found["windows"] == {"used": 8, "total": 12}
    assert found["baseline"]["change"] == "+0.0000 nats"


def test_columns_of_json_lines_and_parquet_give_the_same_windows(plain):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"title": "no", "body": text(seed)} for seed in range(4)]
    write_jsonl(plain, *rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), plain.path / "data.parquet")
    values = set()
    for corpus in ("data.jsonl:body", "data.parquet:body"):
        found = measured(plain, f"--quant-corpus={corpus}", "--quant-protocol=gptq-32")
        protocol = found["identity"]["protocol"]
        values.add((found["value"], protocol["tokens_sha256"], found["windows"]["total"]))
    assert len(values) == 1
    said = mistake(plain, "--quant-corpus=data.parquet:nothing", "--quant-protocol=gptq-32")
    assert "data.parquet has body, title, but no nothing" in said
    assert "but no text, page, content or messages; name the column after the file" in mistake(
        plain, "--quant-corpus=data.parquet", "--quant-protocol=gptq-32"
    )


def test_a_copy_of_wikitext_is_joined_by_rows(plain):
    (plain.path / "wiki.test.raw").write_text(f" \n = One = \n \n {text(4)} \n \n {text(5)} \n")
    found = measured(plain, "--quant-corpus=wikitext2:wiki.test.raw", "--quant-protocol=gptq-32")
    assert found["identity"]["protocol"]["corpus"]["name"] == "wikitext2"


@pytest.mark.parametrize("corpus", ["texts/corpus.txt", "wikitext2:texts/corpus.txt", "texts/data.jsonl:body"])
def test_a_relative_path_in_the_ini_file_is_meant_from_the_rootdir(plain, monkeypatch, corpus):
    for name in ("texts", "tests/below"):
        (plain.path / name).mkdir(parents=True)
    (plain.path / "texts" / "corpus.txt").write_text(text(6))
    write_jsonl(plain, {"body": text(6)}, name="texts/data.jsonl")
    with (plain.path / "pytest.ini").open("a") as ini:
        ini.write(f"\nquant_corpus = {corpus}\nquant_protocol = gptq-32\n")
    shutil.move(plain.path / "test_quant.py", plain.path / "tests" / "below")
    monkeypatch.chdir(plain.path / "tests" / "below")
    result = plain.run()
    assert result.ret == 0
    result.assert_outcomes(passed=1)


def test_the_chat_template_makes_messages_of_documents(chatty):
    write_jsonl(chatty, *({"text": text(seed)} for seed in range(3)))
    arguments = ("--quant-model=chatty", "--quant-corpus=data.jsonl")
    bare = measured(chatty, *arguments)
    chat = measured(chatty, *arguments, "--quant-chat-template")
    assert chat["identity"]["protocol"]["chat_template"] is True
    assert "chat_template" not in bare["identity"]["protocol"]
    assert chat["identity"]["protocol"]["tokens_sha256"] != bare["identity"]["protocol"]["tokens_sha256"]
    with (chatty.path / "pytest.ini").open("a") as ini:
        ini.write("quant_chat_template = true\n")
    assert measured(chatty, *arguments)["identity"] == chat["identity"]


def test_conversations_need_the_chat_template(chatty):
    turns = [{"role": "user", "content": text(7)}, {"role": "assistant", "content": text(8)}]
    write_jsonl(chatty, {"messages": turns}, {"messages": turns[:1]})
    arguments = ("--quant-model=chatty", "--quant-corpus=data.jsonl")
    assert "holds conversations, which only a chat template makes text of" in mistake(chatty, *arguments)
    assert measured(chatty, *arguments, "--quant-chat-template")["windows"]["total"] >= 8


def test_a_chat_template_that_refuses_is_one_message(chatty):
    (chatty.path / "chatty" / "chat_template.jinja").write_text("{{ raise_exception('no system here') }}")
    write_jsonl(chatty, {"text": text(9)})
    said = mistake(chatty, "--quant-model=chatty", "--quant-corpus=data.jsonl", "--quant-chat-template")
    assert "the chat template refuses messages of user: no system here" in said


CORPUS = {"text": text(10)}


@pytest.mark.parametrize(
    "content, arguments, message",
    [
        ([CORPUS], ["--quant-chat-template"], "the tokenizer has no chat template; leave out --quant-chat-template"),
        ([CORPUS], ["--quant-chat-template", "--quant-protocol=lm-eval-word"], "scores documents as they are"),
        ([CORPUS], ["--quant-protocol=gptq-4096"], "not enough for one window of gptq-4096"),
        ([CORPUS] * 20, ["--quant-protocol=gptq-1024"], "do not fit the model's 512 positions"),
        ([CORPUS], ["--quant-protocol=llamacpp-33"], "needs an even length"),
        ([CORPUS], ["--quant-protocol=gptq"], "unknown protocol 'gptq'"),
        ([CORPUS], ["--quant-protocol=hf-strided-32-64"], "a stride of 1 to the window's length"),
        ([CORPUS], ["--quant-corpus=nowhere.txt"], "unknown corpus 'nowhere.txt'"),
        ([CORPUS], ["--quant-corpus=wikitext2:nowhere.raw"], "'nowhere.raw' of wikitext2 is not there"),
        ([CORPUS], ["--quant-corpus=wikitext2:"], "unknown corpus 'wikitext2:'"),
        ([CORPUS], ["--quant-corpus=data.jsonl:nothing"], "data.jsonl, line 1, has text, but no nothing"),
        ([CORPUS, 3], [], "data.jsonl, line 2, is neither an object nor a text"),
        ([CORPUS, {"text": None}], [], "data.jsonl, line 2, holds null"),
        ([{"text": " "}], [], "is empty"),
        ([{"text": text(1)}, {"text": ""}], ["--quant-protocol=lm-eval-word"], "document 2 of the corpus"),
        ([CORPUS], ["--quant-max-windows=1"], "--quant-max-windows=1: must be a whole number of 2 or more"),
        ([CORPUS], ["--quant-corpus=."], "unknown corpus"),
    ],
)
def test_a_mistake_is_one_message(plain, content, arguments, message):
    with (plain.path / "pytest.ini").open("a") as ini:
        ini.write("\nquant_corpus = data.jsonl\nquant_protocol = gptq-32\n")
    write_jsonl(plain, *content)
    said = mistake(plain, *arguments)
    assert message in said
    assert sum(message in line for line in said.splitlines()) <= 2, "where it failed, and in the short summary"
