"""The page of the formats: what each is, which library realizes it, and what brings that."""

from __future__ import annotations

from pytest_quant.formats import registry
from pytest_quant.formats.backend import Backend
from pytest_quant.formats.format import Format, QuantizationArgs
from quantdocs import rst

INTRODUCTION = """
The built-in formats by library. ``int4@hqq`` is the format of that library; behind any of them may stand a KV cache
format (``nf4+kv-int4``). :doc:`How they are used, and what each one costs </formats>`. Bits a weight are those of a
quantized weight, its share of the scales included; what is not quantized comes on top.
"""


def page() -> str:
    """A table of each library's formats, in the registry's order."""
    backends, _ = registry.backends()
    return rst.page(rst.title("Formats and libraries"), INTRODUCTION, *map(_library, backends))


def _library(backend: Backend) -> str:
    headers = ("name", "weights", "activations", "bits a weight", "comes from")
    table = rst.table(headers, map(_row, backend.formats), widths=(26, 22, 22, 12, 18))
    return f"{rst.title(backend.name, '-')}\n{rst.block('text', f'pip install {backend.install}')}\n{table}"


def _row(format: Format) -> tuple[str, ...]:
    if not format.quantized:
        return (rst.code(format.name), format.name, "", f"{format.weights.num_bits}", "the model")
    return (
        rst.code(format.name),
        scheme(format.weights),
        "" if format.input_activations is None else scheme(format.input_activations),
        f"{format.bits_per_weight:.4g}",
        "a checkpoint" if format.from_checkpoint else "the model",
    )


def scheme(args: QuantizationArgs) -> str:
    """A representation in words."""
    size = "" if args.group_size is None else f" of {args.group_size}"
    zero = "" if args.symmetric else ", with zero points"
    return f"{args.type}{args.num_bits} per {args.strategy}{size}{zero}"
