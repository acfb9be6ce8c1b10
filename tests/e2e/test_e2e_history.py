"""A repository whose every commit is gated and kept: the one that damaged the model is named."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from pytest_quant.cli import main

GATES = """
import pytest

@pytest.mark.perplexity_delta(max=1000.0)
@pytest.mark.memory_budget(max_gb=1.0)
def test_gate(quant_model): ...
"""
DAMAGED = """
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


@pytest.fixture
def commit(project):
    """Commits everything and returns the hash."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        told = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        return subprocess.run(command, cwd=project.path, env=told, check=True, capture_output=True, text=True).stdout

    def made(subject: str) -> str:
        git("add", "-A")
        git("commit", "-q", "--allow-empty", "-m", subject)
        return git("rev-parse", "HEAD").strip()

    git("init", "-q")
    (project.path / ".gitignore").write_text("quant-history/\n__pycache__/\n")
    return made


def kept(project):
    return sorted((project.path / "quant-history").iterdir())


def test_the_commit_that_damaged_the_model_is_named(project, commit, capsys):
    project.test(GATES)
    first = commit("Gate it")
    assert project.run("--quant-history=quant-history").ret == 0
    commit("Say why")
    assert project.run("--quant-history=quant-history").ret == 0
    project.conftest(DAMAGED)
    damaged = commit("Scale a layer")
    assert project.run("--quant-history=quant-history").ret == 0
    last = commit("Say more")
    result = project.run("--quant-history=quant-history")
    assert result.ret == 0
    files = kept(project)
    assert [file.name.split("-")[-2] for file in files].count(damaged[:7]) == 1
    result.stdout.fnmatch_lines([f"*kept in the history as *{last[:7]}*.json*"])
    capsys.readouterr()
    assert main(["history", str(project.path / "quant-history"), "--fail"]) == 1
    printed = capsys.readouterr().out
    assert f"int8 perplexity: worse at {damaged[:7]}" in printed
    assert "Scale a layer" in printed
    assert f"git show {damaged[:7]}" in printed
    (newest,) = (file for file in files if last[:7] in file.name)  # the names of one second are in no order
    assert main(["compare", f"{project.path}/quant-history@{first[:8]}", str(newest), "--fail"]) == 1


def test_a_failed_run_is_kept_and_a_changed_tree_is_said(project, commit):
    project.test(GATES.replace("max_gb=1.0", "max_gb=0.000001"))
    commit("Gate it")
    with (project.path / "pytest.ini").open("a") as ini:
        ini.write("# changed\n")
    result = project.run("--quant-history=quant-history")
    assert result.ret == 1
    (file,) = kept(project)
    data = json.loads(file.read_text())
    assert data["environment"]["dirty"] is True
    assert {each["verdict"] for each in data["measurements"]} == {"failed", "passed"}


def test_a_folder_that_cannot_be_written_is_red_and_the_rest_is_written(project):
    project.test(f"{GATES}\n\ndef test_in_the_way():\n    open('quant-history', 'w').write('a file')\n")
    result, record = project.record("--quant-history=quant-history")
    assert result.ret == 1
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*--quant-history: *quant-history cannot be written: *"])
    assert record["measurements"]
    assert (project.path / "quant-history").read_text() == "a file"


def test_a_run_of_other_tests_keeps_nothing(project):
    project.test("def test_other(): ...")
    assert project.run("--quant-history=quant-history").ret == 0
    assert not (project.path / "quant-history").exists()


def test_two_runs_of_one_second_are_both_kept(project, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1735689600")
    project.test(GATES)
    for formats in ("int8", "nf4"):
        assert project.run("--quant-history=quant-history", f"--quant-formats={formats}").ret == 0
    names = [file.name for file in kept(project)]
    assert len(names) == 2
    assert all(name.startswith("2025-01-01T00-00-00Z-none-") for name in names)
