"""SmoothQuant against plain W8A8 on a model with planted activation outliers: what smoothing buys, with an interval.

    python benchmarks/smoothquant.py .models/SmolLM2-135M-Instruct .models/smoothquant --windows 32

Planting changes no function: a few channels of each norm's weight are multiplied by a power of two, and the input
columns of the linear layers that follow are divided by it, so that the logits stay what they were while the inputs of
those layers get outliers. The planted model is then quantized twice to W8A8 with one scale for each tensor (weights
rounded to nearest, activations dynamic), with SmoothQuant and without, and both are scored on the same windows of
python-docs (``gptq-512``); SmoothQuant calibrates on windows that are not scored.

Quantizing needs llm-compressor, in an environment of its own; what it made in the folder is found again, so that the
scoring can be repeated anywhere.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pytest_quant.corpora import protocols, texts
from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Asked
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware import detect
from pytest_quant.stats import sequence

PROTOCOL = "gptq-512"
CALIBRATION_WINDOWS = 16
FED_BY = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
STRENGTHS = {"plain": 0.0, "smoothquant": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path, help="where the planted model and its checkpoints are kept")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--channels", type=int, default=4, help="outlier channels of each norm (%(default)s)")
    parser.add_argument("--factor", type=int, default=32, help="a power of two (%(default)s)")
    parser.add_argument("--alpha", type=float, default=0.01)
    told = parser.parse_args()
    if told.factor < 2 or told.factor & (told.factor - 1):
        parser.error("--factor must be a power of two, so that planting rounds nothing")
    tokens, longest = loading.open_tokens(ModelSource(told.model))
    windows = protocols.draw(texts.load("python-docs"), protocols.parse(PROTOCOL), tokens, max_length=longest).drawn
    windows = [np.asarray(window.pieces[0].tokens, dtype=np.int64) for window in windows]
    if told.windows + CALIBRATION_WINDOWS > len(windows):
        parser.error(f"--windows must be {len(windows) - CALIBRATION_WINDOWS} or fewer")
    planted = told.folder / f"planted-{told.channels}x{told.factor}"
    if not (planted / "config.json").is_file():
        print(plant(told.model, planted, told.channels, told.factor, windows[0]), flush=True)
    for name, strength in STRENGTHS.items():
        quantize(planted, planted / name, strength, windows[-CALIBRATION_WINDOWS:])
    report(planted, windows[: told.windows], len(windows), told.alpha)


def per_tensor(**parameters: Any) -> Format:
    """W8A8 with one scale for a weight and one for an input, the coarsest that there is."""
    known = registry.get("w8a8@compressed-tensors")
    return replace(
        known,
        name="w8a8-per-tensor",
        weights=QuantizationArgs(8, "int", "tensor"),
        input_activations=QuantizationArgs(8, "int", "tensor", dynamic=True),
        parameters={**known.parameters, **parameters},
    )


def plant(model_name: str, folder: Path, channels: int, factor: int, window: Any) -> str:
    """Write the model with outliers; says by how much its logits differ and its inputs grew."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32, use_safetensors=True)
    tokens = torch.as_tensor(window[:-1])[None]
    before, spread_before = _looked_at(model, tokens)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, fed in FED_BY.items():
                chosen = torch.as_tensor(random.choice(model.config.hidden_size, channels, replace=False))
                layer.get_submodule(norm).weight[chosen] *= factor
                for name in fed:
                    layer.get_submodule(name).weight[:, chosen] /= factor
    after, spread_after = _looked_at(model, tokens)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_name).save_pretrained(folder)
    return (
        f"planted {channels} channels of each norm, times {factor}: largest difference of the logits "
        f"{float((after - before).abs().max()):g} (logits to {float(before.abs().max()):.1f}); largest input over the "
        f"median channel's largest, median of the layers: {spread_before:.1f} before, {spread_after:.1f} after"
    )


def _looked_at(model: Any, tokens: Any) -> tuple[Any, float]:
    """The logits, and how far the norms' outputs are from even."""
    import torch

    spreads: list[float] = []

    def look(module: Any, inputs: Any, output: Any) -> None:
        largest = output.abs().flatten(0, -2).amax(0)
        spreads.append(float(largest.max() / largest.median()))

    hooks = [layer.get_submodule(norm).register_forward_hook(look) for layer in model.model.layers for norm in FED_BY]
    with torch.inference_mode():
        logits = model(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits, float(np.median(spreads))


def quantize(model: Path, folder: Path, strength: float, samples: list[Any]) -> None:
    """Make the checkpoint, if it is not there yet."""
    if (folder / "config.json").is_file():
        return
    format = per_tensor(rounding="nearest", smoothing_strength=strength)
    backend = registry.backend(format)
    given = samples if backend.calibrates(format) else []
    recipe = backend.make(Asked(str(model), format, "float32", "cpu"), given, folder, lambda line: None)
    print(f"{folder.name}: {recipe['scheme']}; {', '.join(f'{key} {recipe[key]}' for key in _TOLD)}", flush=True)


_TOLD = ("rounding", "smoothing_strength", "method")


def report(planted: Path, windows: list[Any], total: int, alpha: float) -> None:
    """Score the three models on the windows, one model at a time, and print the paired differences."""
    nll: dict[str, list[float]] = {}
    for name in ("fp32", *STRENGTHS):
        model = load(planted, None if name == "fp32" else planted / name)
        nll[name] = [float(model.token_nll(window[None]).mean()) for window in windows]
        proof = model.proof
        print(
            f"{name:12} perplexity {math.exp(float(np.mean(nll[name]))):10.4f}   "
            f"{proof.quantized_weight_share:.0%} of the weights in {proof.bits_per_weight:.2f} bits",
            flush=True,
        )
    count = len(windows)
    print(f"{count} windows of 512 tokens of python-docs, of {total}; intervals hold with {1.0 - alpha:.0%}")
    for name, other in (("plain", "fp32"), ("smoothquant", "fp32"), ("smoothquant", "plain")):
        differences = [ours - theirs for ours, theirs in zip(nll[name], nll[other], strict=True)]
        found = sequence.mean(differences, [1.0] * count, total, alpha)
        base = math.exp(float(np.mean(nll[other])))
        better = sum(difference < 0.0 for difference in differences)
        print(
            f"{name} against {other}: perplexity {base * (math.exp(found.value) - 1.0):+.4f}, ratio "
            f"{math.exp(found.value):.5f} [{math.exp(found.low):.5f}, {math.exp(found.high):.5f}], better in {better} "
            f"of {count} windows"
        )


def load(planted: Path, checkpoint: Path | None) -> Any:
    """The planted model in FP32, or proven to be the checkpoint's W8A8."""
    format = registry.get("fp32") if checkpoint is None else per_tensor(activation_strategy="tensor", strategy="tensor")
    place = None if checkpoint is None else str(checkpoint)
    return loading.load(ModelSource(str(planted)), format, registry.backend(format), "float32", detect(), place)


if __name__ == "__main__":
    main()
