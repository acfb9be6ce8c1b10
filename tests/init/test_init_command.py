"""``pytest-quant init``: what it writes is green on the spot, and red once the model is damaged."""

from __future__ import annotations

import ast
import json
import shutil

import pytest

from pytest_quant.cli import main
from pytest_quant.gates.measurement import Quantity
from pytest_quant.init import file
from pytest_quant.init.file import Written
from pytest_quant.init.limits import Limit, Refused
from pytest_quant.init.measure import Finding

QUALITY = ("--metrics", "perplexity_delta,token_agreement,memory_budget")


@pytest.fixture
def here(project):
    """A project that says which text its tests use, and has the model below it."""
    shutil.copytree(project.model, project.path / "models" / "tiny")
    project.ini("quant_cache_dir = cache")
    return project


def init(*arguments: str) -> int:
    return main(["init", "models/tiny", *arguments])


def plant(monkeypatch, factor: float) -> None:
    """Every weight of the first layer's down projection in int8 is wrong by a factor."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def faulty(*args, **kwargs):
        found = load(*args, **kwargs)
        if "quantization_config" in kwargs:
            model = found[0] if isinstance(found, tuple) else found
            for layer in model.model.layers:
                layer.mlp.down_proj.weight.SCB.mul_(factor)
        return found

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", faulty)


def test_the_file_is_green_on_the_spot_and_red_once_the_model_is_damaged(here, capsys, monkeypatch):
    assert init("--formats", "int8,nf4", *QUALITY) == 0
    out = capsys.readouterr().out
    source = (here.path / "tests" / "test_quantization.py").read_text()
    assert "tests/test_quantization.py: written. Next:\n  pytest --quant-baseline tests/test_quantization.py" in out
    assert 'MODEL = "models/tiny"' in source
    assert source.count("# measured ") == 6
    result, record = here.record("--quant-baseline", "tests")
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    assert {(m["format"], m["verdict"]) for m in record["measurements"]} == {("int8", "passed"), ("nf4", "passed")}
    assert len(record["measurements"]) == 6
    shutil.rmtree(here.path / "quant-baselines")  # the limits alone have to see it
    plant(monkeypatch, 1.5)
    result = here.run("tests", "-k", "int8")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*int8 perplexity_delta failed: *"])


def test_the_reference_that_was_scored_is_stored_for_the_first_run(here, monkeypatch):
    from pytest_quant.models import Models

    assert init("--formats", "int8", "--metrics", "perplexity_delta") == 0
    loaded = []
    get = Models.get
    monkeypatch.setattr(Models, "get", lambda self, spec, name: loaded.append(name) or get(self, spec, name))
    assert here.run("tests").ret == 0
    assert "fp32" not in loaded


def test_a_file_that_is_there_is_not_touched(here, capsys):
    target = here.path / "tests" / "test_quantization.py"
    target.parent.mkdir()
    target.write_text("mine = True\n")
    assert init() == 2
    assert target.read_text() == "mine = True\n"
    assert "is there already; give another --output, or --force" in capsys.readouterr().err
    assert init("--formats", "int8", "--metrics", "memory_budget", "--force") == 0
    assert "memory_budget(max_ratio=" in target.read_text()
    assert [path.name for path in target.parent.iterdir()] == ["test_quantization.py"]


def test_a_file_that_came_meanwhile_is_not_touched(here, monkeypatch, capsys):
    from pytest_quant.init import measure

    target = here.path / "deep" / "down" / "test_it.py"
    real = measure.measure

    def slow(*arguments):
        target.parent.mkdir(parents=True)
        target.write_text("mine = True\n")
        return real(*arguments)

    monkeypatch.setattr(measure, "measure", slow)
    assert init("--formats", "int8", "--metrics", "memory_budget", "--output", "deep/down/test_it.py") == 2
    assert target.read_text() == "mine = True\n"


@pytest.mark.parametrize("json_too", [False, True])
def test_what_was_measured_is_printed_where_it_cannot_be_written(here, capsys, monkeypatch, json_too):
    from pytest_quant import atomic

    def refused(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "replace", refused)
    assert init("--formats", "int8", "--metrics", "memory_budget", *(["--json"] if json_too else [])) == 2
    out, err = capsys.readouterr()
    source = json.loads(out)["text"] if json_too else out
    assert "memory_budget(max_ratio=" in ast.unparse(ast.parse(source))
    assert "test_quantization.py cannot be written: No space left on device" in err
    assert not (here.path / "tests" / "test_quantization.py").exists()


def test_a_format_of_the_projects_own(here):
    from pytest_quant.formats import registry

    (here.path / "conftest.py").write_text(
        "from pytest_quant.formats import variant\n\n\ndef pytest_quant_formats():\n"
        '    return [variant("nf4", "nf4-plain", bnb_4bit_use_double_quant=False)]\n'
    )
    assert init("--formats", "nf4-plain", "--metrics", "memory_budget") == 0
    assert 'formats=["nf4-plain"]' in (here.path / "tests" / "test_quantization.py").read_text()
    assert "nf4-plain" not in registry.formats()


def test_what_pytest_says_is_in_the_json(here, capfd):
    (here.path / "conftest.py").write_text("print('hello')\nraise ValueError('broken here')\n")
    assert main(["init", "models/tiny", "--json"]) == 2
    found = json.loads(capfd.readouterr().out)
    assert "broken here" in found["error"]


def test_dry_run_prints_the_file_alone_and_json_all_of_it(here, capsys):
    arguments = ("--formats", "int8", "--metrics", "memory_budget", "--dry-run")
    assert init(*arguments) == 0
    source = capsys.readouterr().out
    assert ast.parse(source)
    assert init(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["text"], "path" in found) == (1, source, False)
    (format,) = found["formats"]
    (metric,) = format["metrics"]
    assert (format["format"], metric["metric"], list(metric["limit"])) == ("int8", "memory_budget", ["max_ratio"])
    assert metric["value"] == metric["low"] < metric["limit"]["max_ratio"]
    assert not (here.path / "tests").exists()


def test_a_format_that_looks_broken_gets_no_limit_and_exit_code_1(here, capsys, monkeypatch):
    plant(monkeypatch, 20.0)
    assert init("--formats", "int8", *QUALITY) == 1
    out = capsys.readouterr().out
    assert "int8 perplexity_delta: no limit; " in out
    assert "where a format of 8 bits is broken" in out
    source = (here.path / "tests" / "test_quantization.py").read_text()
    assert "mark.perplexity_delta" not in source
    assert "# no perplexity_delta: " in source
    assert "mark.memory_budget" in source


def test_where_nothing_gets_a_limit_there_is_no_file(here, capsys, monkeypatch):
    plant(monkeypatch, 20.0)
    assert init("--formats", "int8", "--metrics", "perplexity_delta") == 2
    assert "nothing that was measured gives a limit, so no file was written: int8 perplexity_delta: " in (
        capsys.readouterr().err
    )
    assert not (here.path / "tests").exists()


def test_a_model_that_is_not_quantized_is_refused(here, capsys, monkeypatch):
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def ignoring(*args, **kwargs):
        kwargs.pop("quantization_config", None)
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", ignoring)
    assert init("--formats", "int8", "--metrics", "perplexity_delta") == 2
    assert not (here.path / "tests").exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pytest-quant: ")]
    assert "int8" in line


def test_speed_is_left_out_with_the_reason_where_the_machine_is_not_quiet(here, capsys, monkeypatch):
    from pytest_quant.hardware import conditions
    from pytest_quant.hardware.condition import Condition, Conditions

    class Busy:
        def __init__(self, *_, **__): ...
        def start(self): ...
        def look(self): ...
        def stop(self):
            return Conditions((Condition("thermal-throttling", "it was hot"),))

    monkeypatch.setattr(conditions, "Watch", Busy)
    assert init("--formats", "int8", "--metrics", "memory_budget,throughput_ratio") == 0
    assert "int8 throughput_ratio: no limit; measured while it was hot" in capsys.readouterr().out
    source = (here.path / "tests" / "test_quantization.py").read_text()
    assert "# no throughput_ratio: measured while it was hot" in source
    assert "mark.throughput_ratio" not in source


def test_speed_is_limited_where_nothing_disturbs_it(here):
    here.ini("quant_cache_dir = cache", "quant_accept = cpu-load,cpu-quota,workers")
    assert init("--formats", "int8", "--metrics", "throughput_ratio") == 0
    assert "@pytest.mark.throughput_ratio(min=0." in (here.path / "tests" / "test_quantization.py").read_text()


def test_ctrl_c_leaves_nothing(here, monkeypatch, capsys):
    from pytest_quant.init import measure

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupted)
    assert init() == 130
    assert not (here.path / "tests").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["models/none/at/all"], "there is no such folder"),
        (["./none"], "there is no such folder"),
        (["corpus.txt"], "is a file; give the model's folder"),
        (["models/tiny", "--metrics", "speed"], "there is no metric 'speed'"),
        (["models/tiny", "--metrics", ","], "name one or more"),
        (["models/tiny", "--formats", "fp99"], "unknown format 'fp99'"),
        (["models/tiny", "--formats", "gptq"], "no checkpoint of it"),
        (["models/tiny", "--formats", "fp32"], "fp32 is the reference"),
        (["models/tiny", "--reference", "nf4"], "is a quantized format; use fp16, bf16 or fp32"),
        (["models/tiny", "--budget", "0"], "give seconds, more than 0"),
        (["models/tiny", "--output", "gates.py"], "would not collect a file of that name"),
        (["models/tiny", "--output", "models"], "that is a folder"),
        (["models/tiny", "--pytest-arguments='"], "write them as for a shell"),
        (
            ["models/tiny", "--pytest-arguments=--quant-confidence=7"],
            "--quant-confidence=7: must be a number from 0.5 to below 1",
        ),
        (["models/tiny", "--pytest-arguments=-p no:quant"], "the plugin is not loaded in this run"),
        (["models/tiny", "--pytest-arguments=--nope"], "unrecognized arguments: --nope"),
        (["models/tiny", "--budget", "nan"], "give seconds, more than 0"),
        (["models/tiny", "--budget", "inf"], "give seconds, more than 0"),
        (["models/tiny", "--output", "corpus.txt/deep/test_it.py"], "is a file, so nothing can lie below it"),
    ],
)
def test_a_mistake_is_one_line_with_the_next_step(here, capsys, arguments, words):
    assert main(["init", *arguments]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pytest-quant: ")]
    assert len(told) == 1
    assert words in told[0]
    assert not (here.path / "tests").exists()


def test_a_folder_without_a_model_is_told(here, capsys):
    (here.path / "empty").mkdir()
    assert main(["init", "empty", "--formats", "int8"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_format_without_a_limit_gets_no_test_that_would_always_be_green():
    sound = Finding("memory_budget", Limit("max_ratio", 0.3), Quantity.exact(0.29, "x"))
    broken = Finding("perplexity_delta", Refused("it is broken", broken=True), Quantity.exact(9.0, "x"))
    told = Written("m", "m", "fp32", "text", "CPU", "2026-01-01", {})
    source = file.render(told, [("int8", [broken]), ("nf4", [broken, sound])])
    assert "# int8 has no test; perplexity_delta: it is broken\n" in source
    assert [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)] == ["test_nf4"]


def test_hostile_names_stay_words():
    finding = Finding("perplexity_delta", Limit("max_ratio", 1.1), Quantity(1.05, 1.0, 1.1, "x"), (8, 64))
    noisy = Finding("throughput_ratio", 'measured while "\n""" import os\nos.abort()')
    told = Written('m"\n"""+x', 'm"""\\', "fp32", 'text"""', "CPU \\", "2026-01-01", {"revision": 'a"b'})
    source = file.render(told, [("int4@hqq", [finding, noisy]), ("nf4", [finding])])
    tree = ast.parse(source)
    assert [type(node).__name__ for node in tree.body] == [
        *("Expr", "Import", "Assign", "Assign", "FunctionDef", "FunctionDef")
    ]
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == ["test_int4_hqq", "test_nf4"]
    assert ast.literal_eval(tree.body[2].value) == 'm"\n"""+x'
    assert max(map(len, source.splitlines())) <= 120
