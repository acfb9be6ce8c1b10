"""What cannot run is skipped with its three-part reason, and a run that measured nothing is not green."""

from __future__ import annotations

import pytest

NVFP4 = """
import pytest

@pytest.mark.quant(formats=["nvfp4"])
@pytest.mark.perplexity_delta(max=1)
def test_nvfp4(quant_model): ...
"""
TWO = """
import pytest

@pytest.mark.quant(formats=["int8", "nvfp4"])
@pytest.mark.memory_budget(max_gb=1)
def test_two(quant_model): ...
"""


def test_a_format_that_the_hardware_cannot_run_is_skipped_with_the_three_parts(project):
    project.test(NVFP4)
    result, record = project.record()
    assert result.ret == 0
    result.assert_outcomes(skipped=1)
    (skip,) = record["skipped"]
    assert skip["format"] == "nvfp4"
    assert skip["test"] == "test_quant.py::test_nvfp4[nvfp4]"
    assert all(part in skip["reason"] for part in ("asked: nvfp4 (torchao)", "found: ", "needed: "))
    assert skip["reason"].endswith("; or instead nvfp4-weight-only, which can run here")
    result.stdout.fnmatch_lines(["not measured: test_quant.py::test_nvfp4[[]nvfp4[]]: nvfp4: asked: *"])


def test_everything_skipped_is_not_green_where_baselines_are_required(project):
    project.test(NVFP4)
    assert project.gate().ret == 0
    result = project.gate("--quant-missing=fail")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: nothing was measured: all 1 quantization tests were skipped*"])


def test_ci_requires_baselines_by_default(project, monkeypatch):
    monkeypatch.setenv("CI", "true")
    project.test(NVFP4)
    assert project.gate().ret == pytest.ExitCode.TESTS_FAILED


def test_require_is_an_error_unless_each_format_was_measured(project):
    project.test(TWO)
    held = project.gate("--quant-require=int8")
    assert held.ret == 0
    broken = project.gate("--quant-require=int8,nvfp4")
    assert broken.ret == pytest.ExitCode.TESTS_FAILED
    broken.stdout.fnmatch_lines(["ERROR: --quant-require: nvfp4 was not measured (nvfp4: asked: nvfp4 (torchao)*"])
    nothing = project.gate("--quant-require=nf4")
    assert nothing.ret == pytest.ExitCode.TESTS_FAILED
    nothing.stdout.fnmatch_lines(["ERROR: --quant-require: nf4 was not measured (no test that ran asked for it)"])


def test_require_without_any_quantization_test(project):
    project.test("def test_plain(): ...")
    result = project.gate("--quant-require=nf4")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_missing_package_is_a_skip_with_the_pip_install(project, monkeypatch):
    from importlib.metadata import PackageNotFoundError, version

    def answer(name):
        if name == "bitsandbytes":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("pytest_quant.formats.backend.version", answer)
    project.test(TWO)
    result = project.run("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        ["SKIPPED*bitsandbytes not installed; needed: pip install 'pytest-quant[[]bitsandbytes[]]'*"]
    )


def test_a_model_that_does_not_fit_is_a_skip_with_the_arithmetic(project, monkeypatch):
    from pytest_quant.engines import memory

    monkeypatch.setattr(memory, "free_bytes", lambda device: 100_000)
    project.test(TWO)
    result = project.run("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*found: 0.1 MB free on *needed: 0.2* MB for the weights (*at 8.00 bits*"])


def test_out_of_memory_while_loading_is_a_skip(project, monkeypatch):
    from transformers import AutoModelForCausalLM

    def burst(*args, **kwargs):
        raise MemoryError("cannot allocate 1 TB")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", burst)
    project.test(TWO)
    result = project.run("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*out of memory while loading it (cannot allocate 1 TB)*"])


def test_a_torch_that_cannot_use_the_device_is_a_skip(project, monkeypatch):
    from pytest_quant import session
    from pytest_quant.hardware import specs

    monkeypatch.setattr(session.Session, "device", specs.device("NVIDIA H200"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    project.test(TWO)
    result = project.run("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        ["SKIPPED*on NVIDIA H200; found: torch *, which cannot use it; needed: a build of torch*"]
    )


def test_a_fixture_for_each_format(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        def test_named(nf4_model, reference_model):
            assert nf4_model.format.name == "nf4"
            assert nf4_model.weight_bytes < reference_model.weight_bytes
            assert nf4_model.proof.quantized_weight_share == 1.0
            assert nf4_model.support.status == "dequantized"
            assert isinstance(nf4_model.generate("The quick", max_new_tokens=4), str)

        def test_nvfp4(nvfp4_model): ...

        def test_hardware(quant_hardware, quant_support):
            assert quant_hardware.name
            assert quant_support("fp32").status == "native"
        """
    )
    result, record = project.record()
    assert result.ret == 0
    result.assert_outcomes(passed=2, skipped=1)
    (measured,) = record["measurements"]
    assert (measured["format"], measured["metric"]) == ("nf4", "memory_budget")


def test_measuring_by_hand(project):
    project.test(
        """
        def test_by_hand(quant_measure):
            delta = quant_measure.perplexity_delta("nf4")
            assert delta <= 1000.0 and not delta > 1000.0
            assert "windows" in str(delta)
            assert quant_measure.memory_budget("nf4") < quant_measure.memory_budget("int8")

        def test_too_strict(quant_measure):
            assert quant_measure.memory_budget("nf4") < 10
        """
    )
    result = project.gate()
    result.assert_outcomes(passed=1, failed=1)
    assert len(project.entries) == 3
    assert {entry["recorded"]["test"] for entry in project.entries} == {"test_quant.py::test_by_hand"}
    again = project.gate("--quant-missing=fail")
    again.assert_outcomes(passed=1, failed=1)
    again.stdout.fnmatch_lines(["nf4 *+0.0000 nats*passed"])
