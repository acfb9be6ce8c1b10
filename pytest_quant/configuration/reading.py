"""pytest reads its configuration as for a run, up to the point where it would begin to collect tests."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from pytest_quant.configuration import table
from pytest_quant.errors import UsageError

T = TypeVar("T")
_OURS = ("--capture=sys", "-W", "ignore::pytest.PytestAssertRewriteWarning")
"""What ``conftest.py`` files print is not part of the answer; pytest warns of plugins that were imported before it, as
this one is by its command."""


def as_pytest(arguments: Sequence[str], look: Callable[[pytest.Config], T], own: list[str] | None = None) -> T:
    """What ``look`` finds in the configuration of ``pytest ARGUMENTS`` started here. ``conftest.py`` files are imported
    as in that run, no test is; formats that they add are known while it looks, and stay where ``own`` takes their
    names: the caller forgets them then.

    :class:`UsageError` where pytest itself cannot read its configuration, with what it says, where the plugin is not
    loaded, and where ``look`` raises one (of pytest's kind too).
    """
    formats: list[str] = [] if own is None else own
    probe = _Probe(look, formats)
    from pytest_quant.formats import registry

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            pytest.main([*arguments, *_OURS], plugins=[probe])
        why = one_line(printed.getvalue())
    except SystemExit as error:
        why = f"a conftest.py or a plugin ends it by sys.exit({error.code!r})"
    except Exception as error:
        if probe.looked:
            raise
        why = _culprit() or f"it raises {type(error).__name__}: {error}"
    finally:
        if own is None and formats:
            registry.forget(formats)
    if probe.error is not None:
        raise probe.error
    if not probe.found:
        raise UsageError(f"pytest does not get as far as the plugin's options: {why}")
    return probe.found[0]


def one_line(printed: str) -> str:
    """What pytest says of a mistake, without the usage that it prints before."""
    line = "; ".join(line.strip() for line in printed.splitlines() if line.strip())
    return re.sub(r"^ERROR: (usage: .*?: error: )?", "", line) or "it only prints something else"


def _culprit() -> str | None:
    """A ``pyproject.toml`` that pytest looks at and that it cannot read."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        file = folder / "pyproject.toml"
        try:
            if file.is_file() and not isinstance(table.document(file).get("tool", {}), dict):
                return f"{file}: tool must be a table"
        except (OSError, ValueError) as error:
            return f"{file}: cannot be read: {error}"
    return None


class _Probe(Generic[T]):
    """Takes the place of pytest's main loop."""

    def __init__(self, look: Callable[[pytest.Config], T], formats: list[str]) -> None:
        self.look, self.formats = look, formats
        self.found: list[T] = []
        self.error: UsageError | None = None
        self.looked = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        self.looked = True
        if not config.pluginmanager.hasplugin("quant"):
            self.error = UsageError(
                "pytest does not get as far as the plugin's options: the plugin is not loaded in this run: -p no:quant "
                "or PYTEST_DISABLE_PLUGIN_AUTOLOAD keeps it out"
            )
            return 0
        from pytest_quant.plugin import add_formats

        try:
            config.hook.pytest_quant_formats.call_historic(lambda formats: add_formats(formats, self.formats))
        except UsageError as error:
            self.error = UsageError(
                f"pytest does not get as far as the plugin's options: pytest_quant_formats: {error}"
            )
            return 0
        try:
            self.found.append(self.look(config))
        except (UsageError, pytest.UsageError) as error:
            self.error = UsageError("; ".join(map(str, error.args)))
        return 0
