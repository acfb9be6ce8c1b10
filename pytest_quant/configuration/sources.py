"""What was said of each option, by which of the places that may say it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_quant.configuration import table
from pytest_quant.configuration.said import TABLE, Origin, Said
from pytest_quant.configuration.table import Table
from pytest_quant.declarations import OPTIONS, Option
from pytest_quant.errors import UsageError


@dataclass(frozen=True)
class Sources:
    """All that was said."""

    said: dict[str, Said]
    """By the name of the option, for each of them."""
    table: Table
    wrong: dict[str, str]
    """Options that count as not said, since it cannot be told what was said, and why; by name."""


def gather(config: pytest.Config) -> Sources:
    """What pytest's configuration and ``[tool.pytest-quant]`` say: of the command line, ``-o`` of pytest, its ini file
    or the table, and the default, the first that says anything."""
    found = table.read(table.file_of(config.rootpath, config.inipath))
    said: dict[str, Said] = {}
    wrong: dict[str, str] = {}
    for option in OPTIONS:
        try:
            said[option.name] = _told(config, option, found)
        except UsageError as error:
            wrong[option.name] = str(error)
            said[option.name] = _default(config, option)
    return Sources(said, found, wrong)


def _told(config: pytest.Config, option: Option, found: Table) -> Said:
    in_files = _in_files(config, option, found) if option.in_files else None
    if option.on_command_line:
        value = config.getoption(option.flag)
        # an empty list of formats is that of a shell's variable that is not set
        if value is not None and value is not False and not (option.kind == "formats" and not value.strip(", ")):
            return Said(value, Origin("command line", option.flag), config.rootpath, config.invocation_params.dir)
    return in_files or _default(config, option)


def _in_files(config: pytest.Config, option: Option, found: Table) -> Said | None:
    """What pytest's ini file or the table says; :class:`UsageError` where both do, since one of them would be forgotten
    at the next change."""
    override = _override(config, option)
    value = _ini(config, option)
    if override is not None and (value is not None or not override):  # older versions of pytest hear none in addopts
        origin = Origin("override", option.ini)
        if value is None:  # as -o quant_price= says: nothing is set here
            return Said(_default(config, option).value, origin, config.rootpath, config.rootpath)
        return Said(value, origin, config.rootpath, config.rootpath)
    if option.name in found.written:
        key, in_table = found.written[option.name]
        if value is not None:
            raise UsageError(
                f"{option.ini} in {config.inipath} and {key} in {TABLE} of {found.file} are one option: leave out one "
                f"of them"
            )
        folder = found.file.parent
        return Said(in_table, Origin("table", key, found.file), folder, folder)
    if value is not None:
        return Said(value, Origin("ini", option.ini, config.inipath), config.rootpath, config.rootpath)
    return None


def _override(config: pytest.Config, option: Option) -> str | None:
    """What pytest's ``-o`` says; None if it says nothing. Of several the last counts."""
    pairs = [word.partition("=") for word in config.getoption("override_ini") or ()]
    return {name: text for name, _, text in pairs}.get(option.ini)


def _ini(config: pytest.Config, option: Option) -> Any:
    """Text, or what a native TOML table of pytest's holds; None if it is not there or empty."""
    try:
        value = config.getini(option.ini)
    except (pytest.UsageError, ValueError, TypeError) as error:  # the latter are those of pytest before 9.2
        if option.ini in str(error):
            raise UsageError(str(error)) from None
        origin = Origin("ini" if _override(config, option) is None else "override", option.ini, config.inipath)
        raise UsageError(f"{origin}: {error}") from None
    if isinstance(value, list) and option.kind in ("formats", "conditions"):
        value = ",".join(map(str, value))
    elif isinstance(value, list) and option.kind == "checkpoints":
        value = "\n".join(map(str, value))
    return None if value in ("", []) else value


def _default(config: pytest.Config, option: Option) -> Said:
    in_ci = option.in_ci is not None and bool(os.environ.get("CI"))
    value: Any = option.in_ci if in_ci else option.default
    if option.kind == "switch":
        value = False
    return Said(value, Origin("CI" if in_ci else "default", option.name), config.rootpath, config.rootpath)
