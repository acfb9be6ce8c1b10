"""The environment variables that an engine's process is started with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest_quant

_ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that the steps of a decode can be taken one by one
    "PYTHONUNBUFFERED": "1",
    "PYTHONSAFEPATH": "1",  # from Python 3.11 on: no modules from the folder that a run is in
}
_UNLESS_SET = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}
_ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # 4-bit weights would be multiplied by 8-bit activations on machines with AMX, and by wider ones on others
    "VLLM_CPU_INT4_W4A8": "0",
}
NUMBERS = ("VLLM_CPU_INT4_W4A8", "VLLM_ATTENTION_BACKEND", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_BATCH_INVARIANT")
"""Variables that change what a model answers: those that are set belong to a measurement's identity."""


def environment(given: Mapping[str, str], kind: str, threads: int | None = None) -> dict[str, str]:
    """The variables for an engine on a device of a kind, from those of this process. On a CPU it computes with
    ``threads`` threads. What somebody has set stays, except for what the engine could not be driven with."""
    found = {**_UNLESS_SET, **(_ON_CPU if kind == "cpu" else {}), **given, **_ALWAYS}
    if kind == "cpu" and threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    package = str(Path(pytest_quant.__file__).parent.parent)
    path = given.get("PYTHONPATH", "")
    if package not in path.split(":"):
        found["PYTHONPATH"] = f"{package}:{path}" if path else package
    return found


def numbers(environment: Mapping[str, str]) -> dict[str, str]:
    """Of the variables, those that change what a model answers."""
    return {name: environment[name] for name in NUMBERS if name in environment}
