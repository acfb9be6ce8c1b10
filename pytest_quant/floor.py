"""``pytest-quant floor``: what two engines make of the same weights."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING

from pytest_quant.building import Line
from pytest_quant.cache import expanded, user_cache
from pytest_quant.engines import transformers, vllm
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import UsageError
from pytest_quant.formats import registry
from pytest_quant.progress import Quiet
from pytest_quant.reference.commands import add_cache_dir
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec, packed

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers


def add(commands: Subparsers) -> None:
    """Add ``floor`` to the subcommands of ``pytest-quant``."""
    text = "what transformers and vLLM make of the same weights: what no comparison between them can tell"
    parser = commands.add_parser("floor", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--reference", metavar="FORMAT", default="fp16", help="fp16 (default), bf16 or fp32")
    parser.add_argument("--engine-args", metavar="JSON", default="{}", help="what vLLM is told besides")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")
    parser.add_argument("--corpus", metavar="NAME", default="python-docs", help="as --quant-corpus (%(default)s)")
    parser.add_argument("--protocol", metavar="NAME", default="gptq-2048", help="as --quant-protocol (%(default)s)")
    parser.add_argument("--chat-template", action="store_true", help="as --quant-chat-template")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_cache_dir(parser)
    parser.set_defaults(run=floor)


def floor(told: argparse.Namespace) -> int:
    """Score the first windows on both engines, and print how far they are apart."""
    from pytest_quant.session import Session

    if registry.get(told.reference).quantized:
        raise UsageError(f"--reference={told.reference} is a quantized format; use fp16, bf16 or fp32")
    settings = Settings(
        corpus=told.corpus,
        protocol=told.protocol,
        chat_template=told.chat_template,
        cache_dir=expanded(told.cache_dir) if told.cache_dir else user_cache(),
    )
    spec = ModelSpec(
        ModelSource(told.model, told.revision, told.trust_remote_code),
        told.reference,
        engine=vllm.NAME,
        engine_args=_arguments(told.engine_args),
        reference_engine=transformers.NAME,
    )
    session = Session(settings, Line() if sys.stderr.isatty() else Quiet())
    try:
        found = session.engine_floor(spec)
    finally:
        session.close()
    if told.json:
        engines = {transformers.NAME: found.first, vllm.NAME: found.second}
        figures = {"mean": found.mean, "worst": found.worst, "windows": found.windows, "nll": engines}
        print(json.dumps({"model": told.model, "reference": told.reference, "protocol": told.protocol, **figures}))
        return 0
    print(f"{told.reference} weights of {spec.source.short}, {found.windows} windows of {told.protocol}")
    for name, nll in ((transformers.NAME, found.first), (vllm.NAME, found.second)):
        print(f"  {name:<12}  perplexity {math.exp(nll):.6g}")
    print(
        f"floor: {found.mean:+.2g} nats a token, at most {found.worst:.2g} in one window; "
        f"{found.perplexity:+.2g} of perplexity"
    )
    return 0


def _arguments(text: str) -> tuple[tuple[str, str], ...]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f'--engine-args={text}: write JSON, such as {{"tensor_parallel_size": 2}}')
    return packed(found)
