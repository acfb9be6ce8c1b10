"""What a checkpoint's safetensors files hold, from their headers alone. Pure but for reading the files."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WIDE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_OTHERS = {"I8": "int8", "U8": "uint8", "I32": "int32", "I64": "int64", "I16": "int16", "F8_E4M3": "float8_e4m3fn"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    dtype: str
    """As safetensors names it."""
    values: int
    bytes: int


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's ``*.safetensors``, by name; empty where there are none."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                values = 1
                for size in entry["shape"]:
                    values *= size
                found[name] = Tensor(entry["dtype"], values, end - start)
    return found


def loaded_bytes(tensors: Mapping[str, Tensor], dtype: str, *, tied: bool) -> dict[str, int]:
    """Bytes by type that the tensors take once they are loaded: floating-point weights in the type ``dtype`` that is
    computed in, all else as it is stored; a head that is ``tied`` to the embeddings is not counted again."""
    found: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if tied and name.startswith("lm_head."):
            continue
        if tensor.dtype in _WIDE and not _is_scale(name):
            found[dtype] += tensor.values * _ITEM_BYTES[dtype]
        else:
            found[_WIDE.get(tensor.dtype) or _OTHERS.get(tensor.dtype, tensor.dtype.lower())] += tensor.bytes
    return dict(found)


def bytes_of(tensors: Mapping[str, Tensor], weights: Collection[str], dtype: str) -> int:
    """Bytes that these weights take once they are loaded, with what belongs to them: scales, zero points, shapes."""
    modules = {name.rpartition(".")[0] for name in weights}
    own = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] in modules}
    biasless = {name: tensor for name, tensor in own.items() if not name.endswith(".bias")}
    return sum(loaded_bytes(biasless, dtype, tied=False).values())


def _is_scale(name: str) -> bool:
    return any(part in name.rpartition(".")[2] for part in ("scale", "zero", "absmax", "quant"))
