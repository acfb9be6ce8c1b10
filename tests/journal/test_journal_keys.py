"""What a question's key depends on, and what it does not."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from pytest_quant.engines.source import ModelSource
from pytest_quant.gates.gate import Gate
from pytest_quant.hardware import Device
from pytest_quant.journal.keys import Keys
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Calibration, Settings
from pytest_quant.spec import ModelSpec

GATE = Gate("perplexity_delta", (("max", 1.0),))
TIMED = Gate("throughput_ratio", (("min", 1.0),))


@pytest.fixture
def asked(tmp_path, tiny_llama):
    """Makes a key of a question that differs by ``changes`` from the usual one."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("A text.")
    usual = Settings(corpus=str(corpus), cache_dir=tmp_path / "cache")

    def key(spec=None, format="int8", gate=GATE, questions=1, **changes):
        session = Session(replace(usual, **changes), Quiet())
        return Keys(session).key(spec or ModelSpec(ModelSource(str(tiny_llama)), "fp32"), format, gate, questions)

    return key


def test_the_same_question_has_the_same_key(asked, tmp_path):
    assert asked() == asked() is not None
    assert asked() == asked(cache_dir=tmp_path / "other", workers=4, quantize=True)


CHANGES = [
    {"confidence": 0.9},
    {"full": True},
    {"protocol": "gptq-64"},
    {"max_windows": 4},
    {"chat_template": True},
    {"corpus": "python-docstrings"},
    {"speed_budget": 1.0},
    {"price": 2.0},
    {"accept": ("mig",)},
    {"matrix": "lesson"},
    {"calibration": Calibration()},
    {"format": "bf16"},
    {"questions": 2},
    {"gate": replace(GATE, limits=(("max", 1.5),))},
    {"gate": replace(GATE, min_effect=0.1)},
    {"gate": replace(GATE, parameters=(("of", "peak"),))},
    {"gate": replace(GATE, metric="token_agreement")},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "-".join(changes))
def test_what_decides_a_number_is_in_the_key(asked, changes):
    assert asked(**changes) not in (None, asked())


@pytest.mark.parametrize(
    "changes",
    [{"reference": "bf16"}, {"engine": "vllm"}, {"require_native": False}],
    ids=lambda changes: "-".join(changes),
)
def test_what_a_test_says_of_its_model_is_in_the_key(asked, tiny_llama, changes):
    spec = ModelSpec(ModelSource(str(tiny_llama)), "fp32")
    assert asked(replace(spec, **changes)) not in (None, asked(spec))


def test_a_corpus_counts_by_its_content(asked, tmp_path):
    before = asked()
    (tmp_path / "corpus.txt").write_text("A text?")
    changed = asked()
    assert changed != before
    (tmp_path / "corpus.txt").write_text("A text.")
    os.utime(tmp_path / "corpus.txt", (0, 0))
    assert asked() == before, "checked out again, it is the same text"


def test_files_that_a_gate_or_a_mix_names_count_too(asked, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "mine.yaml").write_text("task: mine")
    gate = Gate("task_accuracy", (("max_drop", 0.1),), (("include_path", str(tasks)), ("task", "mine")))
    mix = Calibration(mix=f"0.5*{tmp_path / 'corpus.txt'},0.5*wikitext2")
    before = asked(gate=gate), asked(corpus="python-docs", calibration=mix)
    (tasks / "mine.yaml").write_text("task: yours")
    (tmp_path / "corpus.txt").write_text("Another text.")
    after = asked(gate=gate, corpus=str(tmp_path / "corpus.txt")), asked(corpus="python-docs", calibration=mix)
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_a_reference_that_was_stored_on_purpose_changes_quality_and_nothing_else(asked, tmp_path):
    before = asked(), asked(gate=TIMED)
    (tmp_path / "cache" / "references" / "imported").mkdir(parents=True)
    (tmp_path / "cache" / "references" / "imported" / "a.safetensors").write_bytes(b"1")
    assert asked() != before[0]
    assert asked(gate=TIMED) == before[1]


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_change_what_a_cpu_computes(asked, monkeypatch, variable):
    before = asked(), asked(gate=TIMED)
    monkeypatch.setenv(variable, "7")
    assert asked() != before[0]
    assert asked(gate=TIMED) != before[1]


def test_threads_of_the_host_change_the_speed_of_a_gpu_and_nothing_else(asked, monkeypatch):
    gpu = Device(kind="cuda", vendor="nvidia", name="NVIDIA H200", architecture="sm_90")
    monkeypatch.setattr(Session, "device", gpu)
    before = asked(), asked(gate=TIMED)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert asked() == before[0]
    assert asked(gate=TIMED) != before[1]


def test_other_workers_change_speed_and_nothing_else(asked, tmp_path):
    before = asked(), asked(gate=TIMED)
    assert asked(workers=4) == before[0]
    assert asked(gate=TIMED, workers=4) != before[1]
    (tmp_path / "alone").touch()
    assert asked(gate=TIMED, workers=4, together=tmp_path) == before[1], "it is alone"


def test_a_question_that_cannot_be_asked_has_no_key(asked, tmp_path):
    assert asked(ModelSpec(ModelSource(str(tmp_path / "absent")), "fp32")) is None
    assert asked(format="absent") is None
    assert asked(checkpoints=(("int8", str(tmp_path)),)) is None
