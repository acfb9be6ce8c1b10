"""gptqmodel: GPTQ and AWQ, made and loaded; AutoAWQ's and auto-gptq's checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import ProofFailed, UsageError
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware import Device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The usual group of 128 weights has a scale of 16 bits and a zero point of 4.
_USUAL_SCALE_BITS = (16 + 4) / 128
_TENSORS = ("qweight", "scales", "qzeros", "g_idx", "g_idx_sort_indices")
"""What holds a weight, by attribute: all that a kernel keeps but the bias and constants."""


def _format(method: str, *, symmetric: bool) -> Format:
    return Format(
        method,
        QuantizationArgs(4, "int", "group", symmetric=symmetric),
        backend="gptqmodel",
        numeric="int4",
        scale_bits=_USUAL_SCALE_BITS,
        group_sizes=(128, 64, 32),
        parameters=MappingProxyType({"method": method}),
        from_checkpoint=True,
        instead=("int4@quanto",),
    )


class Gptqmodel(Backend):
    """Loads checkpoints through transformers, whose kernels are gptqmodel's, and makes them.

    A checkpoint may have any group size, be symmetric or not, and in any order of activations: the proof tells
    ``group_size``, ``sym`` and (GPTQ) ``desc_act`` as the tensors show them, and a variant of a format demands them.
    """

    name = "gptqmodel"
    # gptqmodel's own requirements are newer than what it works with, so that pip cannot check them.
    requires = ("torch", "transformers", "accelerate", "safetensors", "optimum>=1.24", "gptqmodel>=7")
    install = "'pytest-quant[transformers]' 'optimum>=1.24' 'gptqmodel>=7' (after torch, with --no-build-isolation)"
    makes = True
    formats = (_format("gptq", symmetric=True), _format("awq", symmetric=False))

    def computes_in(self, format: Format, device: Device, compute_dtype: str) -> str:
        return "bfloat16" if "avx512_bf16" in device.features else compute_dtype  # the fused kernels round to it

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        import torch
        from transformers import AwqConfig, GPTQConfig

        if asked.checkpoint is None:
            raise UsageError(
                f"{asked.format.name} is loaded from a checkpoint of its own, and none is given: name a folder or a "
                f"hub id with {_method(asked.format).upper()} weights made from {asked.model!r}"
            )
        _check_config(asked.checkpoint, _method(asked.format))
        make = {"gptq": GPTQConfig, "awq": AwqConfig}[_method(asked.format)]
        with silent(), warnings.catch_warnings():
            # transformers warns that all but the kernel comes from the checkpoint, as it should.
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # of optimum
            # The kernel that gptqmodel chooses multiplies in the type that is asked for. Its fused CPU kernels are
            # faster in float32 only because they round to bfloat16, and the one of GPTQ takes every zero point for the
            # middle of the range, whatever the file says.
            model = from_pretrained(
                asked.checkpoint,
                dtype=getattr(torch, asked.compute_dtype),
                quantization_config=make(bits=asked.format.weights.num_bits, backend="auto"),
            )
        if asked.place == "cpu":
            _without_compiler(model)
        return model

    def stored(self, module: Any) -> Stored | None:
        from gptqmodel.nn_modules.qlinear import BaseQuantLinear

        if not isinstance(module, BaseQuantLinear):
            return None
        methods = {method.value for method in type(module).SUPPORTS_METHODS} & {"gptq", "awq"}
        qweight, scales = getattr(module, "qweight", None), getattr(module, "scales", None)
        if len(methods) != 1 or qweight is None or scales is None:
            return None
        # Not the module's own sym, desc_act and bits: optimum passes the first two in the wrong order, and all three
        # come from the config. Kernels repack the weight, but into as many bits.
        weights = module.in_features * module.out_features
        bits = round(8 * qweight.numel() * qweight.element_size() / weights)
        groups = max(1, round(scales.numel() / module.out_features))
        method = methods.pop()
        parameters: dict[str, Any] = {
            "method": method,
            "group_size": -(-module.in_features // groups),
            "sym": _is_symmetric(module, bits),
        }
        if method == "gptq":
            parameters["desc_act"] = _is_reordered(module)
        return Stored(bits, "int", parameters)

    def weight(self, module: Any, name: str) -> Any:
        if getattr(module, "qweight", None) is None:
            return super().weight(module, name)
        return [getattr(module, tensor, None) for tensor in _TENSORS]

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        """What makes a checkpoint so. gptqmodel leaves the head alone by itself; ``dynamic`` is not read by
        transformers, which loads such a checkpoint only if its config names the modules too, as :meth:`make` does."""
        return f"QuantizeConfig(..., dynamic={json.dumps(left_out(names))})"

    def calibrates(self, format: Format) -> bool:
        return True

    def make(
        self, asked: Asked, samples: Sequence[NDArray[np.int64]], folder: Path, tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        from pytest_quant.formats.backends import gptqmodel_making

        return gptqmodel_making.make(asked, samples, folder, tell)


def left_out(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Modules that are not to be quantized, in the words of gptqmodel's ``dynamic``."""
    return {f"-:^{re.escape(name)}$": {} for name in names}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without gptqmodel's banner, log lines and progress bars, which go to standard output, from its import on."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _method(format: Format) -> str:
    return str(format.parameters["method"])


def _check_config(checkpoint: str, method: str) -> None:
    """:class:`UsageError` where a checkpoint is of another method or none, :class:`ProofFailed` where it is a mock."""
    from transformers import PretrainedConfig

    wanted = f"give one with {method.upper()} weights"
    config = PretrainedConfig.get_config_dict(checkpoint)[0].get("quantization_config")
    if not config:
        raise UsageError(
            f"the checkpoint {checkpoint!r} is not quantized: its config.json has no quantization_config; {wanted} "
            f"(where auto-gptq wrote a quantize_config.json only, copy that into it)"
        )
    if config.get("quant_method") != method:
        raise UsageError(f"the checkpoint {checkpoint!r} is {config.get('quant_method')}, not {method}; {wanted}")
    if (config.get("meta") or {}).get("mock_quantization"):
        raise ProofFailed(
            f"the checkpoint {checkpoint!r} was made with gptqmodel's mock_quantization, which calibrates nothing; "
            f"make it again without"
        )
    skipped = sorted(key for key in config.get("dynamic") or {} if key.startswith("-"))
    if skipped and not (config.get("modules_in_block_to_quantize") or config.get("modules_to_not_convert")):
        raise UsageError(
            f"the checkpoint {checkpoint!r} leaves modules out ({skipped[0]} in dynamic), which transformers does not "
            f"read: in its quantization_config, name those that are quantized as modules_in_block_to_quantize (GPTQ) "
            f"or those that are not as modules_to_not_convert (AWQ)"
        )


def _without_compiler(model: Any) -> None:
    """gptqmodel's kernel for other than 4 bits compiles its unpacking in each layer anew: minutes on a CPU."""
    for module in model.modules():
        vars(module).pop("dequantize_weight", None)  # compiled; the class has the function itself


def _is_symmetric(module: Any, bits: int) -> bool:
    """Whether every zero point is the middle of the range."""
    zeros = getattr(module, "qzeros", None)
    if zeros is None or zeros.numel() == 0:
        return True
    if zeros.is_floating_point():  # a fused kernel's offsets from the middle, after its first forward
        return not zeros.any().item()
    version = getattr(module, "qzero_format", None)
    # auto-gptq's files, and kernels that read them as they are, hold the zero point less one.
    middle = 2 ** (bits - 1) - (1 if version is not None and version() == 1 else 0)
    return bool((_unpacked(zeros, bits) == middle).all())


def _unpacked(packed: Any, bits: int) -> Any:
    """The numbers of ``bits`` bits that rows of integers hold, lowest first, as both layouts and all kernels do."""
    import numpy as np

    rows = packed.detach().cpu().contiguous().numpy()
    stream = np.unpackbits(rows.view(np.uint8).reshape(rows.shape[0], -1), axis=1, bitorder="little")
    stream = stream[:, : stream.shape[1] // bits * bits].reshape(-1, bits)
    return stream @ (1 << np.arange(bits))


def _is_reordered(module: Any) -> bool:
    """Whether the groups are not runs of neighbouring inputs."""
    order = getattr(module, "g_idx_sort_indices", None)  # Marlin sorts g_idx
    if order is not None and order.numel():
        return True
    groups = getattr(module, "g_idx", None)
    return groups is not None and bool((groups[1:] < groups[:-1]).any().item())


BACKEND = Gptqmodel()
