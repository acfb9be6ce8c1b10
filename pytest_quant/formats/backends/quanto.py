"""optimum-quanto: weights in int8, int4 and fp8."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_quant.errors import Unsupported
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored
from pytest_quant.formats.backends.skeleton import excluding, stay_wide
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware import Device

_WEIGHTS = {"int8-weight-only@quanto": "int8", "int4@quanto": "int4", "fp8-weight-only@quanto": "float8"}
_GROUPS = (128, 96, 64, 32)
# Scales (of rows) and shifts (of groups, beside their scales) are in the compute type.
_ROW_BITS = 16
_SCALE_BITS = 2 * 16 / _GROUPS[0]


class Quanto(Backend):
    """Quantizes on loading, through transformers' ``QuantoConfig``.

    ``int4`` chooses its groups itself: 128 weights along the input, or the next smaller multiple of 32 that divides it
    (96 for 576 inputs); one group a row where none does, or where a row has no more than 128. The proof tells which.
    """

    name = "quanto"
    requires = ("torch", "transformers", "accelerate", "safetensors", "optimum-quanto>=0.2.7")
    install = "'pytest-quant[quanto]'"
    formats = (
        Format(
            "int8-weight-only@quanto",
            QuantizationArgs(8, "int", "channel"),
            "quanto",
            "int8",
            row_bits=_ROW_BITS,
            wide_row_bits=_ROW_BITS,
            parameters=MappingProxyType({"activations": None, "group_size": None, "symmetric": True}),
            instead=("int8-weight-only",),
        ),
        Format(
            "int4@quanto",
            QuantizationArgs(4, "int", "group", group_size=_GROUPS[0], symmetric=False),
            "quanto",
            "int4",
            scale_bits=_SCALE_BITS,
            wide_scale_bits=_SCALE_BITS,
            group_sizes=_GROUPS,
            parameters=MappingProxyType({"activations": None, "symmetric": False}),
            instead=("int4", "int4@hqq"),
        ),
        Format(
            "fp8-weight-only@quanto",
            QuantizationArgs(8, "float", "channel"),
            "quanto",
            "fp8",
            row_bits=_ROW_BITS,
            wide_row_bits=_ROW_BITS,
            parameters=MappingProxyType({"activations": None, "group_size": None, "dtype": "float8_e4m3fn"}),
            instead=("fp8-weight-only",),
        ),
    )

    def trouble(self, format: Format, device: Device) -> Unsupported | None:
        return no_compiler(format, device) if format.weights.num_bits < 8 else None

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        import torch
        from transformers import QuantoConfig

        weights = _WEIGHTS[asked.format.variant_of or asked.format.base]
        config = QuantoConfig(weights=weights, modules_to_not_convert=stay_wide(asked))
        model = from_pretrained(asked.model, dtype=getattr(torch, asked.compute_dtype), quantization_config=config)
        if asked.format.weights.num_bits < 8:
            _run_in_inference_mode(model)
        return model

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        return excluding("QuantoConfig", "modules_to_not_convert", names, head)

    def stored(self, module: Any) -> Stored | None:
        """Not frozen yet, a module still holds wide weights and quantizes them at each call: not in the format."""
        from optimum.quanto import QModuleMixin, QTensor

        weight = getattr(module, "weight", None)
        if not isinstance(module, QModuleMixin) or not isinstance(weight, QTensor):
            return None
        kind = weight.qtype
        shifted = any(hasattr(weight, name) for name in ("_shift", "_scale_shift"))
        activations = module.activation_qtype
        parameters = {
            "activations": None if activations is None else activations.name.removeprefix("q"),
            "group_size": _group_size(weight),
            "symmetric": not shifted,
            "compute_dtype": str(weight.dtype).removeprefix("torch."),
            "tensor": type(weight).__name__,
        }
        if kind.is_floating_point:
            parameters["dtype"] = str(kind.dtype).removeprefix("torch.")
        return Stored(int(kind.bits), "float" if kind.is_floating_point else "int", parameters)


def _run_in_inference_mode(model: Any) -> None:
    """quanto transposes a packed weight by unpacking it, which torch takes for a view and refuses in inference mode;
    so the layers that hold one leave that mode while they multiply. The numbers are the same."""
    import torch
    from optimum.quanto import QLinear

    def forward(layer: Any, inputs: Any) -> Any:
        grad = torch.is_grad_enabled()  # which inference_mode(False) would switch on
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            return type(layer).forward(layer, inputs)

    for module in model.modules():
        if isinstance(module, QLinear):
            module.forward = partial(forward, module)


def _group_size(weight: Any) -> int | str | None:
    """Weights along the input that share a scale, from how many scales there are; ``None`` for a whole row."""
    pairs = getattr(weight, "_scale_shift", None)
    scales = weight._scale.numel() if pairs is None else pairs.numel() // 2
    rows, columns = weight.shape
    if scales % rows:
        return "tensor" if scales == 1 else f"{scales} scales"
    return None if scales == rows else columns * rows // scales


def no_compiler(format: Format, device: Device) -> Unsupported | None:
    """The skip where quanto could not unpack 4 or 2 bits: it compiles that for the device at its first use, and keeps
    it beside itself."""
    kinds = {"cpu": ("cpp", os.environ.get("CXX", "c++")), "cuda": ("cuda", "nvcc")}
    if device.kind not in kinds:
        return None
    name, compiler = kinds[device.kind]
    made = f"optimum/quanto/library/extensions/{name}/build/quanto_{name}.so"
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    there = shutil.which(compiler) or (
        device.kind == "cuda" and any(home and shutil.which("nvcc", path=f"{home}/bin") for home in homes)
    )
    if there or Path(str(distribution("optimum-quanto").locate_file(made))).exists():
        return None
    return Unsupported(
        asked=f"{format.name} (quanto)",
        found=f"no {compiler}, with which quanto compiles its unpacking when it is first used",
        needed=f"{compiler} on the PATH",
    )


BACKEND = Quanto()
