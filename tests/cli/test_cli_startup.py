"""What ``pytest-quant`` loads before it knows what it is asked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from command_lines import subcommands

from pytest_quant import cli

HEAVY = ("torch", "transformers", "numpy", "pytest", "_pytest", "vllm", "pynvml", "altair", "jinja2", "shtab", "xdist")


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["plan", "--help"], ["pln"], ["baseline", "show", "nowhere"], []], ids=" ".join
)
def test_no_heavy_library_is_loaded(words):
    code = (
        "import json, sys\n"
        "from pytest_quant.cli import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize("command", [name for _, commands in cli.GROUPS for name in commands])
def test_a_module_adds_the_command_that_it_is_listed_for(command):
    assert list(subcommands(cli.parser(command))) == [command]


def test_a_command_that_is_not_asked_for_is_not_loaded():
    code = (
        "import sys\n"
        "from pytest_quant.cli import main\n"
        "main(['baseline', 'show', 'nowhere'])\n"
        "print([name for name in sys.modules if name.startswith(('pytest_quant.planning', 'pytest_quant.scan'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_module_is_the_same_command():
    words = ["plan", "--parameters", "x"]
    told = [
        subprocess.run(command, capture_output=True, text=True, check=False)
        for command in (
            [sys.executable, "-m", "pytest_quant", *words],
            [sys.executable, "-c", "import sys; from pytest_quant.cli import main; sys.exit(main())", *words],
        )
    ]
    assert told[0].returncode == told[1].returncode == 2
    assert told[0].stderr == told[1].stderr != ""
