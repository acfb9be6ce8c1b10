"""Completion scripts, driven in the shells themselves where these are installed."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from command_lines import subcommands

from pytest_quant import cli, completion
from pytest_quant.errors import UsageError

BASH = """
source ./script
COMP_WORDS=(TYPED)
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_shtab_pytest_quant pytest-quant "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
EXPECTED = [
    ("base", {"baseline"}),
    ("baseline m", {"merge"}),
    ("reference e", {"export"}),
    ("scan --format nf", {"nf4"}),
    ("plan --device L", {"L4", "L40S"}),
    ("plan --device h", {"here"}),
    ("scan --protocol gptq", {"gptq-2048", "gptq-512"}),
    ("scan --pro", {"--protocol"}),
    ("plan --goal q", {"quality"}),
    ("quantize --format gp", {"gptq"}),
    ("completion b", {"bash"}),
    ("help pl", {"plan"}),
    ("compare it", {"it.json"}),
    ("compare it.json th", {"there"}),
    ("scan th", {"there"}),
    ("scan it", set()),
]
"""What is typed before the tab key, and all that is offered, in a folder with ``it.json`` and the folder ``there``."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "it.json").touch()
    (tmp_path / "there").mkdir()
    return tmp_path


def offered(folder, shell, *command):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (folder / "script").write_text(completion.script(shell))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return {line.rstrip("/") for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize(("typed", "expected"), EXPECTED)
def test_bash_offers(folder, typed, expected):
    assert offered(folder, "bash", "bash", "--norc", "-c", BASH.replace("TYPED", f"pytest-quant {typed}")) == expected


@pytest.mark.parametrize(("typed", "expected"), EXPECTED)
def test_fish_offers(folder, typed, expected):
    ask = f'source ./script; complete -C "pytest-quant {typed}" | string split -f1 \\t'
    found = offered(folder, "fish", "fish", "--no-config", "-c", ask)
    assert expected <= found
    if typed != "scan it":  # fish matches within names too
        assert {word for word in found if word.startswith(typed.split()[-1])} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_each_shell_reads_its_script(folder, shell):
    assert offered(folder, shell, shell, *([] if shell == "tcsh" else ["-n"]), "script") == set()


def test_zsh_completes_a_command(folder):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (folder / "_pytest-quant").write_text(completion.script("zsh"))
    drive = """
    zmodload zsh/zpty
    zpty z zsh -f -i
    zpty -w z 'PS1=; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; echo READ"Y"'
    zpty -r -m z line '*READY*'
    zpty -w -n z $'pytest-quant baseline mer\\t'
    zpty -r -m z line '*merge*' && echo found
    """
    done = subprocess.run(
        ["zsh", "-f", "-c", drive], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip().endswith("found")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_command_is_in_every_script(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for name, parser in subcommands(cli.parser()).items():
        assert name in out
        assert all(action in out for action in subcommands(parser))
    assert cli.main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "exit_code": 0,
        "shell": shell,
        "script": out.removesuffix("\n"),
    }


def test_what_is_offered_is_no_limit_of_what_is_parsed():
    completion.script("bash")
    told = cli.parser().parse_args(["plan", "--device", "RTX 4090", "--formats", "a,b", "m"])
    assert (told.device, told.formats) == ("RTX 4090", "a,b")


def test_a_shtab_that_does_not_know_the_shell_is_said(monkeypatch):
    monkeypatch.setattr("shtab.SUPPORTED_SHELLS", ["bash"])
    with pytest.raises(UsageError, match=r"knows no fish: pip install --upgrade shtab"):
        completion.script("fish")
