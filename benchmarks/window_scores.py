"""Score all windows of python-docs with the real model in FP32, INT8 and NF4, once, for the other benchmarks.

    python benchmarks/window_scores.py .models/SmolLM2-135M-Instruct .models/window-scores.npz

The file holds, for each of 220 windows of 512 tokens (``gptq-512``, in the drawn order) and each of its 511
predicted tokens: NLL of each model, and for each format KL divergence from FP32 and whether the top tokens agree.
``nf4-again`` is NF4 of the weights that NF4 itself gives back: a copy that was quantized a second time. About half an
hour on two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from pytest_quant.corpora import protocols, texts
from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.registry import backend
from pytest_quant.hardware import detect
from pytest_quant.metrics import pairing

FORMATS = ("int8", "nf4", "nf4-again")
PROTOCOL = "gptq-512"


def load(model: str, name: str, dtype: str = "float32") -> Any:
    """The model in a format, as the plugin loads it."""
    format = registry.get(name)
    return loading.load(ModelSource(model), format, backend(format), dtype, detect())


def again(model: str, folder: Path) -> Any:
    """NF4 of what NF4 makes of the weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        format = registry.get("nf4")
        arguments = backend(format).load_arguments(format, "float32")
        # before any forward: on some CPUs the first one repacks the weights, and dequantizing makes nothing of them
        first = AutoModelForCausalLM.from_pretrained(model, device_map={"": "cpu"}, **arguments)
        first.dequantize().float().save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return load(str(folder), "nf4")


def score(model: str, target: Path) -> None:
    """Score everything and write it to ``target``."""
    reference = load(model, "fp32")
    formats = {
        name: again(model, target.with_suffix(".again")) if "again" in name else load(model, name) for name in FORMATS
    }
    tokens, longest = loading.open_tokens(ModelSource(model))
    windows = protocols.draw(texts.load("python-docs"), protocols.parse(PROTOCOL), tokens, max_length=longest)
    found: dict[str, list[Any]] = {"fp32.nll": []}
    started = time.monotonic()
    for done, window in enumerate(windows.drawn, 1):
        [known] = pairing.score_reference(reference, [window], pairing.TOP_K)
        found["fp32.nll"].append(known.nll)
        for name, held in formats.items():
            if name == "nf4-again":
                [compared] = pairing.score_against(held, [window], [known])
            else:
                [(compared, _)] = pairing.score_beside(held, reference, [window], pairing.TOP_K)
                found.setdefault(f"{name}.kl", []).append(compared.kl)
            found.setdefault(f"{name}.nll", []).append(compared.nll)
            found.setdefault(f"{name}.agree", []).append(compared.agree)
            found.setdefault(f"{name}.bound", []).append(compared.bound.astype(np.float32))
        if done % 10 == 0 or done == len(windows.drawn):
            print(f"{done}/{len(windows.drawn)} windows, {time.monotonic() - started:.0f} s", flush=True)
            with target.open("wb") as stream:
                np.savez_compressed(stream, **{name: np.array(values) for name, values in found.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Score all windows of python-docs with the real model, once.")
    parser.add_argument("model")
    parser.add_argument("target", type=Path)
    told = parser.parse_args()
    score(told.model, told.target)
