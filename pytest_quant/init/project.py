"""What a pytest run of the new file would be told: the project's own configuration, read by pytest itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_quant.errors import UsageError
from pytest_quant.options import Options, read


class _Reader:
    """Reads the options once pytest has its configuration, and ends the run before it begins."""

    def __init__(self) -> None:
        self.options: Options | None = None
        self.patterns: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        self.patterns = list(config.getini("python_files"))
        self.options = read(config)
        return 0


def options_for(file: Path, arguments: Sequence[str]) -> Options:
    """The options of ``pytest ARGUMENTS FILE``: its rootdir, its ini file, its addopts and conftest.py.

    The file need not be there. Raises :class:`UsageError` where the configuration is wrong, which pytest has told on
    standard error then, and where pytest would not collect a file of that name.
    """
    reader = _Reader()
    folder = next(parent for parent in file.absolute().parents if parent.is_dir())
    code = pytest.main([*arguments, str(folder)], plugins=[reader])
    if reader.options is None:
        raise UsageError(f"pytest cannot start here (exit code {int(code)}): mend what it says above, then try again")
    if not any(fnmatch.fnmatch(file.name, pattern) for pattern in reader.patterns):
        known = ", ".join(reader.patterns)
        raise UsageError(f"--output={file}: pytest would not collect a file of that name (python_files is {known})")
    return reader.options
