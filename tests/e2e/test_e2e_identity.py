"""What a measurement and a reference are of: change any of it, and the old ones are neither compared with nor used."""

from __future__ import annotations

import json
import random
import shutil

import pytest

WORDS = ("The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog.")
GATE = """
import pytest

@pytest.mark.perplexity_delta(max_ratio=3)
def test_gate(quant_model): ...
"""


@pytest.fixture
def loads(monkeypatch):
    """What was loaded: ``reference`` or ``format``."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    found = []

    def counted(*args, **kwargs):
        found.append("format" if "quantization_config" in kwargs else "reference")
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return found


@pytest.fixture
def own(project, loads):
    """A project with a model of its own, a baseline and a stored reference."""
    picks = random.Random(0)
    (project.path / "corpus.txt").write_text(" ".join(picks.choice(WORDS) for _ in range(60)))
    shutil.copytree(project.model, project.path / "model")
    settings = ("quant_corpus = corpus.txt", "quant_reference = fp32", "quant_formats = nf4", "quant_cache_dir = cache")
    (project.path / "pytest.ini").write_text("\n".join(["[pytest]", *settings, "quant_model = model", ""]))
    project.test(GATE)
    assert project.gate("--quant-protocol=gptq-32").ret == 0
    again = project.gate("--quant-protocol=gptq-32", "--quant-missing=fail")
    assert again.ret == 0
    assert loads == ["format", "reference", "format"], "the second run had both"
    loads.clear()
    return project


def one_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def one_token(folder):
    rules = json.loads((folder / "tokenizer.json").read_text())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    rules["added_tokens"].append({"id": 255, "content": "never seen", **added})
    (folder / "tokenizer.json").write_text(json.dumps(rules))


def one_normalizer(folder):
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(rules))


def one_setting(folder):
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 1e-5
    (folder / "config.json").write_text(json.dumps(config))


def chat_template(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def differs(project, loads, *arguments: str) -> str:
    """Why the old baseline is not compared with; the old reference is not used either."""
    before = project.baselines
    result, record = project.record("--quant-baseline", "--quant-missing=fail", *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    (measured,) = record["measurements"]
    assert measured["verdict"] == "passed"
    assert measured["baseline"]["verdict"] == "incomparable"
    assert "change" not in measured["baseline"]
    assert "reference_source" not in measured
    assert sorted(loads) == ["format", "reference"]
    assert project.baselines == before
    result.stdout.fnmatch_lines(["*nf4 perplexity_delta incomparable: the baseline's identity differs: *"])
    return measured["baseline"]["reason"]


@pytest.mark.parametrize("change", [one_weight, one_token, one_normalizer, one_setting, chat_template])
def test_another_model_or_tokenizer_is_not_compared(own, loads, change):
    change(own.path / "model")
    assert "fingerprint" in differs(own, loads, "--quant-protocol=gptq-32")
    recorded = own.gate("--quant-protocol=gptq-32")
    assert recorded.ret == 0
    recorded.stdout.fnmatch_lines(["nf4 *incomparable", "1 measurement recorded in *"])
    loads.clear()
    settled = own.gate("--quant-protocol=gptq-32", "--quant-missing=fail")
    assert settled.ret == 0
    assert loads == ["format"]


def test_a_byte_of_the_corpus_is_another_question(own, loads):
    text = (own.path / "corpus.txt").read_text()
    (own.path / "corpus.txt").write_text(text.replace("fox", "fax", 1))
    assert "corpus" in differs(own, loads, "--quant-protocol=gptq-32")


def test_a_byte_beyond_the_last_window_is_another_corpus(own, loads):
    with (own.path / "corpus.txt").open("a") as text:
        text.write(" ")
    assert "corpus" in differs(own, loads, "--quant-protocol=gptq-32")


@pytest.mark.parametrize("protocol", ["gptq-33", "hf-strided-32-32", "llamacpp-32"])
def test_another_protocol_is_another_question(own, loads, protocol):
    assert "protocol" in differs(own, loads, f"--quant-protocol={protocol}")


def test_a_subset_is_another_question_that_the_stored_reference_answers(own, loads):
    result, record = own.record(
        "--quant-baseline", "--quant-missing=fail", "--quant-protocol=gptq-32", "--quant-max-windows=5"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (measured,) = record["measurements"]
    assert measured["baseline"]["verdict"] == "incomparable"
    assert "subset" in measured["baseline"]["reason"]
    assert loads == ["format"]


def test_the_same_model_and_text_elsewhere_are_the_same(own, loads):
    (own.path / "moved").mkdir()
    shutil.move(own.path / "model", own.path / "moved" / "model")
    shutil.move(own.path / "corpus.txt", own.path / "moved" / "corpus.txt")
    before = own.baselines
    result, record = own.record(
        "--quant-baseline",
        "--quant-missing=fail",
        "--quant-protocol=gptq-32",
        "--quant-model=moved/model",
        "--quant-corpus=moved/corpus.txt",
    )
    assert result.ret == 0
    (measured,) = record["measurements"]
    assert (measured["baseline"]["verdict"], measured["baseline"]["change"]) == ("passed", "+0.0000 nats")
    assert measured["reference_source"] == "stored"
    assert loads == ["format"]
    assert own.baselines == before


def test_another_reference_or_format_is_another_measurement(own, loads):
    result, record = own.record(
        "--quant-baseline", "--quant-missing=fail", "--quant-protocol=gptq-32", "--quant-reference=bf16"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (measured,) = record["measurements"]
    assert measured["baseline"]["verdict"] == "incomparable"
    assert loads.count("reference") == 1
    result, record = own.record(
        "--quant-baseline", "--quant-missing=fail", "--quant-protocol=gptq-32", "--quant-formats=fp4"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (measured,) = record["measurements"]
    assert measured["baseline"]["verdict"] == "missing"
