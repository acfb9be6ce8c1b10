"""Every example in the documentation is executed, or checked as far as its kind allows.

Tests run on the real model, commands are compared with their output, settings go through the reader of options, scripts
through bash and the command's parser.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest
from docs_blocks import blocks, commands

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LITERALLY = {"tutorial.md"}
"""Pages that are run from their first command to their last, by a test of their own."""
SHOWN = {"text", "{toctree}"}
"""Kinds that are only looked at: output that differs from machine to machine, and the site's own."""
CHECKED = {"python", "python vllm", "console", "ini", "toml", "sh", "bash", "yaml", "json"}
"""Kinds of which each block is executed or checked; what is for vLLM is run where that is, by tests/vllm."""
CONFTEST = "# conftest.py"


def examples(*kinds: str, without: Collection[str] = LITERALLY):
    """The blocks of some kinds in all pages, those apart that are run literally."""
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")) if page.name not in without else ():
            if block.kind in kinds:
                yield page, block


def sources(*kinds: str):
    """As parameters of a test."""
    return [pytest.param(block.text, id=f"{page.stem}-{block.line}") for page, block in examples(*kinds)]


def settings():
    """Each block of settings as the parameters of a test, those of the tutorial too."""
    found = examples("ini", "toml", without=())
    return [pytest.param(block.kind, block.text, id=f"{page.stem}-{block.line}") for page, block in found]


def python():
    """Each block of Python and the conftest.py before it; one that several pages show counts once."""
    seen, before, found = set(), {}, []
    for page, block in examples("python"):
        if block.text.startswith(CONFTEST):
            before[page] = block.text
            continue
        source = (block.text, before.pop(page, ""))
        if source not in seen:
            seen.add(source)
            found.append(pytest.param(*source, id=f"{page.stem}-{block.line}"))
    return found


def test_there_are_examples():
    assert len(python()) >= 20
    assert len(sources("console")) >= 8


def test_every_block_is_of_a_kind_that_is_executed_or_only_shown():
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            assert block.kind in CHECKED | SHOWN, f"{page.name}:{block.line}: what is done with {block.kind!r}?"


def test_no_fence_is_left_open():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = len(re.findall(r"^```", text, re.MULTILINE))
        assert fences == 2 * len(blocks(text)), page.name


@pytest.mark.real
@pytest.mark.parametrize("source, conftest", python())
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
@pytest.mark.parametrize("block", sources("console"))
def test_console(pytester, capsys, block):
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


@pytest.mark.parametrize("kind, block", settings())
def test_settings(pytester, kind, block):
    """As a run reads them: a value that means nothing is an error, and so is an unknown name."""
    from pytest_quant import options

    (pytester.path / {"ini": "pytest.ini", "toml": "pyproject.toml"}[kind]).write_text(block)
    assert options.read(pytester.parseconfigure("--strict-config")).rootpath == pytester.path


@pytest.mark.parametrize("block", sources("sh", "bash"))
def test_scripts(block):
    checked = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    understood(block)


@pytest.mark.parametrize("block", sources("yaml"))
def test_pipelines(block):
    yaml = pytest.importorskip("yaml")  # transformers brings it
    read = yaml.safe_load(block)
    assert isinstance(read, (dict, list))
    for script in _scripts(read):
        understood(script)


def test_json():
    for _, block in examples("json"):
        json.loads(block.text)


def understood(script: str) -> None:
    """Each ``pytest-quant`` of a script is one that the command's parser takes."""
    from pytest_quant.cli import parser

    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = words[: next((place for place, word in enumerate(words) if word in (">", ">>", "|", "&&", "||")), None)]
        if words[:1] == ["pytest-quant"]:
            parser().parse_args(words[1:])


def _scripts(node):
    """The shell scripts of a GitHub or GitLab pipeline."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("run", "script", "before_script"):
                yield value if isinstance(value, str) else "\n".join(value)
            else:
                yield from _scripts(value)
    elif isinstance(node, list):
        for each in node:
            yield from _scripts(each)


def test_every_option_in_the_documentation_exists(pytestconfig):
    known = set(vars(pytestconfig.option))
    for page in PAGES:
        for option in re.findall(r"--(quant-[a-z-]+)", page.read_text(encoding="utf-8")):
            assert option.replace("-", "_") in known, f"{page.name}: --{option}"


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not link.startswith(("https://", "http://")):
                assert (page.parent / link).exists(), f"{page.name}: {link}"
