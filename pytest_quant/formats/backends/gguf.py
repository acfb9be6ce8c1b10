"""GGUF: files of llama.cpp, unpacked on loading."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored, installed
from pytest_quant.formats.format import Format, QuantizationArgs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_BITS = 8
_TENSORS = "_gguf_tensors"
_WIDE = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the file, from which a module's weight was unpacked."""

    file: str
    offset: int
    nbytes: int
    columns: int
    """Weights in a row: blocks never span two rows."""
    type: str
    """ggml's name: ``Q4_K``, ``F16``."""

    @property
    def num_bits(self) -> int:
        """Of one weight, its share of the block's scales not counted: ggml's types are named so."""
        return int(re.findall(r"\d+", self.type)[0])

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """As they are in the file, mapped (copied on write, as torch wants it)."""
        import numpy as np

        return np.memmap(self.file, np.uint8, "c", self.offset, (self.nbytes,))

    def some_rows(self) -> NDArray[np.float32]:
        """The first, the middle and the last row, unpacked."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType[self.type]
        weights, size = GGML_QUANT_SIZES[kind]
        rows = self.bytes.reshape(-1, self.columns // weights * size)
        unpacked: NDArray[np.float32] = dequantize(rows[[0, len(rows) // 2, -1]], kind)
        return unpacked


class Gguf(Backend):
    """Opens the file through transformers, which unpacks it: the model computes with the file's numbers in the compute
    type, and takes that type's memory.

    So a loaded weight is not narrow, and what is proven is the file: the type and the bytes of the tensor that each
    weight was unpacked from, and that the weight holds this tensor's numbers. Any quantized ggml type of at most 8 bits
    is the format; a variant with ``ggml_type="Q8_0"`` wants that one.
    """

    name = "gguf"
    requires = ("torch", "transformers", "accelerate", "safetensors", "gguf>=0.10")
    install = "'pytest-quant[gguf]'"
    unpacks = True
    formats = (
        Format(
            "gguf",
            QuantizationArgs(_MOST_BITS, "int", "group", group_size=32),
            "gguf",
            "int8",
            scale_bits=0.5,
            covers_rest=True,
            from_checkpoint=True,
        ),
    )

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        import torch

        file = find(asked)
        architecture, tensors = _read(file)
        dtype = getattr(torch, asked.compute_dtype)
        with _names_once(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be turned off
            model = from_pretrained(str(file.parent), gguf_file=file.name, dtype=dtype, **_unpacking())
            _attach(model, architecture, tensors)
        return model

    def stored(self, module: Any) -> Stored | None:
        weights = {name: getattr(module, name, None) for name in _of(module)}
        matrices = {name: weight for name, weight in weights.items() if weight is not None and weight.ndim >= 2}
        tensors = [(weight, tensor) for name, weight in matrices.items() for tensor in _of(module)[name]]
        if not tensors or not all(_holds(weight, tensor) for weight, tensor in tensors):
            return None
        widest = max((tensor for _, tensor in tensors), key=lambda tensor: tensor.num_bits)
        if widest.type in _WIDE:
            return Stored(widest.num_bits, "float", {"ggml_type": widest.type})
        dtype = str(tensors[0][0].dtype).removeprefix("torch.")
        kind = "float" if "FP" in widest.type else "int"
        return Stored(widest.num_bits, kind, {"ggml_type": widest.type, "runs": f"dequantized to {dtype}"})

    def realizes(self, stored: Stored, format: Format) -> bool:
        return stored.num_bits <= format.weights.num_bits

    def weight(self, module: Any, name: str) -> Any:
        """The bytes in the file that the weight was unpacked from; the weight itself where it is not from the file."""
        import torch

        parts = _of(module).get(name)
        return [torch.from_numpy(part.bytes) for part in parts] if parts else super().weight(module, name)

    def whole(self, model: Any) -> Any:
        """The bytes of the file's tensors."""
        import torch

        found = {part for module in model.modules() for parts in _of(module).values() for part in parts}
        return [torch.from_numpy(part.bytes) for part in found] if found else model

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        """Options of llama.cpp's ``llama-quantize``, whose patterns are searched for in its own names of the tensors.
        The head has an option of its own (``--output-tensor-type``)."""
        patterns = [rf"^{re.escape(tensor)}\.weight$=f16" for name in names for tensor in _tensor_names(name)]
        options = [part for pattern in patterns for part in ("--tensor-type", shlex.quote(pattern))]
        return " ".join(["llama-quantize", *options, "..."])

    def make(
        self, asked: Asked, samples: Sequence[NDArray[np.int64]], folder: Path, tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        raise Unsupported(
            asked=f"making a GGUF file of {asked.model}",
            found="the package gguf, which llama.cpp's own programs are not in",
            needed=(
                f"llama.cpp: convert_hf_to_gguf.py and llama-quantize, and the file then named by "
                f'quant(checkpoints={{"{asked.format.name}": FILE}}) or --quant-checkpoints={asked.format.name}=FILE'
            ),
        )


def _tensor_names(module: str) -> list[str]:
    """What llama.cpp calls the weight of a module: several names where its architectures differ, of which a file has
    one. :class:`Unsupported` for a module that it has no tensor for, as one expert of many."""
    if installed("gguf") is None:
        raise Unsupported(f"llama.cpp's name of {module}", "gguf not installed", "pip install 'pytest-quant[gguf]'")
    from gguf import TENSOR_NAMES, TensorNameMap

    block = next(iter(re.findall(r"\.(\d+)\.", module)), "")
    found = {
        TENSOR_NAMES[tensor].format(bid=block)
        for tensor, keys in (*TensorNameMap.block_mappings_cfg.items(), *TensorNameMap.mappings_cfg.items())
        if any(key.replace("{bid}", block) == module for key in keys)
    }
    if not found:
        raise Unsupported(
            asked=f"llama-quantize to leave {module} in 16 bits",
            found="no tensor of llama.cpp that is made of this module alone",
            needed="its name in the GGUF file, for --tensor-type",
        )
    return sorted(found)


def find(asked: Asked) -> Path:
    """The file that is meant by the checkpoint: a ``.gguf`` file, or the only one of a folder or of a hub id;
    ``owner/name/file.gguf`` names one of several on the hub. :class:`UsageError` with the candidates otherwise."""
    place = asked.checkpoint
    if place is None:
        raise UsageError(
            f"{asked.format.name} is loaded from a GGUF file, which llama.cpp makes of {asked.model!r}, and none was "
            f"given: give the file, or a folder or hub id that has one"
        )
    path = Path(place)
    if path.is_file():
        return path
    if path.is_dir():
        return path / _only(sorted(file.name for file in path.glob("*.gguf")), place)
    from huggingface_hub import hf_hub_download

    owner, _, rest = place.partition("/")
    name, _, inside = rest.partition("/")
    if not name or path.is_absolute() or place.startswith("."):
        raise UsageError(f"{place}: no such file or folder; give a .gguf file, or a folder or hub id that has one")
    hub = f"{owner}/{name}"
    try:
        return Path(hf_hub_download(hub, inside or _only(_on_the_hub(hub), hub)))
    except UsageError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UsageError(f"{place}: no such file or folder, and the hub does not give it: {said}") from error


def _on_the_hub(hub: str) -> list[str]:
    """The GGUF files of a repository; of its part that was downloaded before where the hub cannot be asked."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        return sorted(name for name in HfApi().list_repo_files(hub) if name.endswith(".gguf"))
    except Exception:
        folder = Path(snapshot_download(hub, local_files_only=True))
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf"))


def _only(names: list[str], place: str) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError(f"{place}: has no .gguf file; give the file, or a folder or hub id that has one")
    some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise UsageError(f"{place}: has {len(names)} .gguf files; give one of them, {place}/{names[0]} say: {some}")


def _read(file: Path) -> tuple[str, Mapping[str, _Tensor]]:
    """Architecture and tensors of a file. :class:`UsageError` for one that cannot be read, or is a part of a model."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
    except Exception as error:
        said = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UsageError(f"{file}: no readable GGUF file: {said}; download or convert it again") from error
    parts = reader.fields.get("split.count")
    if parts is not None and int(parts.contents()) > 1:
        raise UsageError(
            f"{file}: is one of {parts.contents()} parts, which transformers cannot open; merge them with llama.cpp's "
            f"llama-gguf-split --merge"
        )
    tensors = {
        str(found.name): _Tensor(
            str(file), int(found.data_offset), int(found.n_bytes), int(found.shape[0]), found.tensor_type.name
        )
        for found in reader.tensors
    }
    return architecture, tensors


def _unpacking() -> dict[str, Any]:
    """Have every weight unpacked: without this, that depends on a kernel that the hub may give or not. transformers
    before ``GgufConfig`` does nothing else."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextlib.contextmanager
def _names_once() -> Iterator[None]:
    """Make gguf's table of tensor names once for a model: transformers asks for it at each of the model's modules, and
    that takes most of the time of opening a small file."""
    import gguf

    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made


def _attach(model: Any, architecture: str, tensors: Mapping[str, _Tensor]) -> None:
    """Note at each module which tensors of the file its weights were unpacked from."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    names = get_gguf_hf_weights_map(model, processor, model_type=architecture)
    for name, tensor in tensors.items():
        if name not in names:
            continue
        owner, _, parameter = names[name].rpartition(".")
        module = model.get_submodule(owner)
        known = dict(_of(module))
        known[parameter] = (*known.get(parameter, ()), tensor)
        setattr(module, _TENSORS, known)


def _of(module: Any) -> Mapping[str, tuple[_Tensor, ...]]:
    """The tensors of each of its weights."""
    return getattr(module, _TENSORS, None) or {}


def _holds(weight: Any, tensor: _Tensor) -> bool:
    """Whether rows of the file's tensor are rows of the weight, exactly; in the order that the architecture wants:
    loading may permute the rows, the columns, or turn the matrix."""
    import torch

    if not weight.is_floating_point():
        return False
    rows = torch.from_numpy(tensor.some_rows()).to(weight)
    flat = weight.detach().reshape(-1, weight.shape[-1])
    turned = [weight.detach().T] if weight.ndim == 2 else []
    return any(_has_rows(matrix, rows) for matrix in (flat, *turned) if matrix.shape[1] == rows.shape[1])


def _has_rows(matrix: Any, rows: Any) -> bool:
    import torch

    lowest, highest = matrix.aminmax(dim=1)
    for row in rows:
        alike = matrix[(lowest == row.min()) & (highest == row.max())]
        if not any(torch.equal(one.sort().values, row.sort().values) for one in alike):
            return False
    return True


BACKEND = Gguf()
