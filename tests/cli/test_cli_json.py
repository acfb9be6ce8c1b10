"""``--json``: one object on standard output from every subcommand, and nothing else."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_lines import leaves

from pytest_quant import answering, cli
from pytest_quant.checkpoints.record import Record
from pytest_quant.checkpoints.shelf import Checkpoint
from pytest_quant.reference.store import Store

SENTENCE = "The quick brown fox jumps over the lazy dog. "


def strict(text: str):
    """JSON without NaN and infinity, an object with the schema."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} in the answer")

    found = json.loads(text, parse_constant=refuse)
    assert found["schema"] == 1
    return found


@pytest.fixture
def asked(capfd):
    """Runs a command line and returns its exit code and its one object."""

    def ask(*words: object):
        capfd.readouterr()
        code = cli.main([*map(str, words), "--json"])
        found = strict(capfd.readouterr().out)
        assert found["exit_code"] == code
        return code, found

    return ask


@pytest.mark.parametrize("parser", leaves(), ids=lambda parser: parser.prog)
def test_every_command_has_it(parser):
    action = parser._option_string_actions["--json"]
    assert action.nargs == 0
    assert action.dest == "json"


def test_doctor(asked):
    code, found = asked("doctor")
    assert (code, found["here"], found["matrix"]) == (0, True, "corrected")
    formats = {line["format"]: line for line in found["formats"]}
    assert formats["fp32"]["status"] == "native"
    assert {line["status"] for line in formats.values()} <= {"native", "dequantized", "unsupported"}
    assert all("remedy" in line for line in formats.values() if line["status"] == "unsupported")
    assert {library["name"] for library in found["libraries"]} >= {"torch", "transformers"}
    assert asked("doctor", "--device", "H100")[1]["hardware"]["compute_capability"] == [9, 0]


def test_matrix(asked):
    code, found = asked("matrix", "--device", "A100", "--device", "L4")
    assert (code, [each["device"] for each in found["devices"]]) == (0, ["A100", "L4"])
    units = [{each["numeric"]: each["status"] for each in device["units"]} for device in found["devices"]]
    assert (units[0]["fp8"], units[1]["fp8"]) == ("dequantized", "native")
    found = asked("matrix", "--diff", "lesson")[1]
    assert found["other"] == "lesson"
    assert all(each["first"]["status"] != each["second"]["status"] for each in found["differences"])


def test_plan(asked):
    code, found = asked("plan", "--parameters", "70e9", "--device", "A100", "--bandwidth", "2TB/s", "--price", "2")
    rows = {row["format"]: row for row in found["formats"]}
    assert code == 0
    assert found["recommended"] in rows
    assert rows["fp16"]["weight_bytes"] == 140e9
    assert rows["fp16"]["decode"]["seconds"] == pytest.approx(0.07)
    assert rows["fp16"]["fits"] is False
    assert "kv" not in rows["fp16"]["memory"]  # a number of parameters says nothing of it
    assert rows["fp16"]["dollars_per_million_tokens"] == pytest.approx(2 / 3600 * 0.07 * 1e6)
    assert {each["format"] for each in found["cannot_run"]} >= {"fp8"}
    code, found = asked("plan", "--parameters", "70e9", "--device", "A100", "--max-ms", "1")
    assert (code, "recommended" in found) == (1, False)


def test_scan(asked, tiny_llama, tmp_path):
    (tmp_path / "corpus.txt").write_text(SENTENCE * 12)
    usual = ["--reference", "fp32", "--corpus", tmp_path / "corpus.txt", "--protocol", "gptq-32", "--windows", "2"]
    words = [
        "scan",
        tiny_llama,
        *usual,
        "--numeric",
        "int3",
        "--cache-dir",
        tmp_path,
        "--output",
        tmp_path / "scan.json",
    ]
    code, found = asked(*words, "--max-nats=-50")
    assert code == 1
    assert found["keep"]["holds"] is False
    assert any(layer["name"] == "model.layers.0.mlp.down_proj" for layer in found["layers"])
    del found["exit_code"]
    assert found == json.loads((tmp_path / "scan.json").read_text())
    assert "matches nothing" in asked(*words[:-2], "--only", "nothing")[1]["error"]


def test_reference(asked, tiny_llama, tmp_path):
    (tmp_path / "corpus.txt").write_text(SENTENCE * 12)
    usual = ["--reference", "fp32", "--corpus", tmp_path / "corpus.txt", "--protocol", "gptq-32", "--max-windows", "2"]
    cache, other = ("--cache-dir", tmp_path / "a"), ("--cache-dir", tmp_path / "b")
    code, built = asked("reference", "build", tiny_llama, *usual, *cache)
    (entry,) = built["references"]
    assert code == 0
    assert 0 <= built["floor"] < 1e-3
    assert (entry["model"], entry["dtype"], entry["windows"]) == ("tiny-llama", "fp32", 2)
    assert asked("reference", "list", *cache)[1]["references"] == [entry]
    code, exported = asked("reference", "export", "--to", tmp_path / "it.safetensors", *cache)
    assert (code, exported["references"][0]["path"]) == (0, str(tmp_path / "it.safetensors"))
    code, imported = asked("reference", "import", tmp_path / "it.safetensors", tmp_path / "nowhere", *other)
    assert code == 2
    assert [each["digest"] for each in imported["references"]] == [entry["digest"]]
    assert imported["failed"][0]["file"] == str(tmp_path / "nowhere")
    assert "there is no such file" in imported["failed"][0]["error"]
    place = Path(Store(tmp_path / "a").entries()[0].path)
    place.write_bytes(place.read_bytes()[:-1])
    code, verified = asked("reference", "verify", "--delete", *cache)
    assert (code, verified["references"][0]["deleted"]) == (2, True)
    assert "model" not in verified["references"][0]
    assert asked("reference", "list", *cache)[1]["references"] == []


def test_baseline(asked, project):
    project.test(
        "import pytest\n@pytest.mark.memory_budget(max_gb=1.0)\ndef test_gate(quant_model):\n    assert quant_model\n"
    )
    assert project.gate().ret == 0
    code, shown = asked("baseline", "show", project.path / "quant-baselines")
    assert (code, len(shown["measurements"])) == (0, 1)
    code, merged = asked("baseline", "merge", project.path / "quant-baselines", "--into", project.path / "merged")
    assert (code, merged["measurements"], len(merged["written"])) == (0, 1, 1)
    code, chosen = asked("baseline", "prune", project.path / "merged", "--metric", "memory_budget")
    assert (code, chosen["pruned"], len(chosen["measurements"])) == (0, False, 1)
    assert asked("compare", project.path / "quant-baselines", project.path / "merged", "--fail")[0] == 0
    code, chosen = asked("baseline", "prune", project.path / "merged", "--metric", "memory_budget", "--yes")
    assert (code, chosen["pruned"], len(chosen["measurements"])) == (0, True, 1)
    assert asked("baseline", "prune", project.path / "quant-baselines", "--format", "none")[1]["pruned"] is False
    damaged = next((project.path / "quant-baselines").rglob("*.json"))
    damaged.write_text("{")
    for words in (("show",), ("merge", "--into", project.path / "more"), ("prune", "--format", "nf4")):
        code, found = asked("baseline", words[0], project.path / "quant-baselines", *words[1:])
        assert code == 2
        assert str(damaged) in found["unreadable"][0]


def test_quantize_says_why_not(asked, tiny_llama, tmp_path):
    code, found = asked("quantize", tiny_llama, "--format", "nf4", "--cache-dir", tmp_path)
    assert (code, found["error"]) == (2, "nf4 is quantized while the model is loaded: there is no checkpoint to make")


def test_quantize(asked, tiny_llama, tmp_path, monkeypatch, capfd):
    """What is made is made elsewhere: no library of these formats is needed here."""
    record = Record("f" * 64, "tiny-llama", {"name": "gptq"}, {"method": "gptq"}, None, {"torch": "2"}, "2026-01-01")

    def make(*_: object) -> Checkpoint:
        print("a library at work")
        return Checkpoint(str(tmp_path / "made"), record)

    monkeypatch.setattr("pytest_quant.quantizing.Quantizing.make", make)
    code, found = asked("quantize", tiny_llama, "--format", "gptq", "--cache-dir", tmp_path)
    assert (code, found["path"], found["format"]) == (0, str(tmp_path / "made"), "gptq")
    assert found["record"]["recipe"] == {"method": "gptq"}
    assert "calibration" not in found["record"]


def test_standard_output_has_the_answer_alone_whatever_libraries_print(tmp_path):
    """Also what is written below Python: by C, and by child processes."""
    code = (
        "import argparse, os, subprocess\n"
        "from pytest_quant import answering\n"
        "with answering.undisturbed(argparse.Namespace(json=JSON)):\n"
        "    print('by python', flush=True)\n"
        "    os.write(1, b'by c\\n')\n"
        "    subprocess.run(['echo', 'by a child'], check=True)\n"
        "answering.answer({'it': 1})\n"
    )
    noise = "by python\nby c\nby a child\n"
    for json_too, printed, told in (("True", "", noise), ("False", noise, "")):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("JSON", json_too)], capture_output=True, text=True, check=True
        )
        assert done.stderr == told
        assert done.stdout.startswith(printed)
        assert strict(done.stdout.removeprefix(printed)) == {"it": 1, "schema": 1, "exit_code": 0}


def test_what_is_unknown_is_absent_and_never_a_nan():
    @dataclass(frozen=True)
    class Thing:
        known: float = 1.5
        unknown: float | None = None
        odd: float = math.nan
        names: frozenset[str] = frozenset({"b", "a"})
        text: str = ""
        place: Path = Path("a")

    assert answering.plain({"it": Thing(), "row": [1.0, math.inf]}) == {
        "it": {"known": 1.5, "names": ["a", "b"], "place": "a"},
        "row": [1.0, None],
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["x", "--json"], True), (["x"], False), (["x", "--", "--json"], False), (["x", "--json", "--", "y"], True)],
)
def test_whether_json_was_asked_for(words, expected):
    assert answering.asked(words) is expected


def test_the_option_is_one_for_all():
    parser = argparse.ArgumentParser()
    answering.add_json(parser)
    assert parser.parse_args([]).json is False
