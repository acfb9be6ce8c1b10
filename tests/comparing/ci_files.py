"""The commands of the CI examples, as a shell would run them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "examples" / "ci"
JOBS = ("reference", "shard", "merge", "compare", "accept")


def parsed(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def lines(name: str, job: str) -> list[str]:
    """Every line that a job gives to the shell."""
    data = parsed(name)
    if "jobs" in data:
        scripts = [step["run"] for step in data["jobs"][job]["steps"] if "run" in step]
    else:
        scripts = data[job]["script"]
    return [line.strip() for script in scripts for line in script.splitlines()]


def commands(name: str, job: str) -> list[str]:
    """Those that are ours, in their order."""
    return [line for line in lines(name, job) if line.split()[0] in ("pytest", "pytest-quant")]


def words(line: str, values: dict[str, str], root: Path) -> list[str]:
    """The words of a command with its variables and patterns expanded, as in ``root``. A variable that has no value is
    an error."""
    text = re.sub(r"\$(\w+)", lambda found: values[found[1]], line)
    found = []
    for word in shlex.split(text):
        matches = sorted(path.name for path in root.glob(word)) if "*" in word else []
        found += matches or [word]
    return found
