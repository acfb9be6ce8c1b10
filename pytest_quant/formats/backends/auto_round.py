"""auto-round: weights rounded by sign gradient descent."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import NotMeasured, Unsupported, UsageError
from pytest_quant.formats.backend import Asked, Backend, FromPretrained, Stored
from pytest_quant.formats.format import Format, QuantizationArgs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GROUP = 128
_ITERS = 200
_HOMES = ("auto_round", "auto_round_extension", "auto_round_kernel", "gptqmodel")
"""Packages of the kernels that auto-round chooses from."""
_TORCH_KERNELS = ("auto_round:torch", "auto_round:torch_zp")


class AutoRound(Backend):
    """Makes checkpoints with auto-round and loads them through transformers, with the kernel that auto-round chooses.

    ``iters`` of a format are the steps for each block: 200, as in auto-round, unless told otherwise; 0 rounds to
    nearest, with scales that are searched for. ``group_size`` must divide the inputs of every layer.
    """

    name = "auto-round"
    requires = ("torch", "transformers", "accelerate", "safetensors", "auto-round>=0.16")
    install = "'pytest-quant[auto-round]'"
    recipe = ("iters",)
    makes = True
    formats = (
        Format(
            "int4@auto-round",
            QuantizationArgs(4, "int", "group", group_size=_GROUP),
            "auto-round",
            "int4",
            scale_bits=(16 + 4) / _GROUP,  # a scale in FP16 and a zero point of 4 bits for each group
            parameters=MappingProxyType({"symmetric": True}),
            from_checkpoint=True,
            instead=("int4@quanto",),
        ),
    )

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        if asked.checkpoint is None:
            raise UsageError(
                f"{asked.format.name} is loaded from a checkpoint that auto-round made of {asked.model!r}, and none "
                f"was given: give its folder or hub id"
            )
        import torch
        from transformers import PretrainedConfig

        config = PretrainedConfig.get_config_dict(asked.checkpoint)[0].get("quantization_config") or {}
        if (found := config.get("quant_method")) != "auto-round":
            raise UsageError(f"the checkpoint {asked.checkpoint!r} is {found or 'not quantized'}, not auto-round's")
        dtype = getattr(torch, asked.compute_dtype)
        with _quiet(lambda text: None), _computing_in(asked.compute_dtype):
            model = from_pretrained(asked.checkpoint, dtype=dtype)
        if model.dtype is not dtype:  # auto-round casts the whole model to what its kernel computes in
            kernels = sorted({type(module).__qualname__ for module in model.modules() if _kernel(module)})
            raise Unsupported(
                asked=f"{asked.format.name} computing in {asked.compute_dtype} on {asked.place}",
                found=f"auto-round's kernel {', '.join(kernels)}, which computes in {_named(model.dtype)}",
                needed='reference="bf16" or reference="fp16", whose type quantized formats then compute in',
            )
        return model

    def stored(self, module: Any) -> Stored | None:
        if not _kernel(module):
            return None
        weights = _size(module, "in") * _size(module, "out")
        packed = module.qweight.numel() * module.qweight.element_size() * 8 / weights
        bits = int(module.bits)
        if module.scales.numel():  # else the kernel has packed scales and zero points with the weights
            group, symmetric, exact = weights // module.scales.numel(), _constant(module.qzeros), packed == bits
        else:
            group, symmetric, exact = int(module.group_size), not module.asym, packed >= bits
        if not exact:
            return None
        return Stored(bits, "int", {"group_size": group, "symmetric": symmetric})

    def weight(self, module: Any, name: str) -> Any:
        if name == "weight" and _kernel(module):
            return [getattr(module, part, None) for part in ("qweight", "qzeros", "scales", "g_idx")]
        return super().weight(module, name)

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        """auto-round leaves the head alone by itself."""
        return f"AutoRound(..., layer_config={json.dumps(_left_out(names))})"

    def calibrates(self, format: Format) -> bool:
        """Always: the search for scales looks at activations too."""
        return True

    def make(
        self, asked: Asked, samples: Sequence[NDArray[np.int64]], folder: Path, tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        recipe = _recipe(asked.format)
        model = AutoModelForCausalLM.from_pretrained(
            asked.model,
            dtype=getattr(torch, asked.compute_dtype),
            device_map={"": asked.place},
            use_safetensors=True,
            **asked.opening,
        )
        _check_groups(model, asked, recipe["group_size"])
        tokenizer = AutoTokenizer.from_pretrained(asked.model, **asked.opening)
        with _quiet(tell):
            _quantize(model, tokenizer, asked, recipe, samples, folder)
        if not (folder / "config.json").is_file():
            raise NotMeasured(f"auto-round wrote no config.json for {asked.format.name}")
        return {
            "method": "auto-round",
            **recipe,
            "ignored": [_head(model), *asked.excluded],
            "samples": len(samples),
            "tokens_each": len(samples[0]),
        }


def _recipe(format: Format) -> dict[str, Any]:
    """Bits, group size, symmetry and iterations; :class:`UsageError` for a parameter that is none of ours."""
    told = dict(format.parameters)
    recipe = {
        "bits": format.weights.num_bits,
        "group_size": told.pop("group_size", _GROUP),
        "symmetric": told.pop("symmetric", True),
        "iters": told.pop("iters", _ITERS),
    }
    if told:
        raise UsageError(f"{format.name} has no parameter {', '.join(told)}: group_size, symmetric and iters are known")
    if type(recipe["iters"]) is not int or recipe["iters"] < 0:
        raise UsageError(f"{format.name}: iters={recipe['iters']!r} is no number of steps")
    return recipe


def _quantize(
    model: Any,
    tokenizer: Any,
    asked: Asked,
    recipe: Mapping[str, Any],
    samples: Sequence[NDArray[np.int64]],
    folder: Path,
) -> None:
    """Into ``folder``; auto-round makes a folder of its own in there."""
    import torch
    from auto_round import AutoRound as Quantizer

    quantizer = Quantizer(
        model,
        tokenizer=tokenizer,
        scheme=f"W{recipe['bits']}A16",
        group_size=recipe["group_size"],
        sym=recipe["symmetric"],
        iters=recipe["iters"],
        layer_config=_left_out(asked.excluded),
        dataset=[torch.from_numpy(sample)[None] for sample in samples],
        nsamples=len(samples),
        seqlen=min(len(sample) for sample in samples),
        device_map=asked.place,
        amp=asked.compute_dtype != "float32",  # or it would quantize BF16 weights
    )
    quantizer.quantize_and_save(str(folder), format="auto_round")
    for inner in [path for path in folder.iterdir() if path.is_dir() and (path / "config.json").is_file()]:
        for file in inner.iterdir():
            shutil.move(file, folder / file.name)
        inner.rmdir()


def _left_out(names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Modules that are not to be quantized, in auto-round's words."""
    return {name: {"bits": 16} for name in names}


def _check_groups(model: Any, asked: Asked, group: int) -> None:
    """:class:`UsageError` where groups do not divide a layer's inputs."""
    import torch

    head = _head(model)
    odd = {
        name: module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in (head, *asked.excluded) and module.in_features % group
    }
    if odd:
        name, inputs = next(iter(odd.items()))
        raise UsageError(
            f"groups of {group} do not divide the {inputs} inputs of {name} (nor those of {len(odd) - 1} other "
            f'layers); use a format with others: variant("{asked.format.name}", "NAME", group_size=64)'
        )


def _head(model: Any) -> str:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), "")


def _kernel(module: Any) -> bool:
    """Whether it is a quantized layer of those that auto-round chooses from."""
    return type(module).__module__.partition(".")[0] in _HOMES and all(
        hasattr(module, name) for name in ("qweight", "qzeros", "scales", "bits")
    )


def _size(module: Any, side: str) -> int:
    """Inputs or outputs: kernels differ in how they spell it."""
    return int(getattr(module, f"{side}_features", None) or getattr(module, f"{side}features"))


def _constant(zeros: Any) -> bool:
    return zeros.numel() == 0 or bool((zeros == zeros.flatten()[0]).all())


def _named(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def _computing_in(dtype: str) -> Iterator[None]:
    """Let auto-round's torch kernels compute in ``dtype``: they unpack the weight to the type of their input, whatever
    it is, but are listed for 16-bit types only, and without this auto-round would cast the whole model to FP16."""
    from auto_round.inference.backend import BackendInfos

    listed = {name: BackendInfos[name].compute_dtype for name in _TORCH_KERNELS if name in BackendInfos}
    for name, dtypes in listed.items():
        BackendInfos[name].compute_dtype = [*dtypes, dtype]
    try:
        yield
    finally:
        for name, dtypes in listed.items():
            BackendInfos[name].compute_dtype = dtypes


@contextlib.contextmanager
def _quiet(tell: Callable[[str], None]) -> Iterator[None]:
    """Without auto-round's log; its progress bars go to ``tell``."""
    from auto_round.logger import logger

    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(_Bars(tell)):
            yield
    finally:
        logger.setLevel(level)


class _Bars(io.TextIOBase):
    """Where progress bars are drawn: what stands before the bar goes to ``tell``."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if said := text.strip().partition(":")[0].strip("\r "):
            self._tell(said)
        return len(text)


BACKEND = AutoRound()
