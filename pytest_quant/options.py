"""The command line and the ini file: what a run was asked to do."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_quant.cache import expanded, user_cache
from pytest_quant.declarations import CHOICES, ONLY_ON_THE_COMMAND_LINE
from pytest_quant.errors import UsageError
from pytest_quant.settings import Calibration
from pytest_quant.spec import packed


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


def read(config: pytest.Config) -> Options:
    """The options of a run; :class:`pytest.UsageError` says which is wrong, where it stands, and what it may be."""
    told = _Told(config)
    in_ci = bool(os.environ.get("CI"))
    if told.flag("quant-device") is not None and not told.flag("quant-plan"):
        raise pytest.UsageError("--quant-device goes with --quant-plan: nothing is measured under a pretended device")
    _check_clock()
    selected = told.names(told.only_command_line("quant-formats"))
    update = told.flag("quant-baseline-update")
    return Options(
        rootpath=config.rootpath,
        model=local_folder(config.rootpath, told.either("quant-model").text),
        formats=selected or told.names(told.either("quant-formats")),
        selected=selected,
        reference=told.checked("quant-reference", "fp16", _format),
        engine=told.either("quant-engine", "transformers").text or "",
        engine_args=told.arguments("quant-engine-args"),
        reference_engine=told.either("quant-reference-engine").text or None,
        device_map=told.device_map("quant-device-map"),
        revision=config.getini("quant_revision") or None,
        trust_remote_code=bool(config.getini("quant_trust_remote_code")),
        corpus=told.corpus("quant-corpus", "python-docs"),
        protocol=told.checked("quant-protocol", "gptq-2048", _protocol),
        chat_template=told.switch("quant-chat-template"),
        max_windows=told.count("quant-max-windows"),
        checkpoints=told.checkpoints("quant-checkpoints"),
        quantize=told.switch("quant-quantize"),
        calibration=told.calibration("quant-calibration"),
        confidence=told.share("quant-confidence", "0.99"),
        full=told.switch("quant-full"),
        matrix=told.file("quant-matrix", "corrected"),
        baseline=told.flag("quant-baseline") or update is not None,
        baseline_path=told.path("quant-baseline-path") or config.rootpath / "quant-baselines",
        update=update,
        missing=told.word("quant-missing", "fail" if in_ci else "record"),
        inconclusive=told.word("quant-inconclusive", "fail" if in_ci else "pass"),
        require=told.names(told.only_command_line("quant-require")) or (),
        cache_dir=told.path("quant-cache-dir") or user_cache(),
        speed_budget=told.amount("quant-speed-budget") or 60.0,
        price=told.amount("quant-price"),
        accept=told.conditions("quant-accept"),
        tasks=told.path("quant-tasks"),
        json=told.path("quant-json"),
        report=told.path("quant-report"),
        markdown=told.path("quant-markdown"),
        history=told.path("quant-history"),
        resume=told.flag("quant-resume"),
        plan=told.flag("quant-plan"),
        plan_device=told.flag("quant-device"),
    )


def _check_clock() -> None:
    from pytest_quant import environment

    try:
        environment.clock()
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def local_folder(rootpath: Path, name: str | None) -> str | None:
    """A relative folder is meant from the rootdir, wherever pytest was started; other names are hub ids."""
    if name is None:
        return None
    below = rootpath / expanded(name)
    return str(below) if below.is_dir() else name


def local_place(rootpath: Path, name: str) -> str:
    """As :func:`local_folder`, for a folder or a file."""
    below = rootpath / expanded(name)
    return str(below) if below.exists() else name


@dataclass(frozen=True)
class _Said:
    """A value and the place where the user wrote it, for messages."""

    text: str | None
    where: str


class _Told:
    """Reads options from the command line and then from the ini file."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def flag(self, name: str) -> Any:
        return self._config.getoption(f"--{name}")

    def switch(self, name: str) -> bool:
        """A flag of the command line that the ini file may also set."""
        return bool(self.flag(name) or self._config.getini(name.replace("-", "_")))

    def only_command_line(self, name: str) -> _Said:
        return _Said(self.flag(name), f"--{name}")

    def either(self, name: str, default: str | None = None) -> _Said:
        if (value := self.flag(name)) is not None:
            return _Said(value, f"--{name}")
        ini = name.replace("-", "_")
        return _Said(self._config.getini(ini) or default, f"{ini} in {self._config.inipath or 'the ini file'}")

    def word(self, name: str, default: str) -> str:
        said = self.either(name, default)
        if said.text not in CHOICES[name]:
            raise pytest.UsageError(f"{said.where}={said.text}: may be {' or '.join(CHOICES[name])}")
        return said.text

    def checked(self, name: str, default: str, check: Callable[[str], str]) -> str:
        return self._check(self.either(name, default), check)

    def names(self, said: _Said) -> tuple[str, ...] | None:
        names = (said.text or "").replace(",", " ").split()
        return tuple(self._check(_Said(name, said.where), _format) for name in names) or None

    def file(self, name: str, default: str) -> str:
        """A name, or the path of a file from the rootdir."""
        text = self.either(name, default).text or default
        below = self._config.rootpath / expanded(text)
        return str(below) if below.is_file() else text

    def corpus(self, name: str, default: str) -> str:
        """As :meth:`file`, for a path that may stand in ``wikitext2:PATH`` or ``PATH:COLUMN``."""
        return self._from_root(self.either(name, default).text or default)

    def _from_root(self, text: str) -> str:
        before, colon, after = text.rpartition(":")
        for start, path, end in (("", text, ""), ("", before, colon + after), (before + colon, after, "")):
            below = self._config.rootpath / expanded(path)
            if path and below.exists():
                return f"{start}{below}{end}"
        return text

    def checkpoints(self, name: str) -> tuple[tuple[str, str], ...]:
        """Places by format; a relative folder or file is meant from the rootdir."""
        said = self.either(name)
        found = {}
        for pair in (said.text or "").replace("\n", ",").split(","):
            if not pair.strip():
                continue
            format, equals, place = pair.strip().partition("=")
            if not equals or not place:
                raise pytest.UsageError(f"{said.where}={said.text}: write FORMAT=PLACE, such as gptq=checkpoints/gptq")
            found[self._check(_Said(format, said.where), _format)] = local_place(self._config.rootpath, place)
        return tuple(sorted(found.items()))

    def arguments(self, name: str) -> tuple[tuple[str, str], ...]:
        """A JSON object, as a spec keeps it."""
        said = self.either(name)
        try:
            found = json.loads(said.text or "{}")
        except ValueError:
            found = None
        if isinstance(found, dict) and found:
            from pytest_quant.engines.vllm import arguments

            try:
                arguments.check(found)
            except UsageError as error:
                raise pytest.UsageError(f"{said.where}: {error}") from None
        if not isinstance(found, dict):
            raise pytest.UsageError(f'{said.where}={said.text}: write JSON, such as {{"tensor_parallel_size": 2}}')
        return packed(found)

    def device_map(self, name: str) -> str | None:
        from pytest_quant.placement import parse

        said = self.either(name)
        if said.text is not None:
            self._check(said, lambda text: str(parse(text)))
        return said.text

    def calibration(self, name: str) -> Calibration | None:
        from pytest_quant.quantizing import settings_of

        said = self.either(name)
        sizes = {size: self.count(f"{name}-{size}") for size in ("samples", "tokens")}
        try:
            return settings_of(said.text, **sizes, place=self._from_root)
        except UsageError as error:
            raise pytest.UsageError(f"{said.where}: {error}") from None

    def path(self, name: str) -> Path | None:
        """A path from where pytest was started, or from the rootdir if the ini file says it."""
        if (value := self.flag(name)) is not None:
            return self._config.invocation_params.dir / expanded(value)
        ini = name.replace("-", "_")
        value = None if name in ONLY_ON_THE_COMMAND_LINE else self._config.getini(ini)
        return self._config.rootpath / expanded(value) if value else None

    def count(self, name: str) -> int | None:
        said = self.either(name)
        if said.text is None:
            return None
        if not said.text.strip().isdecimal() or int(said.text) < 2:
            raise pytest.UsageError(f"{said.where}={said.text}: must be a whole number of 2 or more")
        return int(said.text)

    def amount(self, name: str) -> float | None:
        said = self.either(name)
        if said.text is None:
            return None
        try:
            value = float(said.text)
        except ValueError:
            value = math.nan
        if not 0.0 < value < math.inf:
            raise pytest.UsageError(f"{said.where}={said.text}: must be a number above 0")
        return value

    def conditions(self, name: str) -> tuple[str, ...]:
        from pytest_quant.hardware.condition import NAMES

        said = self.either(name)
        names = tuple((said.text or "").replace(",", " ").split())
        for each in names:
            if each not in NAMES:
                raise pytest.UsageError(f"{said.where}: there is no condition {each!r}; there are {', '.join(NAMES)}")
        return names

    def share(self, name: str, default: str) -> float:
        said = self.either(name, default)
        try:
            value = float(said.text or default)
        except ValueError:
            value = math.nan
        if not 0.5 <= value < 1.0:
            raise pytest.UsageError(f"{said.where}={said.text}: must be a number from 0.5 to below 1, such as 0.99")
        return value

    def _check(self, said: _Said, check: Callable[[str], str]) -> str:
        try:
            return check(said.text or "")
        except UsageError as error:
            raise pytest.UsageError(f"{said.where}: {error}") from None


def _format(name: str) -> str:
    from pytest_quant.formats import registry

    return registry.get(name).name


def _protocol(name: str) -> str:
    from pytest_quant.corpora.protocols import parse

    return parse(name).name
