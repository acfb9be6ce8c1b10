"""How much of a model's quality a format keeps: an order, and what has been published. Nothing is predicted here."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quant.formats.format import Format


@dataclass(frozen=True)
class Grade:
    """A class of formats; the lower ``rank`` keeps more."""

    rank: int
    words: str


PLAIN = Grade(0, "unquantized")
EIGHT = Grade(1, "8 bits")
CALIBRATED = Grade(2, "4 bits, calibrated")
FITTED = Grade(3, "4 bits, levels or zero points fitted without calibration")
ROUNDED = Grade(4, "4 bits, rounded")
BOTH = Grade(5, "4 bits, activations too")
FEWER = Grade(6, "below 4 bits")

_FITTED = ("nf4", "hqq")
"""The numeric, or the backend."""
_PUBLISHED = {
    "nf4": "+0.3 to 1.0 ppl",
    "awq": "+0.3 to 1.0 ppl",
    "gptq": "+0.3 to 1.0 ppl",
    "w8a8@compressed-tensors": "+0.2 to 0.5 ppl (with smoothing)",
    "int4": "0.5 to 1.5 ppl above nf4's",
    "int4@quanto": "0.5 to 1.5 ppl above nf4's",
    "int4-unpacked": "0.5 to 1.5 ppl above nf4's",
}
_TOLERANCE = {EIGHT.rank: 0.5, CALIBRATED.rank: 1.0, FITTED.rank: 1.0}


def grade(format: Format) -> Grade:
    """By bits first, then by how they were found; a KV cache below 8 bits counts as weights of as many would."""
    bits = format.weights.num_bits
    found = PLAIN if bits >= 16 else EIGHT if bits >= 8 else _four(format) if bits >= 4 else FEWER
    if format.kv_cache is None:
        return found
    kept = format.kv_cache.stored.num_bits
    least = EIGHT if kept >= 8 else ROUNDED if kept >= 4 else FEWER
    return max(found, least, key=lambda grade: grade.rank)


def published(format: Format) -> str | None:
    """The perplexity above FP16's that is widely quoted for a format, from models of 7B and more; ``None`` where no
    figure is, or only one for another recipe."""
    return None if format.kv_cache is not None else _PUBLISHED.get(format.name)


def tolerance(format: Format) -> float:
    """A limit to begin with for ``perplexity_delta``: the top of what is published for the grade, twice the last where
    nothing is."""
    return _TOLERANCE.get(grade(format).rank, 2.0)


def _four(format: Format) -> Grade:
    if format.input_activations is not None and format.input_activations.num_bits < 8:
        return BOTH
    if format.from_checkpoint:
        return CALIBRATED
    return FITTED if format.numeric in _FITTED or format.backend in _FITTED else ROUNDED
