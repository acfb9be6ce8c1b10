"""What executes models: engine, reference_engine and engine_args, from the marker, the command line and the ini."""

from __future__ import annotations

import pytest
from test_markers_schema import mark, refusal

from pytest_quant import markers
from pytest_quant.engines.source import ModelSource
from pytest_quant.spec import ModelSpec, packed

GATED = """
import pytest
@pytest.mark.quant({arguments})
@pytest.mark.perplexity_delta(max=1.0)
def test_it(quant_format):
    pass
"""


def test_arguments_of_an_engine_are_kept_in_their_order_of_names():
    found = markers.quant([mark("quant", engine="vllm", engine_args={"b": [1, {"c": None}], "a": 2})])
    assert found is not None
    assert found.engine_args == (("a", "2"), ("b", '[1, {"c": null}]'))
    spec = ModelSpec(ModelSource("m"), engine="vllm", engine_args=found.engine_args)
    assert spec.arguments() == {"a": 2, "b": [1, {"c": None}]}
    assert hash(spec)


@pytest.mark.parametrize("wrong", [["tensor_parallel_size", 2], "tensor_parallel_size=2", {1: 2}])
def test_arguments_of_an_engine_have_names(wrong):
    assert "engine_args" in refusal("quant", engine_args=wrong)
    assert '{"tensor_parallel_size": 2}' in refusal("quant", engine_args=wrong)


def test_arguments_of_an_engine_are_plain_data():
    assert "object" in refusal("quant", engine_args={"tensor_parallel_size": object()})


@pytest.mark.parametrize(
    "engine, of_reference, mixes, here, runs",
    [
        ("transformers", None, False, True, ("transformers", "transformers")),
        ("vllm", None, False, False, ("vllm", "vllm")),
        ("vllm", "transformers", True, False, ("vllm", "transformers")),
        ("transformers", "vllm", True, False, ("transformers", "vllm")),
    ],
)
def test_which_engine_runs_what(engine, of_reference, mixes, here, runs):
    spec = ModelSpec(ModelSource("m"), "fp32", engine, reference_engine=of_reference)
    assert (spec.mixes_engines, spec.in_process) == (mixes, here)
    assert (spec.engine_of("int8"), spec.engine_of("fp32")) == runs


@pytest.mark.parametrize("name", ["engine", "reference_engine"])
def test_an_engine_that_there_is_not(project, name):
    project.test(GATED.format(arguments=f'{name}="tensorrt"'))
    result = project.run()
    result.stdout.fnmatch_lines(["*unknown engine 'tensorrt'; the engines are transformers and vllm*"])
    assert result.ret != 0


def test_arguments_without_their_engine(project):
    project.test(GATED.format(arguments='engine_args={"tensor_parallel_size": 2}'))
    project.run().stdout.fnmatch_lines(['*engine_args (tensor_parallel_size) are those of vLLM*engine="vllm"*'])


def test_of_a_run_they_are_for_the_tests_on_that_engine(project):
    """A suite may have tests on both."""
    project.ini(f"quant_model = {project.model}", 'quant_engine_args = {"tensor_parallel_size": 2}')
    project.test("def test_it(int8_model):\n    assert int8_model.weight_bytes")
    project.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("wrong", ["tensor_parallel_size=2", "[1]", "{"])
def test_on_the_command_line_they_are_json(project, wrong):
    project.test("def test_it(int8_model): pass")
    result = project.run(f"--quant-engine-args={wrong}")
    result.stderr.fnmatch_lines([f"*--quant-engine-args={wrong.replace('[', '[[]')}: write JSON*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_the_same_engine_for_both_is_said_once(project):
    """So that identities do not differ by what nobody asked for."""
    project.test(GATED.format(arguments='engine="transformers", reference_engine="transformers"'))
    _, record = project.record()
    (found,) = record["measurements"]
    assert found["identity"]["reference"] == {"name": "fp32"}
    assert packed({}) == ()
