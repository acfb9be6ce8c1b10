"""Each kind of option: what TOML and text may say, what it becomes, and what a mistake says."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from pytest_quant.configuration import values
from pytest_quant.configuration.said import Origin, Said
from pytest_quant.declarations import GROUPS, OPTIONS
from pytest_quant.errors import UsageError
from pytest_quant.hardware import matrix

BY_NAME = {option.name: option for option in OPTIONS}
FILE = Path("pyproject.toml")


def in_table(name: str, value: object, root: Path = Path()):
    option = BY_NAME[f"quant-{name}"]
    return values.read(option, Said(value, Origin("table", option.key, FILE), root, root))


def as_text(name: str, value: str):
    option = BY_NAME[f"quant-{name}"]
    return values.read(option, Said(value, Origin("command line", option.flag), Path("root"), Path("here")))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_declared_as_a_whole(option):
    assert option.name.startswith("quant-")
    assert option.kind in values.KINDS
    assert option.group in GROUPS
    assert option.help
    assert option.on_command_line or option.in_files
    assert (option.metavar is None) == (option.kind == "switch")
    assert bool(option.choices) == (option.kind == "word")
    if option.default is not None:  # is itself a value that may be written
        assert values.read(option, Said(option.default, Origin("default"), Path(), Path())) is not None
        assert option.default in option.full_help
    if option.in_ci is not None:
        assert {option.in_ci, option.default} <= set(option.choices)


def test_options_have_each_name_once():
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


@pytest.mark.parametrize(
    "name, value, read",
    [
        ("formats", ["int8", "nf4"], ("int8", "nf4")),
        ("formats", [], None),
        ("max-windows", 64, 64),
        ("price", 2.5, 2.5),
        ("price", 3, 3.0),
        ("confidence", 0.9, 0.9),
        ("full", True, True),
        ("full", False, False),
        ("engine-args", {"tensor_parallel_size": 2}, (("tensor_parallel_size", "2"),)),
        ("device-map", "auto", "auto"),
        ("device-map", 1, "1"),
        ("device-map", {"": 0}, '{"": 0}'),
        ("accept", ["mig"], ("mig",)),
        ("checkpoints", {"gptq": "org/name", "awq": "a,b=c"}, (("awq", "a,b=c"), ("gptq", "org/name"))),
        ("calibration", "wikitext2", "wikitext2"),
        ("missing", "fail", "fail"),
        ("baseline-path", "here", Path("here")),
    ],
)
def test_in_the_table(name, value, read):
    assert in_table(name, value) == read


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("formats", "int8,nf4", ' formats = "int8,nf4": must be a list of names, such as ["int8", "nf4"], not text'),
        ("formats", ["int8", 4], 'must be a list of names, such as ["int8", "nf4"], not a list'),
        ("formats", ["int9"], " formats: unknown format 'int9'"),
        ("max-windows", "64", 'max-windows = "64": must be a whole number without quotes, such as 64, not text'),
        ("max-windows", 6.5, "must be a whole number without quotes, such as 64, not a number"),
        ("max-windows", True, "not true or false"),
        ("max-windows", 1, "max-windows = 1: must be a whole number of 2 or more"),
        ("price", "2", "price = "),
        ("price", 0, "price = 0: must be a number above 0"),
        ("price", float("inf"), "must be a number above 0"),
        ("price", float("nan"), "must be a number above 0"),
        ("price", 10**400, "must be a number above 0"),
        ("confidence", 1.0, "must be a number from 0.5 to below 1"),
        ("full", "yes", 'full = "yes": must be true or false, not text'),
        ("full", 1, "must be true or false, not a whole number"),
        ("engine-args", "{}", "must be a table, such as { tensor_parallel_size = 2 }, not text"),
        ("engine-args", {"seed": 3}, "engine-args: the engine argument 'seed' cannot be given"),
        ("engine-args", {"x": datetime.date(2026, 1, 1)}, "engine-args = { x = 2026-01-01 }: write text, numbers"),
        ("engine-args", {"x": float("nan")}, "write text, numbers, true, false"),
        ("device-map", "everywhere", "device-map: device_map: 'everywhere' is no place"),
        ("device-map", [0], "not a list"),
        ("accept", ["loud"], "there is no condition 'loud'"),
        ("checkpoints", {"gptq": 3}, "must be a table of texts, such as { gptq = "),
        ("checkpoints", {"gptq": ""}, "write FORMAT=PLACE"),
        ("checkpoints", {"int9": "x"}, "unknown format 'int9'"),
        ("calibration", "2*a,0.5*b", " calibration: "),
        ("missing", "never", 'missing = "never": may be record or fail'),
        ("protocol", "gptq", "protocol: unknown protocol 'gptq'"),
        ("max-windows", float("inf"), "max-windows = inf: must be a whole number"),
        ("confidence", float("nan"), "confidence = nan: must be a number from 0.5"),
        ("engine", "vlm", "engine: unknown engine 'vlm'; did you mean vllm? The engines are transformers and vllm"),
        ("reference-engine", "x", "reference-engine: unknown engine 'x'; the engines are transformers and vllm"),
        ("reference", "nf4", "reference: nf4 is a quantized format; use fp16, bf16 or fp32"),
        ("matrix", "nowhere.toml", "matrix: nowhere.toml: cannot be read"),
        ("corpus", "nowhere.txt", "corpus: unknown corpus 'nowhere.txt'"),
        ("corpus", "wikitext2:nowhere", "corpus: the copy 'nowhere' of wikitext2 is not there"),
        ("tasks", "nowhere", 'tasks = "nowhere": there is no such folder'),
        ("history", "", 'history = "": is empty; name a folder'),
        ("cache-dir", " ", "is empty; name a folder"),
        ("baseline-path", "", "is empty; name a folder"),
        ("tasks", "", "is empty; name a folder"),
        ("model", datetime.date(2026, 1, 1), 'must be text, such as "org/name", not a date'),
    ],
)
def test_wrong_in_the_table(name, value, said):
    with pytest.raises(UsageError) as wrong:
        in_table(name, value)
    assert str(wrong.value).startswith(f"pyproject.toml: [tool.pytest-quant] {name}")
    assert said in str(wrong.value)


@pytest.mark.parametrize(
    "name, text, read",
    [
        ("formats", "int8, nf4", ("int8", "nf4")),
        ("max-windows", "64", 64),
        ("price", "2.5", 2.5),
        ("engine-args", '{"tensor_parallel_size": 2}', (("tensor_parallel_size", "2"),)),
        ("engine-args", "", ()),
        ("engine", "", "transformers"),
        ("accept", "", ()),
        ("checkpoints", "gptq=a,\nawq=b", (("awq", "b"), ("gptq", "a"))),
        ("json", "run.json", Path("here/run.json")),
        ("model", "org/name", "org/name"),
    ],
)
def test_as_text(name, text, read):
    assert as_text(name, text) == read


@pytest.mark.parametrize("text", ["[]", "{", "{'a': 1}", '{"a": NaN}'])
def test_engine_arguments_that_are_no_json(text):
    with pytest.raises(UsageError, match=r"--quant-engine-args=.*: write JSON, such as"):
        as_text("engine-args", text)


def test_a_path_of_the_table_is_meant_from_its_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "text.txt").write_text("")
    assert in_table("model", "model", tmp_path) == str(tmp_path / "model")
    assert in_table("corpus", "text.txt", tmp_path) == str(tmp_path / "text.txt")
    (tmp_path / "own.toml").write_text((Path(matrix.__file__).parent / "support_lesson.toml").read_text())
    assert in_table("matrix", "own.toml", tmp_path) == str(tmp_path / "own.toml")
    assert in_table("history", "runs", tmp_path) == tmp_path / "runs"
    assert in_table("checkpoints", {"gptq": "model"}, tmp_path) == (("gptq", str(tmp_path / "model")),)
    assert in_table("calibration", "0.5*text.txt,0.5*wikitext2", tmp_path).startswith(f"0.5*{tmp_path}")


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("history", "", "is empty; name a folder"),
        ("baseline-path", "", "is empty; name a folder"),
        ("cache-dir", "", "is empty; name a folder"),
        ("json", "", "is empty; name a file"),
        ("markdown", "", "is empty; name a file"),
        ("report", "", "is empty; name an .html file"),
        ("json", "folder", "this is a folder; name a file in it"),
        ("markdown", "folder", "this is a folder; name a file in it"),
        ("report", "folder.html", "this is a folder; name a file in it"),
        ("json", "text/below/run.json", "text is a file, so nothing can lie below it"),
        ("markdown", "text/out.md", "text is a file, so nothing can lie below it"),
        ("report", "text/out.html", "text is a file, so nothing can lie below it"),
        ("history", "text", "this is a file; name a folder"),
        ("history", "text/below", "text is a file; name another folder"),
        ("baseline-path", "text", "this is a file; name a folder"),
        ("cache-dir", "text/below", "text is a file; name another folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_seen_at_the_start(tmp_path, name, text, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "text").write_text("")
    option = BY_NAME[f"quant-{name}"]
    with pytest.raises(UsageError) as wrong:
        values.read(option, Said(text, Origin("command line", option.flag), tmp_path, tmp_path))
    assert str(wrong.value).startswith(f"--quant-{name}={text}: ")
    assert said in str(wrong.value)
