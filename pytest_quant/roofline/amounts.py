"""How many bytes and operations: of weights in a format, of the KV cache, of one step."""

from __future__ import annotations

from pytest_quant.formats.format import Format
from pytest_quant.roofline.shape import ModelShape


def weight_bytes(shape: ModelShape, format: Format, rest_bits: int) -> int:
    """Bytes of a model's weights as they are stored, scales included; what is not quantized is in ``rest_bits``, the
    compute type's, unless the format is a plain type or its library insists on another."""
    kept = format.rest_bits(rest_bits)
    if shape.rows:
        bits = sum(count * length * format.bits_of(kept, length) for length, count in shape.rows)
    else:
        bits = shape.quantizable * format.bits_of(kept)
    return round((bits + shape.rest * (format.bits_of(kept) if format.covers_rest else kept)) / 8)


def kv_bytes(shape: ModelShape, batch_size: int, context: int, bits: float = 16.0) -> int | None:
    """Bytes that keys and values of ``batch_size`` sequences take while the last of ``context`` tokens is computed, as
    transformers' dynamic cache holds them, each number in ``bits``; ``None`` where the shape does not tell.

    After a prompt that is longer than a window and came in one piece, the cache still holds all of it in the memory
    of which the window is a view, until the next token.
    """
    if not shape.kv:
        return None
    numbers = sum(layer.values * _kept(layer.window, context) for layer in shape.kv)
    return round(batch_size * numbers * bits / 8)


def read_bytes(shape: ModelShape, stored: int, rest_bits: int, batch_size: int, *, at_least: bool = False) -> float:
    """Of ``stored`` bytes of weights those that one decode step of a batch has to read.

    Not the tables of single rows, and of experts the share that the batch touches: ``1 - (1 - k/E)**batch_size`` is
    expected where each token chooses ``k`` of ``E`` without preference. ``at_least``: only what is certain, since all
    tokens may choose the same.
    """
    tokens = 1 if at_least else batch_size
    rest = shape.rest * rest_bits / 8
    quantized = max(stored - rest, 0.0)
    unread = shape.idle + shape.routed * (1.0 - _touched(shape, tokens))
    unread_share = unread / shape.quantizable if shape.quantizable else 0.0
    return stored - shape.table * rest_bits / 8 - quantized * unread_share


def operations(shape: ModelShape, tokens: int, context: int = 0) -> float:
    """Operations (a multiplication and an addition are two) of a forward over ``tokens`` new tokens of one sequence
    after ``context`` earlier ones. The product with the head is counted for the last token only, as generation needs
    no more; attention is counted where the shape tells its size, each token with those up to itself."""
    chosen = shape.routed * shape.experts_used / shape.experts
    products = 2.0 * tokens * (shape.quantizable - shape.idle - shape.routed + chosen) + 2.0 * shape.head
    return products + sum(4.0 * layer.width * _pairs(layer.window, tokens, context) for layer in shape.kv)


def _kept(window: int | None, context: int) -> int:
    return context if window is None else min(window, context)


def _touched(shape: ModelShape, batch_size: int) -> float:
    """Share of the experts that a batch touches."""
    return float(1.0 - (1.0 - shape.experts_used / shape.experts) ** batch_size)


def _pairs(window: int | None, tokens: int, context: int) -> int:
    """How many pairs of a new token and one that it attends to there are, itself included."""
    if window is None:
        return tokens * context + tokens * (tokens + 1) // 2
    growing = max(0, min(tokens, window - context))  # tokens that attend to fewer than a window
    return growing * context + growing * (growing + 1) // 2 + (tokens - growing) * window
