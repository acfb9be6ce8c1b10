"""What a checkpoint's safetensors files hold, from their headers alone. Pure but for reading the files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from pytest_quant.errors import UsageError

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WIDE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_OTHERS = {"I8": "int8", "U8": "uint8", "I32": "int32", "I64": "int64", "I16": "int16", "F8_E4M3": "float8_e4m3fn"}
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    dtype: str
    """As safetensors names it."""
    values: int
    bytes: int


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model's safetensors files, by name; empty where there are none. :class:`UsageError` where one
    of them is missing, cut short, or something else."""
    return {name: tensor for path in files(folder) for name, tensor in _tensors(path).items()}


def files(folder: Path) -> list[Path]:
    """The files that hold the model: those that the index names, else ``model.safetensors``, else all. Some
    repositories hold the weights twice. :class:`UsageError` where the index is none."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return [folder / name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise _broken(index, f"no index of files ({type(error).__name__}: {error})") from None
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def _tensors(path: Path) -> dict[str, Tensor]:
    """Of one file: 8 bytes with the header's length, the header in JSON, then the values (the safetensors format)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            if first == _POINTER[:8]:
                raise _broken(path, "a pointer of Git LFS, not the weights that it stands for")
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > size - 8:
                raise _broken(path, f"no safetensors file, or one that was cut short: it has {size:,} bytes")
            header = json.loads(file.read(length))
        found = {
            name: Tensor(entry["dtype"], prod(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
    except FileNotFoundError:
        raise _broken(path, "missing, though the model's index names it") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError) as error:
        raise _broken(path, f"no safetensors file ({type(error).__name__})") from None
    if needed > size:
        raise _broken(path, f"cut short: it has {size:,} of {needed:,} bytes")
    return found


def _broken(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} is {what}; get the model's files again (git lfs pull, or hf download)")


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
