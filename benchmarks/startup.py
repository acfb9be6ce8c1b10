"""What the plugin costs a run that uses none of it: one trivial test with the plugin, and with ``-p no:quant``.

Runs alternate, so that both see the same moments of the machine. Other plugins are turned off::

    python benchmarks/startup.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(folder: Path, *arguments: str) -> float:
    """Wall time of one pytest run in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_plain.py").write_text("def test_plain(): ...\n")
        variants = {"with": ("-p", "pytest_quant.plugin"), "without": ()}
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(rounds + 1):
            for variant, arguments in variants.items():
                times[variant].append(seconds(folder, *arguments))
    with_it, without = (statistics.median(times[variant][1:]) for variant in ("with", "without"))
    print(f"{rounds} rounds, medians: {1e3 * with_it:.0f} ms with the plugin, {1e3 * without:.0f} ms without")
    print(f"the plugin costs {1e3 * (with_it - without):.1f} ms, {with_it / without - 1:+.1%}")


if __name__ == "__main__":
    main()
