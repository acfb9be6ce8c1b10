"""``pytest-quant floor``: what two engines make of the same weights."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quant import answering, asking
from pytest_quant.engines import transformers, vllm
from pytest_quant.errors import UsageError
from pytest_quant.reference.commands import add_cache_dir
from pytest_quant.spec import ModelSpec, packed

if TYPE_CHECKING:
    from pytest_quant.reference.commands import Subparsers


_DESCRIPTION = """How much do two engines differ by themselves? Scores the same text with the same unquantized
weights in transformers and in vLLM. Where a test's reference runs in one and its format in the other, no difference
below this floor says anything about the format. Needs vLLM."""
_EXAMPLES = """examples:
  pytest-quant floor org/name --reference bf16
  pytest-quant floor ./model --reference fp32 --protocol gptq-512 --json"""


def add(commands: Subparsers) -> None:
    """Add ``floor`` to the subcommands of ``pytest-quant``."""
    parser = commands.add_parser(
        "floor",
        help="how far transformers and vLLM are apart on the same weights",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    asking.add_model(parser)
    asking.add_text(parser)
    asking.add_source(parser)
    parser.add_argument(
        "--engine-args",
        metavar="JSON",
        default="{}",
        help="arguments of vLLM's own, e.g. '{\"max_model_len\": 2048}' (default: none)",
    )
    add_cache_dir(parser)
    answering.add_json(parser)
    parser.set_defaults(run=floor)


def floor(told: argparse.Namespace) -> int:
    """Score the first windows on both engines, and print how far they are apart."""
    from pytest_quant.session import Session

    spec = ModelSpec(
        asking.source(told),
        asking.reference(told),
        engine=vllm.NAME,
        engine_args=_arguments(told.engine_args),
        reference_engine=transformers.NAME,
    )
    with answering.undisturbed(told):
        session = Session(asking.settings(told), asking.progress())
        for each in (spec, replace(spec, reference_engine=None)):
            session.check(each, spec.reference)
        try:
            found = session.engine_floor(spec)
        finally:
            session.close()
    if told.json:
        engines = {transformers.NAME: found.first, vllm.NAME: found.second}
        figures = {"mean": found.mean, "worst": found.worst, "windows": found.windows, "nll": engines}
        return answering.answer(
            {"model": told.model, "reference": told.reference, "protocol": told.protocol, **figures}
        )
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
