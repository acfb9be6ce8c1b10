"""On a CUDA device, in FP16: tasks in batches, continuations, a scan of layers, and a broken gate that explains itself.
Ready to run where one is."""

from __future__ import annotations

import pytest
from task_files import write_task

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

GATES = """
import pytest

pytestmark = pytest.mark.quant(formats=["nf4"], reference="fp16")

@pytest.mark.task_accuracy(task="numbers", max_drop=0.6, min_accuracy=0.3)
def test_task(quant_model): ...

@pytest.mark.generation_match(min=0.01, prompts=["One, two, three,", "The capital of France is"], max_new_tokens=8)
def test_text(quant_model): ...

@pytest.mark.layer_sensitivity(max=0.5, of="block", windows=2)
def test_blocks(quant_model): ...

@pytest.mark.perplexity_delta(max=0.001)
def test_broken(quant_model): ...
"""


def test_the_gates_of_answers_and_layers(real_project):
    docs = [
        {
            "question": f"The number is {digit}. Question: What is the number?\nAnswer: The number is",
            "choices": [str((digit + shift) % 10) for shift in (0, 2, 5, 7)],
            "answer": 0,
        }
        for digit in range(10)
    ]
    write_task(real_project.path / "tasks", "numbers", docs)
    real_project.ini(f"quant_model = {real_project.model}", "quant_tasks = tasks", "quant_max_windows = 8")
    real_project.test(GATES)
    _, record = real_project.record("--quant-full")
    found = {measured["metric"]: measured for measured in record["measurements"]}
    assert {name: measured["verdict"] for name, measured in found.items()} == {
        "task_accuracy": "passed",
        "generation_match": "passed",
        "layer_sensitivity": "passed",
        "perplexity_delta": "failed",
    }
    assert found["task_accuracy"]["items"] == {"used": 10, "total": 10}
    assert found["layer_sensitivity"]["detail"]["reused"]
    explanation = found["perplexity_delta"]["explanation"]
    assert explanation["layers"]["standing_out"] == []
    assert explanation["next"][0].startswith("pytest-quant scan ")


def test_what_a_scan_keeps_wide_holds_in_fp16(smollm2, capsys):
    from pytest_quant.cli import main

    words = ["scan", str(smollm2), "--format", "nf4", "--reference", "fp16", "--blocks", "--windows", "2"]
    assert main([*words, "--max-ratio", "1.15"]) == 0
    assert "and the rest keeps the budget" in capsys.readouterr().out
