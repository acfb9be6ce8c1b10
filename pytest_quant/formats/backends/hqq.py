"""HQQ: half-quadratic quantization, without calibration."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored
from pytest_quant.formats.format import Format, QuantizationArgs

_GROUP = 64
# A scale and a zero point for each group, both in the compute type.
_SCALE_BITS = 2 * 16 / _GROUP


class Hqq(Backend):
    """Loads the base model and replaces its linear layers by hqq's own.

    Not through transformers: ``HqqConfig`` is refused since transformers 5 (``HQQ is not available yet``). Zero points
    are optimized as hqq does by default: up to 20 steps of its proximal solver, in FP32 (on CUDA in FP16).
    """

    name = "hqq"
    requires = ("torch", "transformers", "accelerate", "safetensors", "hqq>=0.2.8")
    install = "'pytest-quant[hqq]'"
    formats = (
        Format(
            "int4@hqq",
            QuantizationArgs(4, "int", "group", group_size=_GROUP, symmetric=False),
            "hqq",
            "int4",
            scale_bits=_SCALE_BITS,
            wide_scale_bits=_SCALE_BITS,
            parameters=MappingProxyType({"group_size": _GROUP, "axis": 1}),
        ),
    )

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        import torch
        from hqq.core.quantize import HQQLinear

        dtype = getattr(torch, asked.compute_dtype)
        model = from_pretrained(asked.model, dtype=dtype)
        config = _config(asked.format)
        group = config["weight_quant_params"]["group_size"]
        head = model.get_output_embeddings()
        for name, module in list(model.named_modules()):
            # The type itself: a subclass may compute something else with its weight.
            if type(module) is not torch.nn.Linear or module is head or name in asked.excluded:
                continue
            if module.weight.numel() % group:
                continue  # hqq cannot; the proof counts what was left out
            place = str(module.weight.device)
            if place == "meta":
                raise Unsupported(
                    asked=f"{asked.format.name} with a device_map that offloads {name}",
                    found="hqq, which quantizes weights where they are",
                    needed="more memory, or a device_map without cpu and disk",
                )
            model.set_submodule(name, HQQLinear(module, config, compute_dtype=dtype, device=place))
        return model.requires_grad_(False)

    def stored(self, module: Any) -> Stored | None:
        from hqq.core.quantize import HQQLinear

        if not isinstance(module, HQQLinear) or not module.ready:
            return None
        meta = module.meta
        weights = meta["shape"].numel()
        # One zero point and scale for each group: their number says how long the groups are.
        groups = meta["zero"].numel()
        if meta["scale"].numel() != groups or weights % groups:
            return None
        parameters = {
            "group_size": weights // groups,
            "axis": 1 if meta["scale"].shape[1] == 1 else 0,
            "compute_dtype": str(meta["scale"].dtype).removeprefix("torch."),
        }
        return Stored(int(meta["nbits"]), "int", parameters)

    def weight(self, module: Any, name: str) -> Any:
        from hqq.core.quantize import HQQLinear

        if name == "weight" and isinstance(module, HQQLinear):
            return [module.W_q, module.meta]
        return super().weight(module, name)


def _config(format: Format) -> dict[str, Any]:
    """The format in hqq's words; :class:`UsageError` for what hqq does not know."""
    from hqq.core.quantize import hqq_base_quant_config

    try:
        config = hqq_base_quant_config(nbits=format.weights.num_bits, **format.parameters)
    except (AssertionError, TypeError) as error:
        raise UsageError(
            f"hqq cannot make {format.name} of {format.weights.num_bits} bits with {dict(format.parameters)}: {error}"
        ) from error
    return dict(config)


BACKEND = Hqq()
