"""Lines that a message offers for pasting: a format that leaves modules wide, as a variant or as a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.format import Format


def known_name(format: Format) -> str:
    """What the command line knows a format by: the one that a variant is of."""
    return format.variant_of or format.base


def plain(name: str) -> str:
    """A format's name as part of another one's."""
    return name.replace("@", "-")


def mixed(format: Format, names: Sequence[str], *, width: int | None = None) -> list[str]:
    """A call of :func:`pytest_quant.formats.variant`: the format with these modules (patterns) wide too; one line, or
    where that is longer than ``width`` one for each name.

    Of a variant it is another variant of the same format, since formats of a test suite know nothing of each other.
    """
    more = [f"{name}={value!r}" for name, value in _own(format).items()]
    start = f'variant("{known_name(format)}", "{plain(format.base)}-mixed", exclude=['
    end = ", ".join(["]", *more]) + ")"
    quoted = [f'"{name}"' for name in (*format.exclude, *names)]
    line = f"{start}{', '.join(quoted)}{end}"
    if width is None or len(line) <= width:
        return [line]
    return [start, *(f"    {name}," for name in quoted), end]


def quantize(source: ModelSource, format: Format, names: Sequence[str] = ()) -> list[list[str]]:
    """Words of ``pytest-quant quantize`` for a format that is made beforehand, with these modules wide too: the
    command, and each option to leave something out."""
    words = ["pytest-quant", "quantize", source.name, "--format", known_name(format), *opening(source)]
    words += [word for name, value in _own(format).items() for word in ("--set", f"{name}={value}")]
    return [words, *(["--exclude", name] for name in (*format.exclude, *names))]


def _own(format: Format) -> Mapping[str, Any]:
    """Parameters that a variant has otherwise than what it is of."""
    usual = registry.get(known_name(format)).parameters
    return {name: value for name, value in format.parameters.items() if usual.get(name, ...) != value}


def opening(source: ModelSource) -> list[str]:
    """Options that a model is opened with."""
    words = ["--revision", source.revision] if source.revision else []
    return words + (["--trust-remote-code"] if source.trust_remote_code else [])
