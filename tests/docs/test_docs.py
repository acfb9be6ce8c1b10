"""Every example in the documentation is executed: tests on the real model, commands with their output."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*|python vllm)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""What is for vLLM is run where that is, by tests/vllm."""


CONFTEST = "# conftest.py"


def blocks(kind: str):
    """Each block of a kind; a conftest.py belongs to the Python block after it."""
    for page in PAGES:
        conftest = ""
        for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8"))):
            if match[1] != kind:
                continue
            if match[2].startswith(CONFTEST):
                conftest = match[2]
                continue
            source = (match[2], conftest) if kind == "python" else (match[2],)
            yield pytest.param(*source, id=f"{page.stem}-{number}")
            conftest = ""


def commands(block: str):
    """Each command of a console block, with the lines that are shown below it."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    for part in parts:
        command, _, output = part.partition("\n")
        yield command.partition("  #")[0].strip(), output.splitlines()


def test_there_are_examples():
    assert len(list(blocks("python"))) >= 5
    assert len(list(blocks("console"))) >= 3


@pytest.mark.real
@pytest.mark.parametrize("source, conftest", blocks("python"))
def test_python(real_project, source, conftest):
    real_project.conftest(conftest)
    real_project.ini(f"quant_model = {real_project.model}", "quant_max_windows = 4")
    settings = (real_project.path / "pytest.ini").read_text().replace("quant_corpus = corpus.txt\n", "")
    settings = settings.replace("gptq-64", "gptq-256")
    (real_project.path / "pytest.ini").write_text(settings)
    models = real_project.path / ".models"
    models.mkdir()
    (models / real_project.model.name).symlink_to(real_project.model)
    real_project.test(source, name="test_example")
    result = real_project.gate()
    assert result.ret == 0
    outcomes = result.parseoutcomes()
    assert outcomes.pop("passed") == len(re.findall(r"^def test_", source, re.MULTILINE)) * (
        2 if '["int8", "nf4"]' in source else 1
    )
    assert not outcomes.keys() & {"failed", "errors", "skipped"}


@pytest.mark.usefixtures("libraries")  # what a run within this process imports first is forgotten with it
@pytest.mark.parametrize("block", blocks("console"))
def test_console(pytester, monkeypatch, capsys, block):
    from pytest_quant.cli import main

    (pytester.path / ".models").symlink_to(ROOT / ".models")
    for command, shown in commands(block):
        words = shlex.split(command)
        if words[0] == "pytest-quant":
            assert main(words[1:]) == 0
            printed = capsys.readouterr().out.splitlines()
        elif "--quant-plan" in words:
            shutil.copy(ROOT / "pyproject.toml", pytester.path)
            shutil.copytree(ROOT / "examples", pytester.path / "examples")
            result = pytester.runpytest_inprocess(*words[1:])
            assert result.ret == 0
            printed = result.outlines
        else:
            assert words[:2] == ["pytest", "--quant-baseline"], (
                "these runs are what tests/e2e/test_e2e_lifecycle.py does"
            )
            continue
        for line in shown:
            assert line in printed


def test_every_option_in_the_documentation_exists(pytestconfig):
    known = set(vars(pytestconfig.option))
    for page in PAGES:
        for option in re.findall(r"--(quant-[a-z-]+)", page.read_text(encoding="utf-8")):
            assert option.replace("-", "_") in known, f"{page.name}: --{option}"


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
