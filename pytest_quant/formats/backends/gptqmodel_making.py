"""Making GPTQ and AWQ checkpoints with gptqmodel."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.quiet import quiet
from pytest_quant.errors import NotMeasured, UsageError
from pytest_quant.formats.backend import Asked
from pytest_quant.formats.backends.gptqmodel import left_out, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GROUP_SIZES = (128, 64, 32)
_BITS = {"gptq": (2, 3, 4, 8), "awq": (4,)}
_SETTINGS = {"gptq": ("group_size", "sym", "desc_act"), "awq": ("group_size", "sym")}
_TOKENS_AT_ONCE = 2048
_CLIP_TOKENS_ON_CPU = 64
_CLIP_TOKENS = 512
"""Of gptqmodel, as of AutoAWQ."""


@dataclass(frozen=True)
class Plan:
    """What a checkpoint is made with."""

    method: str
    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    dtype: str
    """torch's name of the type of the base model's weights while they are quantized."""
    clip_tokens: int


def make(
    asked: Asked, samples: Sequence[NDArray[np.int64]], folder: Path, tell: Callable[[str], None]
) -> Mapping[str, Any]:
    """Quantize the base model into ``folder``; returns the recipe as it was carried out. :class:`UsageError` for
    parameters that cannot be, :class:`NotMeasured` where the library quantized something else."""
    inputs = _inputs(asked)
    plan = plan_of(asked, inputs)
    with silent(), quiet(), warnings.catch_warnings(), _enough_workers(), _pack_without_compiler(), _logs_elsewhere():
        warnings.simplefilter("ignore")
        return _made(asked, plan, samples, folder, tell, inputs)


def plan_of(asked: Asked, inputs: Mapping[str, int]) -> Plan:
    """The format's parameters over the defaults. ``inputs`` gives the input features of each layer to be quantized.

    Raises :class:`UsageError`.
    """
    given = dict(asked.format.parameters)
    method = given.pop("method")
    bits = asked.format.weights.num_bits
    if bits not in _BITS[method]:
        raise UsageError(f"{asked.format.name}: {method.upper()} has {_listed(_BITS[method])} bits, not {bits}")
    if unknown := sorted(set(given) - set(_SETTINGS[method])):
        raise UsageError(
            f"{asked.format.name}: gptqmodel cannot make {method.upper()} with {', '.join(unknown)}; its parameters "
            f"are {', '.join(_SETTINGS[method])}"
        )
    if not inputs:
        raise UsageError(f"{asked.model!r} has no layer that {asked.format.name} would quantize")
    narrow = method == "awq" and asked.compute_dtype == "float32"  # gptqmodel packs AWQ from 16-bit types only
    return Plan(
        method=method,
        bits=bits,
        group_size=_group_size(given.get("group_size"), asked, inputs),
        sym=bool(given.get("sym", method == "gptq")),
        desc_act=bool(given.get("desc_act", False)),
        dtype="bfloat16" if narrow else asked.compute_dtype,
        clip_tokens=_CLIP_TOKENS_ON_CPU if asked.place == "cpu" else _CLIP_TOKENS,
    )


def _group_size(demanded: object, asked: Asked, inputs: Mapping[str, int]) -> int:
    widths = sorted(set(inputs.values()))
    if demanded is None:
        for size in _GROUP_SIZES:
            if all(width % size == 0 for width in widths):
                return size
        raise UsageError(
            f"{asked.format.name}: none of the group sizes {_listed(_GROUP_SIZES)} divides all input widths of "
            f"{asked.model!r} ({_listed(widths)}); exclude the layers that do not fit"
        )
    if isinstance(demanded, bool) or not isinstance(demanded, int) or demanded < 1:
        raise UsageError(f"{asked.format.name}: the group size must be a positive whole number, not {demanded!r}")
    odd = [width for width in widths if width % demanded]
    if odd:
        raise UsageError(
            f"{asked.format.name}: the group size {demanded} does not divide the input widths {_listed(odd)} of "
            f"{asked.model!r}; give one that divides {_listed(widths)}, or exclude those layers"
        )
    return demanded


def _inputs(asked: Asked) -> dict[str, int]:
    """Input features by name of the layers to be quantized: those of matrix products, without the head and what is
    excluded; from the architecture alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"), quiet():
        skeleton = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(asked.model, **asked.opening), trust_remote_code=asked.trust_remote_code
        )
    head = skeleton.get_output_embeddings()
    return {
        name: module.weight.shape[0] if isinstance(module, Conv1D) else module.in_features
        for name, module in skeleton.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head and name not in asked.excluded
    }


def _made(
    asked: Asked,
    plan: Plan,
    samples: Sequence[NDArray[np.int64]],
    folder: Path,
    tell: Callable[[str], None],
    inputs: Mapping[str, int],
) -> dict[str, Any]:
    import torch
    from gptqmodel import GPTQModel

    config = _config(asked, plan)
    model = GPTQModel.load(asked.model, config, dtype=getattr(torch, plan.dtype), use_safetensors=True, **asked.opening)
    layers = model.model.config.get_text_config().num_hidden_layers

    def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            tell(f"layer {layer_idx + 1}/{layers}")

    model.layer_callback = layer_complete
    with _clip_search(plan) if plan.method == "awq" else contextlib.nullcontext():
        log = model.quantize(
            [{"input_ids": sample.tolist(), "attention_mask": [1] * len(sample)} for sample in samples],
            batch_size=max(1, _TOKENS_AT_ONCE // max(map(len, samples))),
            calibration_concat_size=None,
            calibration_sort=None,
            calibration_data_min_length=0,  # it drops shorter samples without a word
        )
    entries = [entry for each in (log.values() if isinstance(log, Mapping) else [log]) for entry in each]
    if missing := len(inputs) - len(entries):
        raise NotMeasured(
            f"gptqmodel quantized {len(entries)} of the {len(inputs)} layers of {asked.model!r}: it does not know "
            f"{abs(missing)} of them; exclude those from {asked.format.name}"
        )
    model.save(str(folder))
    carried_out = _recipe(asked, plan, model.quantize_config, entries)
    del model
    gc.collect()
    _say_what_is_quantized(folder / "config.json", asked, plan, inputs)
    return carried_out


def _config(asked: Asked, plan: Plan) -> Any:
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    return QuantizeConfig(
        method=METHOD(plan.method),
        format=FORMAT.GEMM if plan.method == "awq" else FORMAT.GPTQ,
        bits=plan.bits,
        group_size=plan.group_size,
        sym=plan.sym,
        desc_act=plan.desc_act,
        device=asked.place,
        dynamic=left_out(asked.excluded) or None,
        offload_to_disk=False,
    )


def _recipe(asked: Asked, plan: Plan, config: Any, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "method": plan.method,
        "bits": int(config.bits),
        "group_size": int(config.group_size),
        "sym": bool(config.sym),
        "base_dtype": plan.dtype,
        "layers": len(entries),
    }
    if plan.method == "gptq":
        recipe |= {
            "desc_act": bool(config.desc_act),
            "act_group_aware": bool(config.act_group_aware),
            "damp_percent": float(config.damp_percent),
        }
    else:
        recipe["clip_tokens"] = plan.clip_tokens
    # Layers that few calibration tokens reached, as happens to experts, are rounded to nearest instead.
    if rounded := sum(str(entry.get("loss", "")).startswith("fallback") for entry in entries):
        recipe["rounded_to_nearest"] = rounded
    if asked.excluded:
        recipe["excluded"] = list(asked.excluded)
    return recipe


def _say_what_is_quantized(path: Path, asked: Asked, plan: Plan, inputs: Mapping[str, int]) -> None:
    """What is left out, in the words that transformers and vLLM read; gptqmodel's own ``dynamic`` they ignore."""
    if not asked.excluded:
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    if plan.method == "gptq":
        config["quantization_config"]["modules_in_block_to_quantize"] = [sorted(inputs)]
    else:
        config["quantization_config"]["modules_to_not_convert"] = sorted(asked.excluded)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _clip_search(plan: Plan) -> Iterator[None]:
    """AWQ's search for the best clipping on ``plan.clip_tokens`` tokens.

    gptqmodel 7 offers no setting for them and takes 512, which on a CPU is most of the whole time, element by element.
    So the default of its method is replaced while a model is made; the recipe names the number.
    """
    from gptqmodel.looper.awq_processor import AWQProcessor

    search = AWQProcessor._compute_best_clip
    if plan.clip_tokens == _CLIP_TOKENS:
        yield
        return

    def on_fewer_tokens(self: Any, w: Any, input_feat: Any, **settings: Any) -> Any:
        return search(self, w, input_feat, **{"n_sample_token": plan.clip_tokens, **settings})

    AWQProcessor._compute_best_clip = on_fewer_tokens
    try:
        yield
    finally:
        AWQProcessor._compute_best_clip = search


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """With those of the variables set that are not, until the end."""
    new = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _enough_workers() -> contextlib.AbstractContextManager[None]:
    """On one or two cores gptqmodel 7.7 starts one worker and stops because its loader wants two."""
    return _environment(GPTQMODEL_CPU_WORKERS="2") if (os.cpu_count() or 1) <= 2 else contextlib.nullcontext()


def _pack_without_compiler() -> contextlib.AbstractContextManager[None]:
    """gptqmodel compiles C++ for packing at its first use, half a minute; what torch packs is the same bit by bit."""
    return _environment(GPTQMODEL_DISABLE_PACK_EXT="1")


@contextlib.contextmanager
def _logs_elsewhere() -> Iterator[None]:
    """gptqmodel 7 writes a folder ``logs`` where it is started, and offers no setting for it."""
    from gptqmodel.looper import loop_processor

    before = loop_processor._PROJECT_LOG_DIR
    with tempfile.TemporaryDirectory() as folder:
        loop_processor._PROJECT_LOG_DIR = Path(folder)
        try:
            yield
        finally:
            loop_processor._PROJECT_LOG_DIR = before


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
