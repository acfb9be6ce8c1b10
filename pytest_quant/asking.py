"""What subcommands have in common: how a device, a model and the text are named, and a line of progress."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from pytest_quant.cache import expanded, user_cache
from pytest_quant.errors import UsageError, like
from pytest_quant.progress import Progress, Quiet

if TYPE_CHECKING:
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.hardware import Device
    from pytest_quant.settings import Settings


def device(name: str) -> Device:
    """The device of that name, ``here`` for this machine's; :class:`UsageError` where none is known."""
    from pytest_quant.hardware import detect, specs

    if name == "here":
        return detect()
    found = specs.device(name)
    if found is None:
        known = f"known are 'here', {', '.join(specs.short_names())}, and the names that drivers report"
        near = like(name, [*specs.short_names(), *specs.names()], known)
        raise UsageError(f"no specification of the device {name!r}{near}")
    return found


def add_device(parser: Any, **told: Any) -> None:
    """Add ``--device``; :func:`device` finds what it names."""
    parser.add_argument("--device", metavar="NAME", **told)


def add_matrix(parser: Any) -> None:
    """Add the support matrix that is asked."""
    parser.add_argument(
        "--matrix",
        metavar="NAME",
        default="corrected",
        help="support table: corrected, lesson or a TOML file (default: corrected)",
    )


def add_model(parser: Any) -> None:
    """Add the model that is loaded."""
    parser.add_argument("model", metavar="MODEL", help="a folder, or a name on the Hugging Face hub (org/name)")


def add_source(parser: Any) -> None:
    """Add what says which state of a model is meant, beside its name; :func:`source` reads it."""
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub model (default: main)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")


def add_text(parser: Any, protocol: str = "gptq-2048") -> None:
    """Add the reference and the text that models are scored on; :func:`reference` and :func:`settings` read them."""
    parser.add_argument(
        "--reference",
        metavar="FORMAT",
        default="fp16",
        help="the unquantized model that is compared with: fp16, bf16 or fp32 (default: %(default)s)",
    )
    parser.add_argument(
        "--corpus",
        metavar="NAME",
        default="python-docs",
        help="the text: python-docs, python-docstrings, wikitext2 or a file (default: %(default)s)",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        default=protocol,
        help="how the text is cut into windows, e.g. gptq-512 or hf-strided-1024-512 (default: %(default)s)",
    )
    parser.add_argument("--chat-template", action="store_true", help="wrap each document as a chat model's user turn")


def source(told: argparse.Namespace) -> ModelSource:
    """The model of the command line."""
    from pytest_quant.engines.source import ModelSource

    return ModelSource(told.model, told.revision, told.trust_remote_code)


def reference(told: argparse.Namespace) -> str:
    """The reference of the command line; :class:`UsageError` where that is quantized."""
    from pytest_quant.formats import registry

    if registry.get(told.reference).quantized:
        raise UsageError(f"--reference={told.reference} is a quantized format; use fp16, bf16 or fp32")
    return str(told.reference)


def settings(told: argparse.Namespace) -> Settings:
    """How the command line says to measure."""
    from pytest_quant.settings import Settings

    return Settings(
        corpus=told.corpus,
        protocol=told.protocol,
        chat_template=told.chat_template,
        max_windows=getattr(told, "max_windows", None),
        cache_dir=expanded(told.cache_dir) if told.cache_dir else user_cache(),
    )


def progress() -> Progress:
    """A line on standard error where a person is watching, else nothing."""
    return Line() if sys.stderr.isatty() else Quiet()


class Line(Progress):
    """One line on a terminal's standard error that replaces itself."""

    def __init__(self) -> None:
        self._last = 0.0

    def show(self, text: str) -> None:
        if time.monotonic() - self._last > 0.1:
            self._last = time.monotonic()
            print(f"\r\x1b[K{text[:78]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
