"""How often a speed gate says what is not true, and how often it sees a slowdown: real runs of a real model.

``same``    the model against itself: a limit of 0.9 or 0.95 holds, so that ``failed`` is a false alarm
``slower``  the model against itself with every run of one side 1 / 0.85 times as long (what is missing is spent
            spinning): ``passed`` is a miss

Each run is a gate's own: rounds until its interval excludes the limit, at the default confidence, or until the default
budget is spent. Both limits are judged on the rounds of one run, each at the moment at which it is decided. ``--load``
starts a process that keeps a core busy for random stretches of time::

    python benchmarks/speed_verdicts.py .models/SmolLM2-135M-Instruct same --runs 100 --load
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from pytest_quant.engines.source import ModelSource
from pytest_quant.gates.gate import Gate, judge
from pytest_quant.gates.measurement import Measurement
from pytest_quant.metrics.throughput import Player
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec
from pytest_quant.speed import Found, Speed

LIMITS = (0.90, 0.95)
SPEED = 0.85
BUSY = """
import random, time
while True:
    end = time.monotonic() + random.uniform(0.2, 3.0)
    while time.monotonic() < end: pass
    time.sleep(random.uniform(0.2, 3.0))
"""


class Slow:
    """A runner whose steps take longer: what is missing is spent spinning."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.start = runner.start

    def steps(self, count: int) -> list[float]:
        start = time.perf_counter()
        steps = self._runner.steps(count)
        ready = start + (time.perf_counter() - start) / SPEED
        while time.perf_counter() < ready:
            pass
        return [step / SPEED for step in steps]


class Slowed(Speed):
    """The format's side is slow."""

    def _warm(self, *arguments: Any) -> Player:
        player = super()._warm(*arguments)
        if arguments[-1] == "format":
            player._runner = Slow(player._runner)
        return player


def one(speed: Speed, spec: ModelSpec, tokens: int, alpha: float) -> tuple[dict[float, str], Found, dict[float, int]]:
    """The verdict for each limit, what was found in the end, and after how many rounds each was decided."""
    parameters = {"phase": "decode", "batch_size": 1, "prompt_tokens": 16, "new_tokens": tokens, "cache": "dynamic"}
    gate = Gate("throughput_ratio", (), tuple(sorted(parameters.items())))
    verdicts: dict[float, str] = {}
    rounds: dict[float, int] = {}

    def enough(found: Found) -> bool:
        measured = Measurement("throughput_ratio", "m", "f", "e", "ratio", found.quantities, {})
        for limit in LIMITS:
            said = str(judge(measured, (("min", limit),)).verdict)
            if verdicts.get(limit, "inconclusive") == "inconclusive":
                verdicts[limit], rounds[limit] = said, found.rounds
        return "inconclusive" not in verdicts.values()

    speed.forget(spec)
    found = speed.measure(spec, spec.reference, gate, alpha, enough)
    enough(found)  # which is not asked any more when the budget is spent
    return verdicts, found, rounds


@contextmanager
def load(wanted: bool) -> Any:
    """A competing process, where one is wanted."""
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if wanted else None
    try:
        yield
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms and misses of the speed gate.")
    parser.add_argument("model")
    parser.add_argument("kind", choices=("same", "slower"))
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=8, help="new tokens of a timed run (%(default)s)")
    parser.add_argument("--load", action="store_true", help="beside a process that is busy now and then")
    told = parser.parse_args()
    settings = Settings(cache_dir=Path(tempfile.mkdtemp()))
    session = Session(settings, Quiet())
    spec = ModelSpec(ModelSource(told.model), reference="fp32")
    kind = Slowed if told.kind == "slower" else Speed
    speed = kind(settings, session.device, session.matrix, session.models, session._stream, Quiet())
    counts: dict[float, Counter[str]] = {limit: Counter() for limit in LIMITS}
    took: dict[float, list[int]] = {limit: [] for limit in LIMITS}
    ratios, marked = [], 0
    random.seed()
    started = time.monotonic()
    with load(told.load):
        for done in range(1, told.runs + 1):
            verdicts, found, rounds = one(speed, spec, told.tokens, 1.0 - settings.confidence)
            ratios.append(found.quantities["ratio"].value)
            marked += bool(found.conditions)
            for limit in LIMITS:
                counts[limit][verdicts[limit]] += 1
                took[limit].append(rounds[limit])
            if done % 10 == 0 or done == told.runs:
                told_now = "; ".join(f"min {limit}: {dict(counts[limit])}" for limit in LIMITS)
                print(f"{done} runs, {time.monotonic() - started:.0f} s: {told_now}", flush=True)
    print(f"\n{told.kind}, {told.tokens} new tokens, {'with' if told.load else 'without'} a competing load:")
    print(f"ratio: median {median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}; {marked} runs were marked")
    for limit in LIMITS:
        counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts[limit].items()))
        print(f"limit {limit}: {counted}; rounds: median {median(took[limit]):.0f}, at most {max(took[limit])}")


if __name__ == "__main__":
    main()
