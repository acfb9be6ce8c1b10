"""A scan of layers against the loop that one writes first, for the same figures.

    python benchmarks/layer_scan.py .models/SmolLM2-135M-Instruct [--depths 5] [--windows 1] [--numeric int8]

The loop: for each layer set its rounded weight, run the whole model on each window, take ``log_softmax`` of all logits
of both models for NLL and KL, and restore the weight; with the reference's logits computed again for each layer, and
with them kept. The layers are all of some decoder blocks, evenly spaced from the first to the last, so that their mean
depth is that of the whole model; what a window costs once is in our time, for these few layers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch

from pytest_quant.corpora import protocols, texts
from pytest_quant.engines import candidates, loading
from pytest_quant.engines.candidates import Layer
from pytest_quant.engines.replay import Replay
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.rounding import Rounding, rounded
from pytest_quant.formats.support import support
from pytest_quant.hardware import detect, matrix
from pytest_quant.model import ModelHandle

Figures = list[tuple[float, float]]


def load(model: str, dtype: str) -> ModelHandle:
    device, format = detect(), registry.get(dtype)
    source = ModelSource(model)
    torch_dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype]
    loaded = loading.load(source, format, registry.backend(format), torch_dtype, device)
    return ModelHandle(loaded, format, support(format, device, matrix.load("corrected")), source.short)


def log_probabilities(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens[None, :-1]).logits[0].float().log_softmax(-1)


def loop(handle: ModelHandle, layers: Sequence[Layer], windows: Sequence[Any], how: Rounding, *, kept: bool) -> Figures:
    """Nats and KL of each layer, means over all tokens."""
    model, found = handle.model, []
    with torch.no_grad():
        stored = [log_probabilities(model, tokens) for tokens in windows] if kept else []
        for layer in layers:
            weight = model.get_submodule(layer.name).weight
            before = weight.detach().clone()
            nats = kl = count = 0.0
            for place, tokens in enumerate(windows):
                log_p = stored[place] if kept else log_probabilities(model, tokens)
                weight.copy_(rounded(before, how.fitted(weight.shape[-1])))
                log_q = log_probabilities(model, tokens)
                weight.copy_(before)
                labels = tokens[1:, None]
                nats += float((log_p.gather(1, labels) - log_q.gather(1, labels)).double().sum())
                kl += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
                count += len(labels)
            found.append((nats / count, kl / count))
    return found


def ours(handle: ModelHandle, layers: Sequence[Layer], windows: Sequence[Any], how: Rounding, *, pack: bool) -> Figures:
    stand_ins = candidates.of_rounding(handle, how).stand_ins
    sums = [[0.0, 0.0] for _ in layers]
    count = 0
    with Replay(handle.loaded, pack=pack) as replay:
        for tokens in windows:
            replay.record(tokens.cpu().numpy(), 1)
            count += len(tokens) - 1
            for layer, total in zip(layers, sums, strict=True):
                change = replay.change({layer.name: stand_ins[layer.name]})
                total[0] += float(change.nats.sum())
                total[1] += float(change.kl.sum())
    return [(nats / count, kl / count) for nats, kl in sums]


def timed(work: Any) -> tuple[float, float, Figures]:
    """Seconds by the clock, seconds of this process on all cores, and the figures."""
    start, used = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - start, time.process_time() - used, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--depths", type=int, default=5)
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--protocol", default="gptq-512")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--numeric", default="int8")
    parser.add_argument("--rounds", type=int, default=1)
    told = parser.parse_args()
    handle = load(told.model, told.dtype)
    how = Rounding(told.numeric, "tensor")
    tokens, longest = loading.open_tokens(ModelSource(told.model))
    drawn = protocols.draw(texts.load("python-docs"), protocols.parse(told.protocol), tokens, max_length=longest).drawn
    windows = [handle.loaded.tensor(window.pieces[0].tokens) for window in drawn[: told.windows]]
    everything = candidates.of_rounding(handle, how).layers
    last = max(layer.depth or 0 for layer in everything)
    depths = {round(last * step / max(told.depths - 1, 1)) for step in range(told.depths)}
    layers = [layer for layer in everything if layer.depth in depths]
    print(f"{len(layers)} of {len(everything)} layers, blocks {sorted(depths)}, {len(windows)} windows, {how.name}")
    handle.loaded.token_nll(windows[0].cpu().numpy()[None])
    work = {
        "ours": lambda: ours(handle, layers, windows, how, pack=True),
        "ours, without packed weights": lambda: ours(handle, layers, windows, how, pack=False),
        "the loop, reference kept": lambda: loop(handle, layers, windows, how, kept=True),
        "the loop, reference again": lambda: loop(handle, layers, windows, how, kept=False),
    }
    times: dict[str, float] = {}
    used: dict[str, float] = {}
    results: dict[str, Figures] = {}
    for _ in range(told.rounds):
        for name, run in work.items():
            seconds, busy, results[name] = timed(run)
            times[name] = min(seconds, times.get(name, seconds))
            used[name] = min(busy, used.get(name, busy))
    for name, found in results.items():
        differences = [
            max(abs(a[place] - b[place]) for a, b in zip(found, results["ours"], strict=True)) for place in (0, 1)
        ]
        print(
            f"  {name:30} {times[name]:7.1f} s  {times[name] / len(layers) / len(windows):.3f} s a layer and window, "
            f"{times[name] / times['ours']:.2f}x ours "
            f"({used[name] / used['ours']:.2f}x in time on the cores); differs by at most {differences[0]:.1e} nats, "
            f"{differences[1]:.1e} of KL (highest {max(kl for _, kl in found):.3g})"
        )
    assert not handle.loaded.changed
