"""What a run was asked to do, by the command line and the files of the project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_quant.cache import user_cache
from pytest_quant.configuration import sources, values
from pytest_quant.configuration.sources import Sources
from pytest_quant.declarations import OPTIONS
from pytest_quant.errors import UsageError
from pytest_quant.settings import Calibration

_OUTPUTS = ("quant-json", "quant-report", "quant-markdown", "quant-history")


@dataclass(frozen=True)
class Options:
    """Everything a run was told, checked."""

    rootpath: Path
    model: str | None
    formats: tuple[str, ...] | None
    """From a file or the command line; None where neither says."""
    selected: tuple[str, ...] | None
    """From the command line: marked formats that it does not name are deselected."""
    reference: str
    engine: str
    engine_args: tuple[tuple[str, str], ...]
    reference_engine: str | None
    device_map: str | None
    revision: str | None
    trust_remote_code: bool
    corpus: str
    protocol: str
    chat_template: bool
    max_windows: int | None
    checkpoints: tuple[tuple[str, str], ...]
    quantize: bool
    calibration: Calibration | None
    confidence: float
    full: bool
    matrix: str
    baseline: bool
    baseline_path: Path
    update: str | None
    missing: str
    inconclusive: str
    require: tuple[str, ...]
    cache_dir: Path
    speed_budget: float
    price: float | None
    accept: tuple[str, ...]
    tasks: Path | None
    json: Path | None
    report: Path | None
    markdown: Path | None
    history: Path | None
    resume: bool
    plan: bool
    plan_device: str | None


@dataclass(frozen=True)
class Settled:
    """What each option is set to."""

    values: dict[str, Any]
    """By the name of the option; None where there is nothing, and where it could not be understood."""
    sources: Sources
    wrong: dict[str, str]
    """What is wrong with single options, by name."""
    problems: tuple[str, ...]
    """All that is wrong, a line each."""


def read(config: pytest.Config) -> Options:
    """The options of a run; :class:`pytest.UsageError` has a message for each that is wrong: where it stands and
    what it may be. pytest prints each as an error of its own."""
    settled = settle(config)
    if settled.problems:
        raise pytest.UsageError(*settled.problems)
    told = settled.values
    from_command_line = settled.sources.said["quant-formats"].origin.kind == "command line"
    return Options(
        rootpath=config.rootpath,
        model=told["quant-model"],
        formats=told["quant-formats"],
        selected=told["quant-formats"] if from_command_line else None,
        reference=told["quant-reference"],
        engine=told["quant-engine"],
        engine_args=told["quant-engine-args"] or (),
        reference_engine=told["quant-reference-engine"],
        device_map=told["quant-device-map"],
        revision=told["quant-revision"],
        trust_remote_code=told["quant-trust-remote-code"],
        corpus=told["quant-corpus"],
        protocol=told["quant-protocol"],
        chat_template=told["quant-chat-template"],
        max_windows=told["quant-max-windows"],
        checkpoints=told["quant-checkpoints"] or (),
        quantize=told["quant-quantize"],
        calibration=_calibration(told),
        confidence=told["quant-confidence"],
        full=told["quant-full"],
        matrix=told["quant-matrix"],
        baseline=told["quant-baseline"] or told["quant-baseline-update"] is not None,
        baseline_path=told["quant-baseline-path"],
        update=told["quant-baseline-update"],
        missing=told["quant-missing"],
        inconclusive=told["quant-inconclusive"],
        require=told["quant-require"] or (),
        cache_dir=told["quant-cache-dir"],
        speed_budget=told["quant-speed-budget"],
        price=told["quant-price"],
        accept=told["quant-accept"] or (),
        tasks=told["quant-tasks"],
        json=told["quant-json"],
        report=told["quant-report"],
        markdown=told["quant-markdown"],
        history=told["quant-history"],
        resume=told["quant-resume"],
        plan=told["quant-plan"],
        plan_device=told["quant-device"],
    )


def settle(config: pytest.Config) -> Settled:
    """What each option is set to, and all that is wrong, each option judged by itself."""
    found = sources.gather(config)
    told: dict[str, Any] = {}
    wrong = dict(found.wrong)
    for option in OPTIONS:
        said = found.said[option.name]
        try:
            told[option.name] = values.read(option, said)
        except UsageError as error:
            told[option.name] = None
            wrong[option.name] = str(error)
    if told["quant-cache-dir"] is None:
        told["quant-cache-dir"] = user_cache()
    if told["quant-device"] is not None and not told["quant-plan"]:
        wrong["quant-device"] = "--quant-device goes with --quant-plan: nothing is measured under a pretended device"
    if told["quant-baseline"] or told["quant-baseline-update"] is not None:
        _check_default(found, told, wrong)
    wrong |= _of_one_place(found, told)
    problems = [*found.table.problems, *wrong.values()]
    try:
        _check_clock()
    except UsageError as error:
        problems.append(str(error))
    return Settled(told, found, wrong, tuple(problems))


def _check_default(found: Sources, told: dict[str, Any], wrong: dict[str, str]) -> None:
    """Whether baselines can lie where nobody said that they should; others are checked with their option."""
    if told["quant-baseline-path"] is not None:
        try:
            values.check_store(found.said["quant-baseline-path"], told["quant-baseline-path"])
        except UsageError as error:
            wrong["quant-baseline-path"] = str(error)


def _of_one_place(found: Sources, told: dict[str, Any]) -> dict[str, str]:
    """What is wrong with outputs that would overwrite each other."""
    first: dict[Path, str] = {}
    wrong = {}
    for name in _OUTPUTS:
        if told[name] is not None:
            other = first.setdefault(told[name].resolve(), name)
            if other != name:
                wrong[name] = str(found.said[name].wrong(f"--{other} writes there too; give each a place of its own"))
    return wrong


def _calibration(told: dict[str, Any]) -> Calibration | None:
    from pytest_quant.quantizing import settings_of

    return settings_of(told["quant-calibration"], told["quant-calibration-samples"], told["quant-calibration-tokens"])


def _check_clock() -> None:
    from pytest_quant import environment

    environment.clock()
