"""Making checkpoints of compressed-tensors: llm-compressor's ``oneshot`` on the base model."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.formats.backend import Asked, installed
from pytest_quant.formats.format import Format, QuantizationArgs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROUNDINGS = ("nearest", "gptq")
RECIPE = ("rounding", "smoothing_strength")
"""Parameters of a format that say how its checkpoint is made, and that cannot be read from the checkpoint."""
_TESTED = "0.14.0.1"
_SMOOTHING = 0.5
_DAMPENING = 0.01


def require_llm_compressor(format: Format) -> str:
    """Its version; :class:`Unsupported`, with the commands for an environment of its own, where it is not installed."""
    found = installed("llmcompressor")
    if found is not None:
        return found
    here = ", ".join(
        f"{name} {installed(name) or 'not installed'}" for name in ("transformers", "compressed-tensors", "torch")
    )
    torch = (installed("torch") or "2.13.0").partition("+")[0]
    raise Unsupported(
        asked=f"making a checkpoint in {format.name} with llm-compressor",
        found=f"llmcompressor not installed ({here})",
        needed=(
            "an environment of its own, for it pins transformers and compressed-tensors to older versions: "
            f"`python -m venv llmc && llmc/bin/pip install torch=={torch} && llmc/bin/pip install torch=={torch} "
            f"llmcompressor=={_TESTED} pytest-quant`, then `llmc/bin/pytest-quant quantize MODEL "
            f"--format {format.name} --output FOLDER`; the checkpoint loads here"
        ),
    )


def needs_samples(format: Format) -> bool:
    """Whether the recipe looks at activations: GPTQ, smoothing, and activation scales that are fixed beforehand."""
    activations = format.input_activations
    fixed = activations is not None and (not activations.dynamic or _is_nvfp4(format))
    return rounding(format) == "gptq" or smoothing_strength(format) > 0.0 or fixed


def rounding(format: Format) -> str:
    """``gptq`` or ``nearest``; GPTQ unless told otherwise where weights have 4 integer bits."""
    usual = "gptq" if format.weights.type == "int" and format.weights.num_bits < 8 else "nearest"
    told = format.parameters.get("rounding", usual)
    if told not in ROUNDINGS:
        raise UsageError(f"rounding {told!r} of the format {format.name} is not one of {', '.join(ROUNDINGS)}")
    return str(told)


def smoothing_strength(format: Format) -> float:
    """SmoothQuant's alpha, 0 for none; 0.5 unless told otherwise where weights and activations are integers."""
    activations = format.input_activations
    usual = _SMOOTHING if activations is not None and activations.type == "int" else 0.0
    told = format.parameters.get("smoothing_strength", usual)
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not 0.0 <= told <= 1.0:
        raise UsageError(f"smoothing_strength {told!r} of the format {format.name} is no number from 0 to 1")
    return float(told)


def weights(format: Format) -> QuantizationArgs:
    """Those of the format, with ``group_size`` and ``symmetric`` among its parameters put in."""
    told = {key: format.parameters[key] for key in ("group_size", "symmetric") if key in format.parameters}
    return replace(format.weights, **told)


def make(
    asked: Asked, samples: Sequence[NDArray[np.int64]], folder: Path, tell: Callable[[str], None]
) -> Mapping[str, Any]:
    """Carry out the recipe and save; what :meth:`Backend.make` promises.

    Raises :class:`Unsupported` without llm-compressor or where it finds no layer to quantize, :class:`UsageError` where
    the format does not fit the model or samples are missing.
    """
    library = require_llm_compressor(asked.format)
    if needs_samples(asked.format) and not len(samples):
        raise UsageError(f"making a checkpoint in {asked.format.name} needs calibration samples, and there are none")
    if len({len(sample) for sample in samples}) > 1:
        raise UsageError("the calibration samples are of different lengths; give windows of one length")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # its messages come at the level INFO, and one of them while it is imported; errors are exceptions anyway
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    with contextlib.redirect_stderr(_Lines(tell)):
        tell("loading the model")
        model = AutoModelForCausalLM.from_pretrained(
            asked.model,
            dtype=getattr(torch, asked.compute_dtype),
            device_map={"": asked.place},
            use_safetensors=True,
            **asked.opening,
        )
        tokenizer = AutoTokenizer.from_pretrained(asked.model, **asked.opening)
        ignored = _ignored(model, asked)
        _check_fits(model, asked.format, ignored)
        _oneshot(model, tokenizer, _modifiers(asked.format, ignored), samples)
        tell("writing the checkpoint")
        model.save_pretrained(folder, save_compressed=True)
        tokenizer.save_pretrained(folder)
    return _recipe(asked.format, ignored, library)


def _oneshot(model: Any, tokenizer: Any, modifiers: Sequence[Any], samples: Sequence[NDArray[np.int64]]) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot

    given: dict[str, Any] = {}
    if any(modifier.requires_calibration_data for modifier in modifiers):
        given = {
            "dataset": Dataset.from_dict({"input_ids": [sample.tolist() for sample in samples]}),
            "num_calibration_samples": len(samples),
            "max_seq_length": len(samples[0]),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, tokenizer=tokenizer, recipe=list(modifiers), **given)


def _modifiers(format: Format, ignored: list[str]) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    modifiers: list[Any] = []
    if strength := smoothing_strength(format):
        modifiers.append(SmoothQuantModifier(smoothing_strength=strength))
    groups = {"config_groups": {"group_0": _scheme(format)}, "ignore": ignored}
    if rounding(format) == "gptq":
        modifiers.append(GPTQModifier(dampening_frac=_DAMPENING, **groups))
    else:
        modifiers.append(QuantizationModifier(**groups))
    return modifiers


def _scheme(format: Format) -> Any:
    """The format in compressed-tensors' own classes."""
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme

    if _is_nvfp4(format):
        name = "NVFP4A16" if format.input_activations is None else "NVFP4"
        return preset_name_to_scheme(name, ["Linear"])
    inputs = format.input_activations
    activations = None if inputs is None else _args(inputs)
    return QuantizationScheme(targets=["Linear"], weights=_args(weights(format)), input_activations=activations)


def _args(args: QuantizationArgs) -> Any:
    from compressed_tensors.quantization import QuantizationArgs as Args

    return Args(
        num_bits=args.num_bits,
        type=args.type,
        strategy=args.strategy,
        group_size=args.group_size,
        symmetric=args.symmetric,
        dynamic=args.dynamic,
    )


def _is_nvfp4(format: Format) -> bool:
    args = format.weights
    return args.type == "float" and args.num_bits == 4 and args.group_size == 16


def _ignored(model: Any, asked: Asked) -> list[str]:
    """Names of the modules that stay as they are: the output head, and what the format excludes."""
    head = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if module is head]
    return ignoring(asked.excluded, heads or ["lm_head"])


def ignoring(names: Sequence[str], heads: Sequence[str]) -> list[str]:
    """What to give as ``ignore``: the head is not left alone by itself."""
    return [*heads, *names]


def _check_fits(model: Any, format: Format, ignored: Sequence[str]) -> None:
    import torch

    linear = {
        name: module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in ignored
    }
    if not linear:
        raise Unsupported(
            asked=f"making a checkpoint in {format.name} of a {type(model).__name__}",
            found="no torch.nn.Linear in it, apart from the output head: llm-compressor would quantize nothing",
            needed="a model whose weights are in torch.nn.Linear, as Llama's, Mistral's or Qwen's are",
        )
    size = weights(format).group_size
    if size is None:
        return
    uneven = {name: width for name, width in linear.items() if width % size}
    if uneven:
        name, width = next(iter(uneven.items()))
        fitting = max(candidate for candidate in (1, 2, 4, 8, 16, 32, 64, 128) if not _uneven(linear, candidate))
        raise UsageError(
            f"the format {format.name} has groups of {size} weights, which do not divide the {width} inputs of {name} "
            f"({len(uneven)} layers of {len(linear)}); give group_size={fitting}, or exclude those layers"
        )


def _uneven(linear: Mapping[str, int], size: int) -> bool:
    return any(width % size for width in linear.values())


def _recipe(format: Format, ignored: Sequence[str], library: str) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "method": f"llm-compressor {library}",
        "rounding": rounding(format),
        "smoothing_strength": smoothing_strength(format),
        "scheme": _words(format),
        "ignore": ", ".join(ignored),
    }
    if (size := weights(format).group_size) is not None:
        recipe |= {"group_size": size, "symmetric": weights(format).symmetric}
    if rounding(format) == "gptq":
        recipe["dampening_frac"] = _DAMPENING
    return recipe


def _words(format: Format) -> str:
    """The scheme that was applied, from compressed-tensors' own objects: ``int8 channel, int8 token dynamic``."""
    scheme = _scheme(format)
    parts = []
    for args in filter(None, (scheme.weights, scheme.input_activations)):
        words = [f"{word(args.type)}{args.num_bits}", word(args.strategy)]
        words += [f"of {args.group_size}"] if args.group_size else []
        words += [] if args.symmetric else ["with zero points"]
        parts.append(" ".join([*words, *(["dynamic"] if args.dynamic else [])]))
    return ", ".join(parts)


def word(value: Any) -> str:
    """What an enumeration's member, or the word itself, says."""
    return str(getattr(value, "value", value))


@contextlib.contextmanager
def without_progress() -> Iterator[None]:
    """Without the progress bars that compressed-tensors draws while it packs and unpacks layers."""
    with contextlib.redirect_stderr(_Lines(lambda line: None)):
        yield


class _Lines(io.TextIOBase):
    """A stream whose lines, and redrawn lines, go to ``tell``."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if line := text.replace("\r", "\n").strip().rpartition("\n")[2].strip():
            self._tell(line)
        return len(text)
