"""``pytest-quant quantize``: make a checkpoint of a model in a format, with the record of how."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant import answering, asking
from pytest_quant.cache import expanded, user_cache
from pytest_quant.errors import UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.format import Format
from pytest_quant.reference.commands import add_cache_dir
from pytest_quant.settings import Calibration, Settings
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers

_DESCRIPTION = """Makes a quantized checkpoint once, for formats that are calibrated beforehand (gptq, awq, ...), with
a record of the model, the recipe and the text that it was made from. Tests of that format then find it in the cache,
or at --output."""
_EXAMPLES = """examples:
  pytest-quant quantize org/name --format gptq
  pytest-quant quantize ./model --format gptq --samples 32 --tokens 512
  pytest-quant quantize ./model --format awq --set group_size=64 --output ./awq"""
_WORDS: Mapping[str, Any] = MappingProxyType({"true": True, "false": False})


def add(commands: Subparsers) -> None:
    """Add ``quantize`` to the command's subcommands."""
    parser = commands.add_parser(
        "quantize",
        help="make a checkpoint in a format that is calibrated, such as gptq",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    asking.add_model(parser)
    parser.add_argument(
        "--format", metavar="NAME", required=True, help="a format that is made beforehand, e.g. gptq or awq"
    )
    parser.add_argument("--output", metavar="DIR", help="a folder for it (default: the cache, where pytest finds it)")
    parser.add_argument(
        "--calibration",
        metavar="MIX",
        default="python-docstrings",
        help="text that it is calibrated on: NAME, or 0.5*NAME,0.5*OTHER (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", metavar="N", type=int, default=128, help="windows of that text (default: %(default)s)"
    )
    parser.add_argument("--tokens", metavar="N", type=int, default=2048, help="in each window (default: %(default)s)")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="by which windows are chosen (default: %(default)s)"
    )
    parser.add_argument("--chat-template", action="store_true", help="wrap each document as a chat model's user turn")
    parser.add_argument(
        "--dtype",
        metavar="FORMAT",
        default="fp16",
        help="type that the model is opened in: fp16, bf16 or fp32 (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a parameter of the format, e.g. group_size=64; may be repeated",
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="modules that are not quantized, e.g. '*.down_proj'; may be repeated",
    )
    asking.add_source(parser)
    add_cache_dir(parser)
    answering.add_json(parser)
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
    with answering.undisturbed(told):
        session = Session(settings, asking.progress())
        made = session.quantizing.make(spec, format, Path(told.output).resolve() if told.output else None)
    assert made.record is not None
    if told.json:
        return answering.answer(
            {"model": told.model, "format": format.name, "path": made.place, "record": asdict(made.record)}
        )
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
