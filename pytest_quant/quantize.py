"""``pytest-quant quantize``: make a checkpoint of a model in a format, with the record of how."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant import asking
from pytest_quant.cache import expanded, user_cache
from pytest_quant.errors import UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.format import Format
from pytest_quant.reference.commands import add_cache_dir
from pytest_quant.settings import Calibration, Settings
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers

_WORDS: Mapping[str, Any] = MappingProxyType({"true": True, "false": False})


def add(commands: Subparsers) -> None:
    """Add ``quantize`` to the command's subcommands."""
    text = "make a quantized checkpoint, with a record of what it was made from"
    parser = commands.add_parser("quantize", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--format", metavar="NAME", required=True, help="a format that is made beforehand, e.g. gptq")
    parser.add_argument("--output", metavar="DIR", help="a folder for it (default: the cache, where pytest finds it)")
    parser.add_argument(
        "--calibration", metavar="MIX", default="python-docstrings", help="NAME or 0.5*NAME,0.5*OTHER (%(default)s)"
    )
    parser.add_argument("--samples", metavar="N", type=int, default=128, help="calibration windows (%(default)s)")
    parser.add_argument("--tokens", metavar="N", type=int, default=2048, help="of a window (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the windows' choice (%(default)s)")
    parser.add_argument("--chat-template", action="store_true", help="render calibration documents with it")
    parser.add_argument("--dtype", metavar="FORMAT", default="fp16", help="opened in fp16 (default), bf16 or fp32")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="a parameter, e.g. group_size=64 (repeatable)"
    )
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help="modules that stay wide")
    asking.add_source(parser)
    add_cache_dir(parser)
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Make the checkpoint; say where it is and what it is."""
    from pytest_quant.session import Session

    format = _format(told)
    if told.samples < 1 or told.tokens < 2:
        raise UsageError("--samples must be 1 or more, --tokens 2 or more")
    settings = Settings(
        cache_dir=expanded(told.cache_dir) if told.cache_dir else user_cache(),
        quantize=True,
        calibration=Calibration(told.calibration, told.samples, told.tokens, told.seed, told.chat_template),
    )
    if registry.get(told.dtype).quantized:
        raise UsageError(f"--dtype={told.dtype} is a quantized format; use fp16, bf16 or fp32")
    source = asking.source(told)
    spec = ModelSpec(source, told.dtype, require_native=False)
    session = Session(settings, asking.progress())
    made = session.quantizing.make(spec, format, Path(told.output).resolve() if told.output else None)
    assert made.record is not None
    print(f"{made.place}: {format.name} of {source.short}\n{made.record.short}")
    return 0


def _format(told: argparse.Namespace) -> Format:
    """The format with the parameters and exclusions of the command line."""
    format = registry.get(told.format)
    if format.kv_cache is not None:
        raise UsageError(f"a KV cache is quantized at work: quantize {format.base}, and test it as {format.name}")
    if not format.from_checkpoint:
        raise UsageError(f"{format.name} is quantized while the model is loaded: there is no checkpoint to make")
    parameters = dict(format.parameters)
    for text in told.set:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"--set {text}: write NAME=VALUE, e.g. --set group_size=64")
        if name == "method":
            raise UsageError(f"--set {text}: the method is the format's; give another --format")
        parameters[name] = _value(value)
    if not told.set and not told.exclude:
        return format
    return replace(format, parameters=MappingProxyType(parameters), exclude=(*format.exclude, *told.exclude))


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
