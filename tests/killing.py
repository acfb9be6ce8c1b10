"""Runs of pytest that are killed: started from a process that has imported the libraries, so that one takes a second.

Every file that a killed run leaves is whole, and a resumed run ends as one that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from small_models import SENTENCE

EPOCH = "1735689600"

TESTS = """
import pytest

pytestmark = pytest.mark.quant(formats=["int8", "bf16"])

@pytest.mark.perplexity_delta(max_ratio=30.0)
@pytest.mark.memory_budget(max_gb=1)
def test_text(quant_model): ...

@pytest.mark.kl_divergence(max=5.0, p99=9.0)
@pytest.mark.token_agreement(min=0.01)
def test_tokens(): ...

@pytest.mark.memory_budget(max_gb=1, of="kv_cache", context=64)
def test_cache(): ...

@pytest.mark.generation_match(min=0.01, prompts=["The quick brown", "The lazy dog"], max_new_tokens=8)
def test_same_text(): ...

@pytest.mark.quant(formats=["bf16"])
@pytest.mark.kl_divergence(max=1e-12)
def test_broken(): ...
"""
SPEED = """
import pytest

@pytest.mark.quant(formats=["bf16"])
@pytest.mark.throughput_ratio(min=0.001, prompt_tokens=8, new_tokens=4)
def test_speed(): ...
"""
INI = """
[pytest]
quant_model = {model}
quant_reference = fp32
quant_corpus = corpus.txt
quant_protocol = gptq-64
quant_speed_budget = 0.3
quant_accept = {accept}
"""
ARGUMENTS = ("-p", "no:cacheprovider", "--quant-baseline", "--quant-json=run.json", "--quant-cache-dir=cache")

_SERVER = """
import json, os, signal, sys

import torch, transformers, bitsandbytes, accelerate, pytest, transformers.models.llama.modeling_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
import importlib, pkgutil
import pytest_quant
for module in pkgutil.walk_packages(pytest_quant.__path__, "pytest_quant."):
    if ".backends." not in module.name:  # each of which imports its library
        importlib.import_module(module.name)

def dies_at(count):
    # as if the power went: when the count-th file is opened for writing, moved or removed
    left = [count]
    def look(event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.rmdir"):
            left[0] -= 1
            if left[0] == 0:
                os.killpg(0, signal.SIGKILL)
    sys.addaudithook(look)

print("ready", flush=True)
for line in sys.stdin:
    told = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # off in what a shell runs in the background
        os.chdir(told["folder"])
        out = os.open(told["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(os.devnull)
        os.environ.update(told["environment"])
        if told["dies_at"]:
            dies_at(told["dies_at"])
        code = 99
        try:
            code = int(pytest.main(told["arguments"]))
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Server:
    """Forks runs of pytest from a process that has imported everything and computed nothing."""

    def __init__(self, root: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        for name in ("CI", "GITHUB_SHA", "CI_COMMIT_SHA", "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS"):
            environment.pop(name, None)
        environment |= {"SOURCE_DATE_EPOCH": EPOCH, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._said() == "ready"

    def run(
        self,
        folder: Path,
        *arguments: str,
        kill_after: float | None = None,
        dies_at: int | None = None,
        sent: signal.Signals = signal.SIGKILL,
        **environment: str,
    ) -> tuple[int, str]:
        """A run's exit status (negative where a signal ended it) and its output. After ``kill_after`` seconds, or when
        it writes for the ``dies_at``-th time, the run is killed with all that it started."""
        output = folder.parent / f"{folder.name}.out"
        told = {
            "folder": str(folder),
            "output": str(output),
            "arguments": [*ARGUMENTS, *arguments],
            "environment": environment,
            "dies_at": dies_at,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        child = int(self._said())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, sent) if sent is signal.SIGKILL else os.kill(child, sent)
        status = int(self._said())
        return status, output.read_text(errors="replace")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def project(folder: Path, model: Path, *, speed: bool = False) -> Path:
    """A user's project with a tiny model."""
    from pytest_quant.hardware.condition import NAMES

    folder.mkdir(parents=True)
    (folder / "corpus.txt").write_text(SENTENCE * 12)
    (folder / "pytest.ini").write_text(INI.format(model=model, accept=",".join(NAMES)))
    (folder / "test_quality.py").write_text(TESTS)
    if speed:
        (folder / "test_speed.py").write_text(SPEED)
    return folder


def baselines(folder: Path) -> dict[str, bytes]:
    """Every file beside the baselines, by its relative name."""
    root = folder / "quant-baselines"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def finished(folder: Path) -> dict[str, float]:
    """The value of each finished measurement that a run left, by its question; not of one that had come to its end and
    was killed while its folder went."""
    from pytest_quant.journal.encoding import decode
    from pytest_quant.journal.folders import HEADER

    files = [path for path in (folder / "cache" / "journal").glob("*/[0-9]*/*.json") if path.name != HEADER]
    return {path.stem: decode(path.read_bytes(), path.stem).measurement.value for path in files}


def check_whole(folder: Path) -> None:
    """Every file that is there is whole; temporary files, which nothing reads, apart."""
    from pytest_quant import baseline
    from pytest_quant.reference import Store

    finished(folder)
    for path in (folder / "quant-baselines").rglob("*.json"):
        assert baseline.read(path) is not None
    for path in [*(folder / "cache").rglob("*.json"), *folder.glob("run.json")]:
        json.loads(path.read_text())
    for runs in (folder / "cache" / "runs").glob("*"):
        assert all(entry.damage is None for entry in Store(runs).verify())


@dataclass(frozen=True)
class Killed:
    """What one killed and resumed run did."""

    how: str
    status: int
    kept: int
    """Finished measurements that the killed run left."""
    reused: int
    """Of them, those that the resumed run did not measure again."""
    same: bool
    """Whether the baseline is that of an undisturbed run, byte for byte."""
    leftovers: int
    """Temporary files beside the baselines, and folders of runs, that are there in the end."""


def kill_anywhere(
    server: Server, folder: Path, model: Path, count: int, seed: int, arguments: Sequence[str] = ()
) -> Iterator[Killed]:
    """Kill ``count`` runs: one half at a random moment, the other when a file is written; then resume each."""
    random_ = random.Random(seed)
    undisturbed = project(folder / "undisturbed", model)
    if not arguments:
        server.run(undisturbed)  # what is read first is slow
        shutil.rmtree(undisturbed)
        project(undisturbed, model)
    start = time.monotonic()
    status, output = server.run(undisturbed, *arguments)
    usual = time.monotonic() - start
    assert status == 1, output
    assert "1 failed" in output, output
    expected = baselines(undisturbed)
    assert len(expected) == 1
    for number in range(count):
        killed = project(folder / f"killed-{number}", model)
        if number % 2 and not arguments:
            event = random_.randrange(1, 70)
            how, when = f"at write {event}", {"dies_at": event}
        else:
            seconds = random_.uniform(0.0, usual)
            how, when = f"after {seconds:.2f} s of {usual:.2f}", {"kill_after": seconds}
        status, output = server.run(killed, *arguments, **when)
        assert status in (1, -signal.SIGKILL), output
        check_whole(killed)
        kept = finished(killed)
        again, output = server.run(killed, "--quant-resume", *arguments)
        assert again == 1, output
        assert "1 failed" in output, output
        check_whole(killed)
        said = re.search(r"^(\d+) finished measurements? of an interrupted run reused$", output, re.MULTILINE)
        runs = list((killed / "cache" / "journal").glob("*/*"))
        beside = [name for name in baselines(killed) if name.endswith(".tmp")]
        yield Killed(
            how=how,
            status=status,
            kept=len(kept),
            reused=int(said[1]) if said else 0,
            same=baselines(killed) == expected,
            leftovers=len(runs) + len(beside),
        )
        shutil.rmtree(killed)
