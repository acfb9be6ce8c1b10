"""The CI examples: they parse, what they call exists, and what they do is what they say."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from ci_files import FOLDER, JOBS, commands, lines, parsed, words

from pytest_quant import baseline, hardware
from pytest_quant.cli import main, parser

PIPELINES = ("github-actions.yml", "gitlab-ci.yml")
GPUS = ("h100", "l4")
VALUES = {
    "MODEL": "tiny",
    "MODEL_REVISION": "main",
    "REFERENCE": "fp32",
    "CORPUS": "corpus.txt",
    "PROTOCOL": "gptq-64",
    "MAX_WINDOWS": "8",
    "QUANT_CACHE": "cache",
    "GPU": "l4",
}
GATED = """
import pytest

@pytest.mark.perplexity_delta(max_ratio=3.0)
@pytest.mark.memory_budget(max_gb=1.0)
def test_gate(quant_model):
    assert quant_model.format.name == "int8"
"""
WORSE = """
import pytest
from transformers import AutoModelForCausalLM

load = AutoModelForCausalLM.from_pretrained

def planted(*args, **kwargs):
    model, loading = load(*args, **kwargs)
    if "quantization_config" in kwargs:
        model.model.layers[0].mlp.down_proj.weight.SCB.mul_(1.2)
    return model, loading

@pytest.fixture(autouse=True)
def worse(monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", planted)
"""


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.yml")))
def test_they_parse(name):
    assert isinstance(parsed(name), dict)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", PIPELINES)
def test_every_command_and_option_exists(name, job, tmp_path, pytestconfig):
    found = commands(name, job)
    assert found
    for line in found:
        told = words(line, VALUES, tmp_path)
        if told[0] == "pytest-quant":
            assert parser().parse_args(told[1:]).run  # exits where it does not understand
            continue
        for option in told[1:]:
            name_of, _, _ = option.removeprefix("--").partition("=")
            assert hasattr(pytestconfig.option, name_of.replace("-", "_")), option


def test_both_pipelines_run_the_same_commands():
    github, gitlab = ({job: commands(name, job) for job in JOBS} for name in PIPELINES)
    assert github == gitlab


@pytest.mark.parametrize("name", PIPELINES)
def test_a_part_is_empty_at_first_and_kept_when_red(name):
    steps = lines(name, "shard")
    empty = steps.index('rm -rf "part-$GPU"')
    assert empty < next(i for i, line in enumerate(steps) if line.startswith("pytest "))
    shard = parsed(name).get("jobs", parsed(name))["shard"]
    if "steps" in shard:
        upload = next(step for step in shard["steps"] if "upload-artifact" in step.get("uses", ""))
        assert upload["if"] == "always()"
        assert upload["with"]["path"].splitlines() == ["part-${{ matrix.gpu }}", "run-${{ matrix.gpu }}.json"]
    else:
        assert shard["artifacts"] == {"when": "always", "paths": ["part-$GPU", "run-$GPU.json"]}


def test_the_retry_counts_as_many_shards_as_there_are():
    shards = parsed("github-actions.yml")["jobs"]["shard"]["strategy"]["matrix"]["gpu"]
    again = parsed("github-actions-retry.yml")["jobs"]["again"]
    assert again["env"]["SHARDS"] == str(len(shards))


@pytest.fixture
def pipeline(project, monkeypatch, capsys):
    """Runs a job's own commands in a project, on pretended hardware, as CI would."""
    root = project.path
    project.test(GATED)
    real = hardware.detect()

    def job(name: str, gpu: str = "") -> int:
        device = replace(real, name=f"GPU {gpu}")
        monkeypatch.setattr(hardware, "detect", lambda: device)
        monkeypatch.setenv("CI", "true")
        cache = str(root / f"cache-{gpu}")
        values = {**VALUES, "MODEL": str(project.model), "GPU": gpu, "QUANT_CACHE": cache}
        if name == "shard":
            shutil.rmtree(root / f"part-{gpu}", ignore_errors=True)
        for line in commands("github-actions.yml", name):
            told = words(line, values, root)
            code = main(told[1:]) if told[0] == "pytest-quant" else int(project.run(*told[1:]).ret)
            if code:
                return code
        return 0

    return job


def test_from_the_reference_to_an_accepted_baseline(pipeline, project, capsys):
    import json

    root = project.path
    assert pipeline("reference") == 0
    assert (root / "reference.safetensors").is_file()

    for gpu in GPUS:
        assert pipeline("shard", gpu) == 0
        (measured,) = [
            each
            for each in json.loads((root / f"run-{gpu}.json").read_text())["measurements"]
            if each["metric"] == "perplexity_delta"
        ]
        assert measured["reference_source"] == "stored"
        assert measured["baseline"]["verdict"] == "new"
    assert pipeline("merge") == 0
    assert sorted(path.name for path in (root / "merged").iterdir()) == ["gpu-h100", "gpu-l4"]
    assert pipeline("compare") == 2, "nothing was accepted yet"
    assert pipeline("accept") == 0
    accepted = project.baselines
    assert len(accepted) == 2

    def again(*gpus: str, planted: str = "") -> int:
        for folder in ("merged", *(f"part-{gpu}" for gpu in GPUS)):
            shutil.rmtree(root / folder, ignore_errors=True)
        for gpu in gpus:
            project.conftest(WORSE if gpu == planted else "")
            assert pipeline("shard", gpu) == 0
        assert pipeline("merge") == 0
        capsys.readouterr()
        return pipeline("compare")

    assert again(*GPUS) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 measurements: 4 passed"
    assert pipeline("accept") == 0
    assert project.baselines == accepted, "what did not change is not written"

    assert again(*GPUS, planted="l4") == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "4 measurements: 3 passed, 1 regressed"
    assert "int8 perplexity: +" in out

    assert again("h100") == 2
    assert capsys.readouterr().out.splitlines()[-1] == "4 measurements: 2 passed, 2 missing"
    assert project.baselines == accepted


def test_a_gate_that_breaks_is_red_in_its_shard_and_missing_in_the_merge(pipeline, project, capsys):
    root = project.path
    assert pipeline("reference") == 0
    assert pipeline("shard", "l4") == 0
    assert pipeline("merge") == 0
    assert pipeline("accept") == 0
    project.test(GATED.replace("max_ratio=3.0", "max_ratio=1.0001"))
    project.conftest(WORSE)
    shutil.rmtree(root / "merged")
    assert pipeline("shard", "l4") == pytest.ExitCode.TESTS_FAILED
    assert baseline.contents(root / "quant-baselines").files
    capsys.readouterr()
    assert main(["compare", "quant-baselines", "run-l4.json", "--fail"]) == 1, "the run record knows of it"
    assert " 1 failed" in capsys.readouterr().out
