"""The command ``pytest-quant scan`` on a tiny model."""

from __future__ import annotations

import json

import pytest

from pytest_quant.cli import main

SENTENCE = "The quick brown fox jumps over the lazy dog. "

pytestmark = pytest.mark.usefixtures("libraries")


@pytest.fixture
def scan(tiny_llama, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text(SENTENCE * 12)

    def run(*words: str) -> tuple[int, str, str]:
        usual = ["--reference", "fp32", "--corpus", str(tmp_path / "corpus.txt"), "--protocol", "gptq-32"]
        code = main(["scan", str(tiny_llama), *usual, "--windows", "3", "--cache-dir", str(tmp_path), *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_table_and_its_record(scan, tmp_path):
    code, out, _ = scan("--top", "3", "--output", str(tmp_path / "scan.json"))
    record = json.loads((tmp_path / "scan.json").read_text())
    assert code == 0
    assert out.startswith("tiny-llama, one layer at a time in nf4, against fp32; 3 windows\n")
    worst = [layer["name"] for layer in record["layers"]]
    lines = out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("LAYER"))
    assert [line.split()[0] for line in lines[place + 1 : place + 4]] == worst[:3]
    assert lines[place + 4].startswith("11 more, KL ")
    assert len(worst) == 14
    assert record["reused"] is True
    assert record["format"] == "nf4"
    assert "corpus" in record["identity"]
    assert "keep" not in record


def test_a_rounding_by_block(scan):
    code, out, _ = scan("--numeric", "int4", "--group-size", "32", "--blocks")
    assert code == 0
    assert "one block at a time in int4-group-32" in out
    assert "model.layers.1 " in out
    assert "BY KIND" not in out


def test_a_budget(scan, tmp_path):
    code, out, _ = scan("--numeric", "int2", "--max-nats", "1e9", "--output", str(tmp_path / "scan.json"))
    assert code == 0
    assert "int2-tensor keeps the budget of 1e+09 nats as it is" in out
    code, out, _ = scan("--max-nats=-50", "--output", str(tmp_path / "scan.json"))
    assert code == 1
    assert "is not kept even with all 14 kept wide" in out
    kept = json.loads((tmp_path / "scan.json").read_text())["keep"]
    assert kept["holds"] is False
    assert kept["nats"]["value"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    "words, said",
    [
        (("--format", "nf5"), "unknown format"),
        (("--strategy", "channel"), "are of --numeric"),
        (("--format", "nf4", "--numeric", "int8"), "not both"),
        (("--numeric", "int8", "--strategy", "group"), "group_size"),
        (("--only", "nothing"), "matches nothing"),
        (("--top", "0"), "--top"),
        (("--windows", "0"), "one window"),
        (("--reference", "nf4"), "quantized format"),
        (("--checkpoint", "somewhere"), "of a --format"),
        (("--format", "gptq"), "no checkpoint"),
        (("--max-nats", "nan"), "finite"),
        (
            ("--output", "no/such/folder/scan.json"),
            "--output=no/such/folder/scan.json: there is no folder no/such/folder",
        ),
        (("--output", "."), "--output=.: that is a folder"),
    ],
)
def test_what_cannot_be_measured_is_exit_code_2(scan, words, said):
    code, out, err = scan(*words)
    assert code == 2
    assert said in err
    assert out == ""


@pytest.mark.parametrize("place", ["no/such/folder/scan.json", "."])
def test_a_place_that_cannot_be_is_known_before_a_model_is_opened(capsys, place):
    """There is no such model, which is not what is said."""
    assert main(["scan", "no/such-model", "--output", place]) == 2
    assert capsys.readouterr().err.startswith(f"pytest-quant: --output={place}: ")


def test_a_record_that_cannot_be_written_is_one_line(scan, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    code, out, err = scan("--windows", "1", "--only", "q_proj", "--output", str(tmp_path / "scan.json"))
    assert code == 2
    assert out.startswith("tiny-llama, one layer at a time")
    (line,) = [line for line in err.splitlines() if line.startswith("pytest-quant:")]
    assert line == f"pytest-quant: {tmp_path / 'scan.json'} cannot be written: No space left on device"


def test_an_interrupt_is_one_line(scan, monkeypatch):
    from pytest_quant.sensitivity import Sensitivity

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sensitivity, "_window", stop)
    code, out, err = scan()
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "pytest-quant: interrupted"
