"""What of a gate becomes part of a measurement's identity."""

from __future__ import annotations

from pytest_quant.engines.source import ModelSource
from pytest_quant.identity import identity
from pytest_quant.markers import gate
from pytest_quant.spec import ModelSpec

SPEC = ModelSpec(ModelSource("org/model"), reference="bf16", checkpoints=(("gptq", "made/here/gptq-4"),))


def of(metric, format="nf4", detail=None, protocol=None, **arguments):
    return identity(SPEC, format, gate(metric, arguments, limits_required=False), "sha", detail or {}, protocol)


def test_the_whole_workload():
    found = of("throughput_ratio", min=1, phase="decode", batch_size=8, cache="static", detail={"min_new_tokens": 32})
    assert found["metric"] == {
        "name": "throughput_ratio",
        "phase": "decode",
        "batch_size": 8,
        "prompt_tokens": 64,
        "new_tokens": 32,
        "cache": "static",
        "compile": False,
        "min_new_tokens": 32,
    }
    assert (found["reference"], found["model"], found["engine"]) == (
        {"name": "bf16"},
        {"fingerprint": "sha"},
        "transformers",
    )


def test_limits_are_no_part_of_it():
    assert of("throughput_ratio", min=1) == of("throughput_ratio", min=2)


def test_prices_are_those_that_were_taken():
    """From the marker or from the run: the same."""
    by_marker = of("cost_ratio", max=1, price=2.0, detail={"price": 2.0, "reference_price": 2.0})
    by_run = of("cost_ratio", max=1, detail={"price": 2.0, "reference_price": 2.0})
    assert by_marker == by_run
    assert by_run["metric"]["price"] == 2.0


def test_bytes_have_no_reference_and_windows_have_a_protocol():
    assert "reference" not in of("memory_budget", max_gb=1)
    assert "protocol" not in of("memory_budget", max_gb=1)
    assert of("perplexity_delta", max=1, protocol={"name": "gptq-512"})["protocol"] == {"name": "gptq-512"}


def test_the_compute_type_of_a_quantized_format_and_the_name_of_its_checkpoint():
    assert of("memory_budget", "nf4", max_gb=1)["format"]["compute_dtype"] == "bfloat16"
    assert "compute_dtype" not in of("memory_budget", "fp16", max_gb=1)["format"]
    assert of("memory_budget", "gptq", max_gb=1)["format"]["checkpoint"] == "gptq-4"
