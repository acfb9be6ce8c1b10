"""A KV cache format from the command line to the baseline: measured as it is read, and never taken for another."""

from __future__ import annotations

import pytest

GATES = """
import pytest

@pytest.mark.perplexity_delta(max=100)
def test_gate(quant_model): ...
"""


@pytest.fixture
def kept(project):
    """A project whose windows are long enough for newer tokens to be quantized too."""
    (project.path / "corpus.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    settings = "[pytest]\nquant_corpus = corpus.txt\nquant_protocol = gptq-200\nquant_reference = fp32\n"
    (project.path / "pytest.ini").write_text(settings + f"quant_model = {project.model}\n")
    project.test(GATES)
    return project


def test_quality_of_a_cache_alone_is_measured_and_recorded(kept):
    result, record = kept.record("--quant-formats=fp32+kv-int4-g32,fp32+kv-int2-g32")
    result.assert_outcomes(passed=2)
    four, two = record["measurements"]
    assert (four["format"], two["format"]) == ("fp32+kv-int4-g32", "fp32+kv-int2-g32")
    assert 0 < abs(four["value"]) < two["value"]
    assert four["proof"]["kv_cache"] == {
        "num_bits": 4,
        "type": "int",
        "group_size": 32,
        "library": "quanto",
        "bits_per_value": 6.0,
        "layers": 2,
    }
    assert four["proof"]["bits_per_weight"] == 32.0


def test_weights_and_cache_are_both_in_the_format(kept):
    result, record = kept.record("--quant-formats=nf4,nf4+kv-int2-g32")
    result.assert_outcomes(passed=2)
    weights, both = record["measurements"]
    assert weights["proof"]["kernels"] == both["proof"]["kernels"] == {"Linear4bit": 14}
    assert "kv_cache" not in weights["proof"]
    assert weights["value"] != both["value"]


def test_speed_and_memory_go_through_the_cache(kept):
    kept.test(
        """
        import pytest

        @pytest.mark.throughput_ratio(min=0.0001, prompt_tokens=32, new_tokens=4)
        @pytest.mark.memory_budget(of="kv_cache", context=301, max_ratio=0.6)
        def test_gate(quant_model):
            assert quant_model.generate("The quick", max_new_tokens=3)
        """
    )
    result, record = kept.record("--quant-formats=fp32+kv-int4-g32")
    result.assert_outcomes(passed=1)
    found = {measured["metric"]: measured for measured in record["measurements"]}
    values = 2 * 2 * 32  # a token's keys and values, in two layers
    used = 174 * values * 6 / 8 + 127 * values * 4
    assert found["memory_budget"]["format_value"] == used
    assert found["memory_budget"]["reference_value"] == 301 * values * 4
    assert found["throughput_ratio"]["proof"]["reference_difference"] > 1e-4, "the probe read the cache"


@pytest.mark.parametrize(
    "before, after",
    [
        ("nf4", "nf4+kv-int4-g32"),
        ("nf4+kv-int4-g32", "nf4"),
        ("nf4+kv-int4-g32", "nf4+kv-int2-g32"),
        ("nf4+kv-int4-g32", "nf4+kv-int4-g16"),
    ],
)
def test_a_baseline_of_one_cache_says_nothing_of_another(kept, before, after):
    assert kept.gate("--quant-missing=record", f"--quant-formats={before}").ret == 0
    assert kept.gate("--quant-missing=fail", f"--quant-formats={before}").ret == 0
    result, record = kept.record("--quant-baseline", "--quant-missing=fail", f"--quant-formats={after}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (measured,) = record["measurements"]
    assert measured["verdict"] == "passed"
    assert measured["baseline"]["verdict"] == "missing"


def test_the_library_and_the_residual_length_are_in_the_baseline(kept, monkeypatch):
    assert kept.gate("--quant-missing=record", "--quant-formats=fp32+kv-int4-g32").ret == 0
    (entry,) = kept.entries
    recorded = entry["identity"]["format"]["kv_cache"]
    assert (recorded["library"], recorded["residual_length"], recorded["first_step"]) == ("quanto", 128, 16)
    kept.change_baseline(lambda data: data["measurements"][0]["identity"]["format"]["kv_cache"].update(step=64))
    result, record = kept.record("--quant-baseline", "--quant-missing=fail", "--quant-formats=fp32+kv-int4-g32")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert record["measurements"][0]["baseline"]["verdict"] == "incomparable"


def test_a_cache_that_does_not_quantize_fails_the_gate(kept, monkeypatch):
    from transformers.cache_utils import QuantoQuantizedLayer

    monkeypatch.setattr(QuantoQuantizedLayer, "_quantize", lambda self, tensor, axis: tensor)
    monkeypatch.setattr(QuantoQuantizedLayer, "_dequantize", lambda self, stored: stored)
    result = kept.gate("--quant-formats=fp32+kv-int4-g32")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*not in fp32+kv-int4-g32: the keys of layer 0 are a Tensor, not quantized*"])
    assert kept.baselines == {}


def test_a_model_that_has_no_such_cache_is_skipped(kept):
    result = kept.gate("-rs", "--quant-formats=fp32+kv-int4")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["*asked: the KV cache of fp32+kv-int4; found: LlamaForCausalLM with heads of 32 values*needed: *kv-int4-g32*"]
    )


def test_a_name_that_is_none_is_an_error_before_any_model_is_loaded(kept):
    result = kept.gate("--quant-formats=fp16+kv-int5")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*there is no KV cache format 'kv-int5'; there are kv-int8, kv-int4, *"])
    kept.test('import pytest\n@pytest.mark.quant(formats=["fp32+kv-int5"])\ndef test_it(quant_model): ...')
    result = kept.gate()
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*there is no KV cache format 'kv-int5'*"])


def test_windows_too_short_to_read_the_cache_are_an_error(kept):
    result = kept.gate("--quant-formats=fp32+kv-int4-g32", "--quant-protocol=gptq-17")
    assert result.ret != 0
    result.stdout.fnmatch_lines(
        ["*windows of 17 tokens read nothing from a KV cache that is filled by their first 16*"]
    )


def test_a_cache_format_is_no_reference(kept):
    result = kept.gate("--quant-formats=nf4", "--quant-reference=fp32+kv-int4-g32")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--quant-reference: *is a quantized format; use fp16, bf16 or fp32*"])


def test_the_reference_keeps_its_own_cache(kept):
    """Both are scored in one run, and the reference's scores are those of a run without a KV cache format."""
    kept.test(GATES + "\n@pytest.mark.kl_divergence(max=9)\ndef test_kl(quant_model): ...")
    result, record = kept.record("--quant-formats=fp32+kv-int2-g32")
    result.assert_outcomes(passed=2)
    alone = kept.record("--quant-formats=nf4")[1]
    with_cache, without = (
        next(m for m in run["measurements"] if m["metric"] == "perplexity_delta") for run in (record, alone)
    )
    assert with_cache["reference_value"] == without["reference_value"]
