"""The GitHub Action and the GitLab template: their shell is run as a runner would run it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_quant import publishing

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
SPEC, TEMPLATE = yaml.safe_load_all((ROOT / "templates" / "pytest-quant.gitlab-ci.yml").read_text(encoding="utf-8"))
HOSTILE = '"; touch pwned; echo "$(touch pwned)'
"""Runs a command wherever it is pasted into a script, within double quotes or without any."""
GATE = """
import pytest

@pytest.mark.quant(model="tiny", formats=["int8"], reference="fp32")
@pytest.mark.memory_budget(max_ratio={limit})
def test_small(quant_model): ...
"""
PLAIN = "def test_plain(): assert {holds}\n"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="asked: bash; found: none; needed: bash")


def defaults(inputs: dict[str, Any]) -> dict[str, str]:
    return {name: str(told.get("default", "")) for name, told in inputs.items()}


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A checkout with a plain test, and what every job of a runner has."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nquant_corpus = corpus.txt\n")
    (folder / "corpus.txt").write_text("A few words. " * 40)
    (folder / "test_it.py").write_text(PLAIN.format(holds=True))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # of what else is installed where these tests run
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_quant.plugin")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return folder


def shell(script: str, folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", *arguments, "-c", script]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)


def step(name: str) -> dict[str, Any]:
    (found,) = [one for one in ACTION["runs"]["steps"] if name in (one.get("id"), *one.get("env", {}))]
    return found


def evaluated(environment: dict[str, str], told: dict[str, str], folder: Path) -> dict[str, str]:
    """A step's variables as GitHub sets them."""
    values = {f"inputs.{name}": value for name, value in told.items()}
    return {name: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values[m[1]], text) for name, text in environment.items()}


def act(name: str, folder: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str], Path]:
    """Run a step of the action; its process, its outputs, and the folder of results."""
    told = {**defaults(ACTION["inputs"]), **{key.replace("_", "-"): value for key, value in inputs.items()}}
    outputs, temporary = folder.parent / "outputs", folder.parent / "temp"
    temporary.mkdir(exist_ok=True)
    outputs.write_text("")
    variables = evaluated(step(name)["env"], told, folder)
    variables |= {"GITHUB_OUTPUT": str(outputs), "RUNNER_TEMP": str(temporary), "GITHUB_ACTION_PATH": str(ROOT)}
    process = shell(step(name)["run"], folder, variables, "--noprofile", "--norc", "-e", "-o", "pipefail")
    found = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    return process, found, Path(found.get("results", temporary / "none"))


def gated(folder: Path, model: Path, limit: float) -> None:
    (folder / "tiny").symlink_to(model)
    (folder / "test_it.py").write_text(GATE.format(limit=limit))


def pip(folder: Path) -> Path:
    """A pip that only notes what it was told, an argument a line."""
    module = folder.parent / "fake" / "pip"
    module.mkdir(parents=True)
    told = folder.parent / "pip.txt"
    (module / "__init__.py").write_text("")
    code = f"import pathlib, sys\npathlib.Path({str(told)!r}).write_text('\\n'.join(sys.argv[1:]))\n"
    (module / "__main__.py").write_text(code)
    return told


def test_no_input_is_pasted_into_a_script():
    for one in ACTION["runs"]["steps"]:
        assert "${{" not in one.get("run", "")
    assert all("$[[" not in line for line in TEMPLATE["$[[ inputs.job-name ]]"]["script"])


def test_every_expression_names_an_input_or_a_step_that_there_is():
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"inputs\.([\w-]+)", text))
    assert used == set(ACTION["inputs"])
    steps = {one["id"] for one in ACTION["runs"]["steps"] if "id" in one}
    assert set(re.findall(r"steps\.([\w-]+)", text)) == steps
    template = (ROOT / "templates" / "pytest-quant.gitlab-ci.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", template)) == set(SPEC["spec"]["inputs"])


def test_steps_after_the_tests_run_even_when_those_are_red():
    names = [one.get("id") for one in ACTION["runs"]["steps"]]
    after = ACTION["runs"]["steps"][names.index("gates") + 1 :]
    assert len(after) == 2
    assert all("!cancelled()" in one["if"] for one in after)
    assert TEMPLATE["$[[ inputs.job-name ]]"]["artifacts"]["when"] == "always"


def test_actions_are_pinned_by_majors_that_run_on_node_24():
    known = {
        "actions/checkout": 6,
        "actions/setup-python": 6,
        "actions/cache": 5,
        "actions/cache/restore": 5,
        "actions/cache/save": 5,
        "actions/upload-artifact": 6,
        "actions/download-artifact": 7,
    }
    texts = [ROOT / "action.yml", *(ROOT / "examples" / "ci").glob("github*.yml")]
    found = [
        use for text in texts for use in re.findall(r"uses: (actions/\S+)@v(\d+)$", text.read_text(), re.MULTILINE)
    ]
    assert len(found) > 5
    assert all(known[name] == int(major) for name, major in found)


def test_a_red_gate_keeps_its_exit_code_and_leaves_its_record(runner, tiny_llama):
    gated(runner, tiny_llama, limit=0.01)
    process, outputs, results = act("gates", runner, tests="test_it.py", pytest_arguments="--quant-missing=record -q")
    assert process.returncode == 1, process.stdout + process.stderr
    assert (outputs["verdict"], outputs["exit-code"]) == ("failed", "1")
    record = json.loads((results / "record.json").read_text())
    assert [measured["verdict"] for measured in record["measurements"]] == ["failed"]
    assert outputs["record"] == str(results / "record.json")
    assert (results / "junit.xml").is_file()


@pytest.mark.skipif(
    "--quant-report" not in inspect.getsource(publishing) or "--quant-markdown" not in inspect.getsource(publishing),
    reason="asked: the files of --quant-report and --quant-markdown; found: no writers; needed: them",
)
def test_the_report_and_the_markdown_are_outputs(runner, tiny_llama):
    gated(runner, tiny_llama, limit=0.9)
    process, outputs, results = act("gates", runner, pytest_arguments="--quant-missing=record")
    assert process.returncode == 0, process.stdout + process.stderr
    assert outputs["report"] == str(results / "report.html")
    assert outputs["markdown"] == str(results / "verdicts.md")
    assert (results / "report.html").is_file()
    assert (results / "verdicts.md").is_file()
    assert any((runner / ".quant-history").iterdir())


@pytest.mark.parametrize("holds, code", [(True, 0), (False, 1)])
def test_where_nothing_is_measured_nothing_is_judged(runner, holds, code):
    (runner / "test_it.py").write_text(PLAIN.format(holds=holds))
    process, outputs, _ = act("gates", runner, report="false", history="", baseline_path="base lines")
    assert process.returncode == code, process.stdout + process.stderr
    assert (outputs["verdict"], outputs["exit-code"]) == ("error", str(code))
    assert "report" not in outputs
    assert ("::warning::pytest-quant measured nothing" in process.stdout) is holds


def test_what_is_skipped_is_not_passed(runner, tiny_llama):
    gated(runner, tiny_llama, limit=0.9)
    (runner / "test_it.py").write_text(GATE.format(limit=0.9).replace("int8", "fp8"))
    process, outputs, results = act("gates", runner, report="false", pytest_arguments="--quant-missing=record")
    assert process.returncode == 0, process.stdout + process.stderr
    assert json.loads((results / "record.json").read_text())["skipped"]
    assert outputs["verdict"] == "error"


def test_a_use_leaves_the_results_of_another_alone(runner, tiny_llama):
    gated(runner, tiny_llama, limit=0.9)
    _, first, one = act("gates", runner, pytest_arguments="--quant-missing=record", artifact="l4/../x")
    _, second, other = act("gates", runner, pytest_arguments="--quant-missing=record", artifact="..")
    assert one != other
    for outputs, results in ((first, one), (second, other)):
        assert outputs["verdict"] == "passed"
        assert (results / "record.json").is_file()
        assert results.parent == runner.parent / "temp" / "pytest-quant"


@pytest.mark.parametrize("tests", ["--collect-only", "test_it.py\n-h"])
def test_an_option_among_the_tests_is_refused_before_anything_runs(runner, tests):
    (runner / "test_it.py").write_text("open('ran', 'w')\n")
    process, outputs, _ = act("gates", runner, tests=tests)
    assert (process.returncode, outputs) == (2, {"verdict": "error"})
    assert "::error::tests has lines of files and folders" in process.stdout
    assert not (runner / "ran").exists()


def test_empty_paths_are_those_of_the_project(runner, tiny_llama):
    gated(runner, tiny_llama, limit=0.9)
    (runner / "pyproject.toml").write_text('[tool.pytest-quant]\nbaseline-path = "kept"\n')
    process, _, _ = act("gates", runner, history="", baseline_path="", pytest_arguments="--quant-missing=record")
    assert process.returncode == 0, process.stdout + process.stderr
    assert any((runner / "kept").rglob("*.json"))
    assert not list(runner.glob("*.json"))


def test_paths_are_those_that_the_container_of_a_job_sees():
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert "github.action_path" not in text
    assert "runner.temp" not in text


def test_nothing_collected_is_an_error(runner):
    (runner / "test_it.py").unlink()
    process, outputs, _ = act("gates", runner)
    assert (process.returncode, outputs["verdict"], outputs["exit-code"]) == (5, "error", "5")


def test_tests_are_lines_and_may_hold_spaces(runner):
    (runner / "test_it.py").rename(runner / "test two words.py")
    (runner / "test_other.py").write_text("def test_red(): assert False\n")
    process, _, _ = act("gates", runner, tests="test two words.py\n", pytest_arguments="-v -k 'plain or nothing'")
    assert process.returncode == 0, process.stdout + process.stderr
    assert "1 passed" in process.stdout


@pytest.mark.parametrize("script", [f'echo "{HOSTILE}"', f"echo {HOSTILE}"])
def test_the_hostile_text_would_be_run_if_it_were_pasted(runner, script):
    shell(script, runner, {})
    assert (runner / "pwned").exists()


@pytest.mark.parametrize("name", ["tests", "pytest_arguments", "baseline_path", "update_baseline", "history", "report"])
def test_what_an_input_says_is_never_run(runner, name):
    act("gates", runner, **{name: HOSTILE})
    assert not list(runner.parent.rglob("pwned"))


@pytest.mark.parametrize("name", ["extras", "version"])
def test_an_extra_is_a_name(runner, monkeypatch, name):
    told = pip(runner)
    monkeypatch.setenv("PYTHONPATH", str(told.parent / "fake"))
    process, _, _ = act("EXTRAS", runner, **{name: HOSTILE})
    assert process.returncode == 2
    assert "::error::" in process.stdout
    assert not told.exists()
    assert not list(runner.parent.rglob("pwned"))


def test_what_is_installed(runner, monkeypatch):
    told = pip(runner)
    monkeypatch.setenv("PYTHONPATH", str(told.parent / "fake"))
    assert act("EXTRAS", runner)[0].returncode == 0
    assert told.read_text().splitlines() == ["install", f"{ROOT}[bitsandbytes,report]"]
    assert act("EXTRAS", runner, version="1.2.0rc1", extras="vllm")[0].returncode == 0
    assert told.read_text().splitlines() == ["install", "pytest-quant[vllm]==1.2.0rc1"]


def job(folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The template's job as GitLab runs it, with a pip that installs nothing."""
    told = {**defaults(SPEC["spec"]["inputs"]), **{key.replace("_", "-"): value for key, value in inputs.items()}}
    variables = {
        name: re.sub(r"\$\[\[ inputs\.([\w-]+) \]\]", lambda found: told[found[1]], variable["value"])
        for name, variable in TEMPLATE["$[[ inputs.job-name ]]"]["variables"].items()
    }
    script = TEMPLATE["$[[ inputs.job-name ]]"]["script"]
    (install,) = [line for line in script if "pip install" in line]
    fake = pip(folder)
    installed = shell(install, folder, {**variables, "PYTHONPATH": str(fake.parent / "fake")})
    assert installed.returncode == 0
    assert fake.read_text().splitlines() == ["install", variables["QUANT_PACKAGE"]]
    rest = "\n".join(line for line in script if line != install)
    return shell(rest, folder, variables, "-e", "-o", "pipefail")


def test_the_templates_job_judges_and_leaves_its_record(runner, tiny_llama):
    gated(runner, tiny_llama, limit=0.9)
    process = job(runner, tests="test_it.py", pytest_arguments="--quant-missing=record")
    assert process.returncode == 0, process.stdout + process.stderr
    record = json.loads((runner / "quant-results" / "record.json").read_text())
    assert [measured["verdict"] for measured in record["measurements"]] == ["passed"]
    assert (runner / "quant-baselines").is_dir()
    assert (runner / "quant-results" / "junit.xml").is_file()


def test_the_templates_empty_paths_are_those_of_the_project(runner, tiny_llama):
    gated(runner, tiny_llama, limit=0.9)
    (runner / "pyproject.toml").write_text('[tool.pytest-quant]\nbaseline-path = "kept"\n')
    process = job(runner, history="", baseline_path="", pytest_arguments="--quant-missing=record")
    assert process.returncode == 0, process.stdout + process.stderr
    assert any((runner / "kept").rglob("*.json"))
    assert not list(runner.glob("*.json"))
    assert all(
        not path.startswith("$") or "]]/" in path for path in TEMPLATE["$[[ inputs.job-name ]]"]["cache"]["paths"]
    )


def test_an_option_in_the_place_of_the_templates_tests_is_refused(runner):
    (runner / "test_it.py").write_text("open('ran', 'w')\n")
    process = job(runner, tests="--collect-only")
    assert process.returncode == 2
    assert "tests is a file or folder" in process.stderr
    assert not (runner / "ran").exists()


def test_the_templates_job_is_red_where_a_test_is(runner):
    (runner / "test_it.py").write_text(PLAIN.format(holds=False))
    assert job(runner).returncode == 1


@pytest.mark.parametrize(
    "name", ["package", "tests", "pytest_arguments", "baseline_path", "update_baseline", "history"]
)
def test_what_a_templates_input_says_is_never_run(runner, name):
    job(runner, **{name: HOSTILE})
    assert not list(runner.parent.rglob("pwned"))


def test_variables_are_not_expanded_by_gitlab():
    assert all(told["expand"] is False for told in TEMPLATE["$[[ inputs.job-name ]]"]["variables"].values())


def test_the_examples_give_inputs_that_there_are():
    folder = ROOT / "examples" / "ci"
    (gates,) = yaml.safe_load((folder / "github-action.yml").read_text())["jobs"].values()
    (use,) = [one for one in gates["steps"] if "ORG/pytest-quant" in one["uses"]]
    assert use["with"].keys() <= ACTION["inputs"].keys()
    (include,) = yaml.safe_load((folder / "gitlab-template.yml").read_text())["include"]
    assert (ROOT / include["file"]).is_file()
    assert include["inputs"].keys() <= SPEC["spec"]["inputs"].keys()
