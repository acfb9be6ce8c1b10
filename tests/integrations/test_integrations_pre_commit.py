"""The hook of ``.pre-commit-hooks.yaml``, run by pre-commit itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pytest_quant.baseline import Entry, File, path_for, write

ROOT = Path(__file__).parents[2]
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with a sound baseline, which runs the hook with the command that is installed here."""
    pytest.importorskip("pre_commit")
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):  # of a hook that runs these tests
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    program, *arguments = HOOK["entry"].split()
    assert program == "pytest-quant"
    entry = " ".join([f"'{sys.executable}' -m pytest_quant", *arguments])
    hook = {**HOOK, "language": "system", "entry": entry}
    config = {"repos": [{"repo": "local", "hooks": [hook]}]}
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "settings.json").write_text("{", encoding="utf-8")  # not the hook's business
    recorded = Entry("perplexity_delta", "nf4", {"model": "0a"}, 1.25, "ppl")
    write(path_for(folder / "quant-baselines", "cpu", "m"), File({"key": "cpu", "name": "A CPU"}, "m", (recorded,)))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def hook(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_sound_baselines_pass(repository):
    result = hook(repository, "--verbose")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 baseline file checked: all sound" in result.stdout


def test_a_conflict_keeps_the_commit_from_being_made(repository):
    file = repository / "quant-baselines" / "cpu" / "m.json"
    text = file.read_text()
    file.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> branch\n")
    git(repository, "add", "--all")
    result = hook(repository)
    assert result.returncode == 1
    assert "quant-baselines/cpu/m.json: line 1: found an unresolved git merge conflict" in result.stdout
    assert "settings.json" not in result.stdout


def test_a_form_that_no_run_writes_is_mended_where_the_config_says_so(repository):
    config = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())
    config["repos"][0]["hooks"][0]["args"] = ["--fix"]
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    file = repository / "quant-baselines" / "cpu" / "m.json"
    sound = file.read_bytes()
    file.write_text(json.dumps(json.loads(sound), indent=4))
    git(repository, "add", "--all")
    result = hook(repository)
    assert result.returncode == 1
    assert "add it to the commit" in result.stdout
    assert file.read_bytes() == sound
    git(repository, "add", "--all")
    assert hook(repository).returncode == 0
