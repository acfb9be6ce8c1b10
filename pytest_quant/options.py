"""The command line and the ini file: what a run was asked to do."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_quant.declarations import CHOICES


@dataclass(frozen=True)
class Options:
    """Everything a run was told, checked."""

    rootpath: Path
    model: str | None
    formats: tuple[str, ...] | None
    """From the ini file or the command line; None where neither says."""
    selected: tuple[str, ...] | None
    """From the command line: marked formats that it does not name are deselected."""
    reference: str
    engine: str
    revision: str | None
    trust_remote_code: bool
    corpus: str
    protocol: str
    max_windows: int | None
    confidence: float
    matrix: str
    baseline: bool
    baseline_path: Path
    update: str | None
    missing: str
    inconclusive: str
    require: tuple[str, ...]
    cache_dir: Path
    json: Path | None
    plan: bool
    plan_device: str | None


def read(config: pytest.Config) -> Options:
    """The options of a run; :class:`pytest.UsageError` says which is wrong and what it may be."""

    def either(name: str, default: str | None = None) -> Any:
        value = config.getoption(f"--{name}")
        if value is None:
            value = config.getini(name.replace("-", "_")) or default
        allowed = CHOICES.get(name)
        if allowed and value not in allowed:
            raise pytest.UsageError(f"--{name}={value}: may be {' or '.join(allowed)}")
        return value

    in_ci = bool(os.environ.get("CI"))
    selected = _names(config.getoption("--quant-formats"), "--quant-formats")
    device = config.getoption("--quant-device")
    if device is not None and not config.getoption("--quant-plan"):
        raise pytest.UsageError("--quant-device goes with --quant-plan: nothing is measured under a pretended device")
    return Options(
        rootpath=config.rootpath,
        model=local_folder(config.rootpath, either("quant-model")),
        formats=selected or _names(config.getini("quant_formats"), "quant_formats"),
        selected=selected,
        reference=_format(either("quant-reference", "fp16"), "--quant-reference"),
        engine=either("quant-engine", "transformers"),
        revision=config.getini("quant_revision") or None,
        trust_remote_code=bool(config.getini("quant_trust_remote_code")),
        corpus=_corpus(config, either("quant-corpus", "python-docs")),
        protocol=_protocol(either("quant-protocol", "gptq-2048")),
        max_windows=_count(either("quant-max-windows")),
        confidence=_confidence(either("quant-confidence", "0.99")),
        matrix=either("quant-matrix", "corrected"),
        baseline=config.getoption("--quant-baseline") or config.getoption("--quant-baseline-update") is not None,
        baseline_path=config.rootpath / either("quant-baseline-path", "quant-baselines"),
        update=config.getoption("--quant-baseline-update"),
        missing=either("quant-missing", "fail" if in_ci else "record"),
        inconclusive=either("quant-inconclusive", "fail" if in_ci else "pass"),
        require=_names(config.getoption("--quant-require"), "--quant-require") or (),
        cache_dir=Path(either("quant-cache-dir") or _user_cache()).expanduser(),
        json=_path(config, config.getoption("--quant-json")),
        plan=config.getoption("--quant-plan"),
        plan_device=device,
    )


def _names(text: str | None, option: str) -> tuple[str, ...] | None:
    names = tuple(part for part in (text or "").replace(",", " ").split() if part)
    for name in names:
        _format(name, option)
    return names or None


def _format(name: str, option: str) -> str:
    from pytest_quant.errors import UsageError
    from pytest_quant.formats import registry

    try:
        return registry.get(name).name
    except UsageError as error:
        raise pytest.UsageError(f"{option}: {error}") from None


def _protocol(name: str) -> str:
    from pytest_quant.corpora.protocols import parse
    from pytest_quant.errors import UsageError

    try:
        return parse(name).name
    except UsageError as error:
        raise pytest.UsageError(f"--quant-protocol: {error}") from None


def local_folder(rootpath: Path, name: str | None) -> str | None:
    """A relative folder is meant from the rootdir, wherever pytest was started; other names are hub ids."""
    if name is None:
        return None
    below = rootpath / Path(name).expanduser()
    return str(below) if below.is_dir() else name


def _corpus(config: pytest.Config, name: str) -> str:
    below = config.rootpath / Path(name).expanduser()
    return str(below) if below.is_file() else name


def _path(config: pytest.Config, name: str | None) -> Path | None:
    return None if name is None else config.invocation_params.dir / Path(name).expanduser()


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.strip().isdigit() or int(text) < 2:
        raise pytest.UsageError(f"--quant-max-windows={text}: must be a whole number of 2 or more")
    return int(text)


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.5 <= value < 1.0:
        raise pytest.UsageError(f"--quant-confidence={text}: must be a number from 0.5 to below 1, such as 0.99")
    return value


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pytest-quant"
