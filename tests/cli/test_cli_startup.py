"""What ``pytest-quant`` loads before it knows what it is asked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
