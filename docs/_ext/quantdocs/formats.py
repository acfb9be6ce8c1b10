"""The page of the formats: what each is, which library realizes it, and what brings that."""

from __future__ import annotations

from pytest_quant.formats import registry
from pytest_quant.formats.format import Format, QuantizationArgs
from quantdocs import rst

INTRODUCTION = """
The built-in formats. ``int4@hqq`` is the format of that library; behind any of them may stand a KV cache format
(``nf4+kv-int4``). :doc:`How they are used, and what each one costs </formats>`.
"""


def page() -> str:
    """A table of all formats, in the registry's order."""
    headers = ("name", "library", "weights", "activations", "where it comes from", "``pip install``")
    rows = [_row(format) for format in registry.formats().values()]
    return rst.page(rst.title("Formats and libraries"), INTRODUCTION, rst.table(headers, rows))


def _row(format: Format) -> tuple[str, ...]:
    backend = registry.backend(format)
    weights = f"{scheme(format.weights)}; {format.bits_per_weight:.4g} bits a weight" if format.quantized else ""
    return (
        rst.code(format.name),
        backend.name,
        weights or scheme(format.weights),
        "" if format.input_activations is None else scheme(format.input_activations),
        "a checkpoint made beforehand" if format.from_checkpoint else "made while the model is loaded",
        rst.code(backend.install),
    )


def scheme(args: QuantizationArgs) -> str:
    """A representation in words."""
    if args.num_bits >= 16:
        return f"{args.type}{args.num_bits}"
    shared = args.strategy if args.group_size is None else f"{args.strategy} of {args.group_size}"
    return f"{args.type}{args.num_bits}, a scale for each {shared}" + ("" if args.symmetric else ", zero points")
