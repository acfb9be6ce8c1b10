"""``pytest-quant reference build``: what an unquantized model says of a corpus, stored for other machines."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from pytest_quant.cache import expanded, user_cache
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import QuantError, UsageError
from pytest_quant.formats import registry
from pytest_quant.progress import Progress, Quiet
from pytest_quant.reference import commands
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers


_HIGHEST_FLOOR = 1e-3


def add(actions: Subparsers) -> None:
    """Add ``build`` to the actions of ``pytest-quant reference``; its options are those of the pytest plugin."""
    text = "score every window with the unquantized model, and store what it says"
    parser = actions.add_parser("build", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--reference", metavar="FORMAT", default="fp16", help="fp16 (default), bf16 or fp32")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")
    parser.add_argument("--corpus", metavar="NAME", default="python-docs", help="as --quant-corpus (%(default)s)")
    parser.add_argument("--protocol", metavar="NAME", default="gptq-2048", help="as --quant-protocol (%(default)s)")
    parser.add_argument("--chat-template", action="store_true", help="as --quant-chat-template")
    parser.add_argument("--max-windows", metavar="N", type=int, help="only the first N windows of the drawn order")
    commands.add_cache_dir(parser)
    parser.set_defaults(run=build)


def build(told: argparse.Namespace) -> int:
    """Build and store a reference, and say where it is, its size and its floor."""
    from pytest_quant.session import Session

    if registry.get(told.reference).quantized:
        raise UsageError(f"--reference={told.reference} is a quantized format; use fp16, bf16 or fp32")
    settings = Settings(
        corpus=told.corpus,
        protocol=told.protocol,
        chat_template=told.chat_template,
        max_windows=told.max_windows,
        cache_dir=expanded(told.cache_dir) if told.cache_dir else user_cache(),
    )
    spec = ModelSpec(ModelSource(told.model, told.revision, told.trust_remote_code), told.reference)
    session = Session(settings, Line() if sys.stderr.isatty() else Quiet())
    session.check(spec, spec.reference)
    path, floor = session.build_reference(spec)
    print(commands.table([entry for entry in commands.store(told).entries() if entry.path == path]))
    print(f"stored in {path}")
    print(f"floor: {floor:.1e} nats a token (the reference against its own file)")
    if not floor < _HIGHEST_FLOOR:
        raise QuantError(f"{path}: the reference does not answer as its own file says; do not use it")
    return 0


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
