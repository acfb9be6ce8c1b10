"""The tutorial, literally: every file written and every command run, in order, in a fresh folder with the real model.

There is no hub where tests run, so the model lies in a cache as the hub's own client leaves it behind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import blocks, commands, not_printed

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
SNAPSHOT = "0" * 40


@pytest.fixture
def reader(tmp_path, smollm2):
    """What a reader's shell has: the commands, a name for git, and the model that was downloaded."""
    hub = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(SNAPSHOT)
    (hub / "snapshots" / SNAPSHOT).mkdir(parents=True)
    for file in smollm2.iterdir():
        (hub / "snapshots" / SNAPSHOT / file.name).symlink_to(file.resolve())
    (tmp_path / "home").mkdir()
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "QUANT", "COV_"))},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "reader@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }


@pytest.mark.real
def test_the_tutorial_from_its_first_command_to_its_last(reader, tmp_path):
    folder, red = tmp_path, 0
    for block in blocks(TUTORIAL):
        if named := re.match(r"# ([\w.]+)\n", block.text):
            (folder / named[1]).write_text(block.text)
            continue
        for command, shown in commands(block.text) if block.kind == "console" else ():
            ran = _shell(f"{command}\nstatus=$?; pwd > {tmp_path}/folder; exit $status", folder, reader)
            folder = Path((tmp_path / "folder").read_text().strip())
            fails = any(line.startswith("FAILED") for line in shown)
            assert ran.returncode == fails, f"{command}\n{ran.stdout}\n{ran.stderr}"
            assert not_printed(shown, ran.stdout.splitlines(), tolerance=0.4) == [], f"{command}\n{ran.stdout}"
            red += fails
    assert red == 1
    assert not _shell("git status --porcelain quant-baselines", folder, reader).stdout, "the run changed no baseline"


def _shell(script: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, text=True, capture_output=True)
