"""What a model's files say about its weights, without opening the model."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pytest_quant.formats.format import Format
from pytest_quant.roofline.amounts import weight_bytes
from pytest_quant.roofline.shape import ModelShape

_EMBEDDINGS = ("embed", "wte", "wpe", "lm_head", "word_embeddings", "embed_out")


@dataclass(frozen=True)
class WeightCount:
    """Numbers of weights: those that formats quantize, and the rest (embeddings, head, norms, biases)."""

    eligible: int
    rest: int
    rows: tuple[tuple[int, int], ...] = ()
    """Of the eligible ones: length of a row and how many there are."""

    def bytes_in(self, format: Format, rest_bits: int) -> int:
        """Predicted bytes in a format, the rest kept in ``rest_bits``."""
        return weight_bytes(self.shape, format, rest_bits)

    @property
    def shape(self) -> ModelShape:
        """What the files tell of the model's shape: nothing of its layers."""
        return ModelShape(self.eligible, self.rest, rows=self.rows)


def count_weights(folder: Path) -> WeightCount | None:
    """Counted from the headers of the safetensors files; ``None`` where there are none to read."""
    rest = 0
    rows: Counter[int] = Counter()
    try:
        for name, shape in (pair for file in _files(folder) for pair in _tensors(file)):
            if len(shape) >= 2 and not any(part in name for part in _EMBEDDINGS):
                rows[shape[-1]] += prod(shape[:-1])
            else:
                rest += prod(shape)
    except (OSError, ValueError, KeyError, struct.error, RecursionError):
        return None
    eligible = sum(length * count for length, count in rows.items())
    return WeightCount(eligible, rest, tuple(sorted(rows.items()))) if eligible else None


def _files(folder: Path) -> list[Path]:
    """Those that the index names, where there is one: some repositories hold the weights twice."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    names = _mapping(_mapping(json.loads(index.read_text(encoding="utf-8")))["weight_map"]).values()
    return [folder / name for name in sorted({str(name) for name in names})]


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _tensors(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of each tensor: 8 bytes of header length, then JSON (the safetensors format)."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > 100_000_000:
            raise ValueError("not a safetensors header")
        header = _mapping(json.loads(stream.read(length)))
    for name, entry in header.items():
        if name != "__metadata__":
            shape = _mapping(entry)["shape"]
            if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError("not a shape")
            yield name, shape
