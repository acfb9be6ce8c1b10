"""Tests that ask for vLLM where it is not installed, and mistakes in what they ask."""

from __future__ import annotations

import pytest

from pytest_quant.cli import main
from pytest_quant.engines.vllm import support

pytestmark = pytest.mark.skipif(support.installed(), reason="vLLM is installed; tests/vllm runs it")

SUITE = """
import pytest

@pytest.mark.quant(engine="vllm", formats=["bf16"]{more})
@pytest.mark.perplexity_delta(max=2.0)
def test_served(quant_model):
    pass
"""


def test_it_is_a_skip_with_the_way_to_install_it(project):
    project.test(SUITE.format(more=""))
    result = project.gate()
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*bf16: asked: engine vllm; found: vllm not installed; needed: pip install vllm*"])
    assert project.baselines == {}


def test_in_ci_a_run_of_such_skips_alone_is_red(project):
    project.test(SUITE.format(more=""))
    assert project.gate("--quant-missing=fail").ret == pytest.ExitCode.TESTS_FAILED


def test_a_plan_says_it_too(project):
    project.test(SUITE.format(more=""))
    result = project.run("--quant-plan")
    result.stdout.fnmatch_lines(["skip*test_served*vllm not installed*"])


@pytest.mark.parametrize(
    "more, said",
    [
        (', engine_args={"seed": 3}', "*the engine argument 'seed' cannot be given: runs must repeat themselves*"),
        (', engine_args={"quantization": "fp8"}', '*the quantization is the format\'s: formats=[[]"fp8"]*'),
        (', engine_args={"tensor_parallel_size": 0}', "*tensor_parallel_size=0 must be 1 or more*"),
        (', device_map="auto"', "*device_map=...) is of the engine transformers*"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_test(project, more, said):
    project.test(SUITE.format(more=more))
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([said])
    assert "Traceback" not in result.stdout.str()


def test_a_mistake_on_the_command_line(project):
    project.test(SUITE.format(more=""))
    result = project.run('--quant-engine-args={"model": "another"}')
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--quant-engine-args: the engine argument 'model' cannot be given*"])


def test_the_floor_needs_both_engines(project, capsys):
    assert main(["floor", str(project.model), "--reference=fp32", f"--cache-dir={project.path}"]) == 2
    assert "vllm not installed; needed: pip install vllm" in capsys.readouterr().err


def test_the_floor_is_of_plain_weights(project, capsys):
    assert main(["floor", str(project.model), "--reference=int8"]) == 2
    assert "int8 is a quantized format" in capsys.readouterr().err
