"""Mistakes in a command line, files that are not what they should be, and bugs: one line each, with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_quant import cli, doctor


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pln"], "no command 'pln'; did you mean plan? (usage: pytest-quant"),
        (["zzzz"], "no command 'zzzz'; there are doctor, matrix, plan, "),
        (["baseline", "shwo"], "no action 'shwo'; did you mean show?"),
        (["plan", "--devise", "H100"], "no option --devise; did you mean --device?"),
        (["plan", "--dev", "H100"], "no option --dev; did you mean --device?"),
        (["plan", "--devise=H100"], "no option --devise; did you mean --device?"),
        (["scan", "m", "--zzzzzzzz"], "no option --zzzzzzzz (usage: pytest-quant scan [OPTIONS] MODEL; more: "),
        (["scan"], "MODEL must be given (usage: pytest-quant scan [OPTIONS] MODEL; more: pytest-quant scan --help)"),
        (
            ["quantize", "m"],
            "--format must be given (usage: pytest-quant quantize [OPTIONS] MODEL --format NAME; more: ",
        ),
        (["scan", "a", "b"], "'b' is more than it takes"),
        (["scan", "m", "--windows", "many"], "--windows: 'many' is not a whole number"),
        (["scan", "m", "--max", "x"], "--max: 'x' is not a number"),
        (["scan", "m", "--max", "1", "--max-ratio", "2"], "--max-ratio: not allowed with argument --max"),
        (["plan", "--goal", "speed"], "--goal: no 'speed'; there are quality, latency, throughput, memory"),
        (["completion", "bsh"], "no 'bsh'; did you mean bash? There are bash, zsh, fish, tcsh (usage"),
        (["ceiling"], "no command 'ceiling'; there are doctor, matrix, "),
        (["doctor", ""], "'' is more than it takes (usage"),
        (["plan", "--count"], "--count: expected one argument"),
        (["scan", "m", "--format", "nf5"], "unknown format 'nf5'; did you mean nf4? The formats are "),
        (
            ["doctor", "--device", "RTX 4091"],
            "no specification of the device 'RTX 4091'; did you mean RTX 4090? Known are 'here', ",
        ),
        (["doctor", "--matrix", "nowhere.toml"], "nowhere.toml: cannot be read (No such file or directory)"),
        (["plan", "--parameters", "many"], "--parameters=many: not a number of parameters; write 70e9"),
        (["compare", "nowhere.json", "nowhere.json"], "nowhere.json: there is no such file or folder"),
        (["baseline", "show", "nowhere"], "nowhere: there is no such folder or file"),
        (["baseline", "merge", "nowhere", "--into", "there"], "nowhere: there is no such folder or file"),
        (["reference", "export", "--cache-dir", "nowhere"], "Build one: pytest-quant reference build MODEL."),
        (["reference", "import", "nowhere"], "nowhere: there is no such file"),
    ],
    ids=lambda told: " ".join(told) if isinstance(told, list) else "",
)
@pytest.mark.parametrize("json_too", [False, True])
def test_a_mistake_is_one_line_and_exit_code_2(words, said, json_too, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = cli.main([*words, *(["--json"] if json_too else [])])
    out, err = capsys.readouterr()
    assert code == 2
    lines = err.splitlines()
    assert all(line.startswith("pytest-quant: ") for line in lines)
    assert said in lines[0]
    assert "Traceback" not in err
    if json_too:
        found = json.loads(out)
        assert (found["schema"], found["exit_code"]) == (1, 2)
        assert said in json.dumps(found, ensure_ascii=False)
    else:
        assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\x80\xff", b'{"schema": 99}', b"[" * 100_000])
@pytest.mark.parametrize(
    "command", [["compare", "FILE", "FILE"], ["baseline", "show", "FILE"], ["doctor", "--matrix", "FILE"]]
)
def test_a_damaged_file_is_named(command, content, capsys, tmp_path):
    place = tmp_path / "damaged.json"
    place.write_bytes(content)
    assert cli.main([str(place) if word == "FILE" else word for word in command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert str(place) in err


@pytest.mark.parametrize("said", ["a test's own", ""])
def test_a_bug_is_one_line_with_its_traceback_in_a_file(said, capsys, tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(doctor, "diagnose", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("PYTEST_QUANT_DEBUG", raising=False)
    assert cli.main(["doctor", "--device", "L4", "--json"]) == 2
    out, err = capsys.readouterr()
    (kept,) = tmp_path.iterdir()
    assert err.count("\n") == 1
    assert err.startswith("pytest-quant: unexpected RuntimeError")
    assert "please report it" in err
    assert str(kept) in err
    assert "in broken" in kept.read_text()
    assert json.loads(out) == {"schema": 1, "exit_code": 2, "error": err.removeprefix("pytest-quant: ").rstrip("\n")}
    monkeypatch.setenv("PYTEST_QUANT_DEBUG", "1")
    assert cli.main(["doctor", "--device", "L4"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.splitlines()[-1].endswith("the traceback is above")
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/a/place"), "/a/place: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "out of memory: free some"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "the library torch is missing: pytest-quant doctor",
        ),
    ],
    ids=lambda told: type(told).__name__ if isinstance(told, Exception) else "",
)
def test_what_the_system_refuses_is_no_bug(error, said, capsys, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(doctor, "diagnose", refused)
    assert cli.main(["doctor", "--device", "L4"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"pytest-quant: {said}")
    assert err.count("\n") == 1


def test_an_interrupt_is_told_to_programs_too(capsys, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "diagnose", stop)
    assert cli.main(["doctor", "--device", "L4", "--json"]) == 130
    out, err = capsys.readouterr()
    assert err == "pytest-quant: interrupted\n"
    assert json.loads(out) == {"schema": 1, "error": "interrupted", "exit_code": 130}


@pytest.mark.skipif(os.name == "nt", reason="SIGPIPE is of POSIX")
@pytest.mark.parametrize("words", [["matrix"], ["pln", "--json"], []], ids=" ".join)
def test_nobody_reads_on(words):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pytest_quant", *words]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=Path.cwd())
    finally:
        os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["baseline", "--json"], "give an action; there are show, merge, check, prune (usage"),
        (["--json"], "give a command; there are doctor, "),
        (["doctor", "--json=x"], "--json: takes no value (usage"),
    ],
)
def test_json_of_nothing_that_could_be_answered(words, said, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert json.loads(out)["error"] in err


def command(*words: str, **told: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pytest_quant", *words], text=True, check=False, **told)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="asked: a full device; found: none; needed: /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["matrix"], ["matrix", "--json"], ["--help"], ["--version"], ["pln", "--json"]])
def test_a_full_disk_is_one_line(words, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w") as full:
        done = command(*words, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    *before, last = done.stderr.splitlines()
    assert last.startswith("pytest-quant: ")
    assert "No space left on device" in last or "no command 'pln'" in last
    assert all("no command 'pln'" in line for line in before)


@pytest.mark.skipif(os.name == "nt", reason="asked: a shell that closes streams; found: Windows; needed: POSIX")
def test_a_closed_stream_is_no_bug():
    closed = f"'{sys.executable}' -m pytest_quant matrix --json >&-"
    done = subprocess.run(closed, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("pytest-quant: standard output is closed")
    closed = f"'{sys.executable}' -m pytest_quant pln --json 2>&-"
    done = subprocess.run(closed, shell=True, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "no command 'pln'" in json.loads(done.stdout)["error"]


def test_what_a_stream_cannot_encode_is_escaped(tmp_path):
    done = command(
        "baseline",
        "show",
        "caf\u00e9",
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("pytest-quant: caf\\xe9: there is no such folder")
