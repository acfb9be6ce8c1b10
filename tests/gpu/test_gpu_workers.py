"""On CUDA devices: workers of pytest-xdist hold models on one each, or where there is one, only one of them does."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
pytest.importorskip("xdist")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

SUITE = """
import json, os, time

import pytest


def tell(quant_model):
    import torch

    device = next(quant_model.model.parameters()).device
    said = {"worker": os.environ.get("PYTEST_XDIST_WORKER"), "uuid": str(torch.cuda.get_device_properties(device).uuid),
            "seen": torch._C._cuda_getDeviceCount()}
    with open("told.txt", "a") as stream:
        stream.write(json.dumps(said) + "\\n")


@pytest.mark.quant(formats=["bf16", "fp16", "int8", "nf4"])
@pytest.mark.perplexity_delta(max_ratio=3.0)
def test_quality(quant_model):
    tell(quant_model)


@pytest.mark.quant(formats=["bf16"])
@pytest.mark.throughput_ratio(min=0.0001, new_tokens=4)
def test_speed(quant_model):
    tell(quant_model)


def test_plain(): ...
"""


def run(project, *arguments):
    (project.path / "told.txt").unlink(missing_ok=True)
    fixed = ["-p", "no:cacheprovider", "--quant-json=run.json", "--quant-baseline"]
    result = project.pytester.runpytest_subprocess(*fixed, *arguments)
    result.assert_outcomes(passed=6)
    told = [json.loads(line) for line in (project.path / "told.txt").read_text().splitlines()]
    return told, json.loads((project.path / "run.json").read_text())


def test_a_device_for_each_worker(project):
    count = torch.cuda.device_count()
    project.test(SUITE)
    told, record = run(project, "-n2")
    devices = {each["worker"]: each["uuid"] for each in told}
    assert len(set(devices.values())) == len(devices) == min(count, 2)
    assert {each["seen"] for each in told} == {1}
    assert record["environment"]["hardware"]["count"] == count, "the place of the baseline is the whole machine's"
    speed = next(each for each in record["measurements"] if each["metric"] == "throughput_ratio")
    found = json.dumps(speed.get("conditions", []))
    assert "other pytest worker" not in found
    assert "other-process" not in found, "the workers that ended hold no context any more"


def test_one_process_and_two_workers_write_the_same_places(project):
    project.test(SUITE)
    run(project, "-n2", "--quant-baseline-path=two")
    run(project, "-p", "no:xdist", "--quant-baseline-path=one")
    names = [
        sorted(str(file.relative_to(project.path / folder)) for file in (project.path / folder).rglob("*.json"))
        for folder in ("one", "two")
    ]
    assert names[0] == names[1] != []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_cuda_that_was_started_while_tests_were_collected_is_told(project):
    project.test("import torch\ntorch.cuda.is_available()\n" + SUITE)
    result = project.pytester.runpytest_subprocess("-n2", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*DeviceWarning: this worker shares the first of * GPUs*"])
