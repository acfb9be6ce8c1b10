"""What a pytest run of the new file would be told: the project's own configuration, read by pytest itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_quant.configuration.reading import as_pytest
from pytest_quant.errors import UsageError
from pytest_quant.options import Options, read


def options_for(file: Path, arguments: Sequence[str], own: list[str]) -> Options:
    """The options of ``pytest ARGUMENTS FILE``: its rootdir, its ini file, its addopts and conftest.py. The names
    of formats that the latter add go into ``own``: the caller has them forgotten.

    The file need not be there. Raises :class:`UsageError` where pytest cannot read its configuration or something in it
    is wrong, with what pytest says of it, and where pytest would not collect a file of that name.
    """
    folder = next(parent for parent in file.absolute().parents if parent.is_dir())
    options, patterns = as_pytest([*arguments, str(folder)], _read, own)
    if not any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns):
        known = ", ".join(patterns)
        raise UsageError(f"--output={file}: pytest would not collect a file of that name (python_files is {known})")
    return options


def _read(config: pytest.Config) -> tuple[Options, list[str]]:
    return read(config), list(config.getini("python_files"))
