"""The scoring loop against a bare forward pass, in tokens a second and in memory.

    python benchmarks/scoring_loop.py .models/SmolLM2-135M-Instruct [--rounds 7] [--formats fp32,int8,nf4]

Both see the same batches in turn in one run; the figure is the median, over rounds, of the ratio within a round. The
bare pass is ``model(tokens)`` with all its logits, and nothing is done with them. Memory is what torch allocates at
most above what was held before, on a small model with a vocabulary of 256,000.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pytest_quant.corpora import protocols, texts
from pytest_quant.corpora.windows import Window
from pytest_quant.engines import loading
from pytest_quant.engines.memory import peak_above_start
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.registry import backend
from pytest_quant.hardware import detect
from pytest_quant.metrics import pairing

WINDOWS = 3


def load(model: str, name: str) -> Any:
    format = registry.get(name)
    return loading.load(ModelSource(model), format, backend(format), "float32", detect())


def bare(model: Any, windows: Sequence[Window]) -> None:
    with torch.inference_mode():
        for window in windows:
            model.model(torch.as_tensor(window.pieces[0].tokens[None, :-1]), use_cache=False)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(model: str, rounds: int, formats: Sequence[str]) -> None:
    tokens, longest = loading.open_tokens(ModelSource(model))
    drawn = protocols.draw(texts.load("python-docs"), protocols.parse("gptq-512"), tokens, max_length=longest)
    windows = drawn.drawn[:WINDOWS]
    reference = load(model, "fp32")
    known = pairing.score_reference(reference, windows[:1], pairing.TOP_K)
    known += [pairing.score_reference(reference, [window], pairing.TOP_K)[0] for window in windows[1:]]
    print(
        f"{WINDOWS} windows of 512 tokens, one at a time, median of {rounds} rounds: tokens/s over a bare forward pass"
    )
    for name in formats:
        held = reference if name == "fp32" else load(model, name)

        def against(held: Any = held) -> None:
            for window, of in zip(windows, known, strict=True):
                pairing.score_against(held, [window], [of])

        def reference_alone(held: Any = held) -> None:
            for window in windows:
                pairing.score_reference(held, [window], pairing.TOP_K)

        def beside(held: Any = held) -> None:
            for window in windows:
                pairing.score_beside(held, reference, [window], pairing.TOP_K)

        work = {"bare": lambda held=held: bare(held, windows), "against the stored reference": against}
        if name == "fp32":
            work["as the reference, with its top 64 tokens"] = reference_alone
        else:
            work["beside the reference, with KL"] = beside
            work["bare, both"] = lambda held=held: (bare(held, windows), bare(reference, windows))
        times: dict[str, list[float]] = {what: [] for what in work}
        for done in range(rounds + 1):
            for what in list(work) if done % 2 else reversed(list(work)):
                taken = seconds(work[what])
                if done:
                    times[what].append(taken)
        for what in work:
            if not what.startswith("bare"):
                base = times["bare, both" if what.startswith("beside") else "bare"]
                ratios = sorted(one / other for one, other in zip(base, times[what], strict=True))
                rate = WINDOWS * 511 / statistics.median(times[what])
                print(
                    f"  {name:5} {what:42} {statistics.median(ratios):.3f}   from {ratios[0]:.3f} to {ratios[-1]:.3f} "
                    f"({rate:,.0f} tokens/s)"
                )


def memory() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=256_000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        from tokenizers import Tokenizer, models

        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))).save_pretrained(
            folder
        )
        reference, other = load(str(folder), "fp32"), load(str(folder), "int8")
        import numpy as np

        window = protocols.Window(0, (protocols.Piece(np.random.default_rng(0).integers(0, 256_000, 2048), 1),), 2047)
        device = detect()
        held = reference.proof.weight_bytes
        forward = peak_above_start(device, lambda: bare(reference, [window]))
        beside = peak_above_start(device, lambda: pairing.score_beside(other, reference, [window], pairing.TOP_K))
        alone = peak_above_start(device, lambda: pairing.score_reference(reference, [window], pairing.TOP_K))
    print("\na vocabulary of 256,000, one window of 2048 tokens: most memory above what was held")
    print(f"  the model's weights                         {held / 1e6:8.0f} MB")
    print(f"  a bare forward pass, all logits             {forward / 1e6:8.0f} MB")
    print(f"  KL of two models, all statistics            {beside / 1e6:8.0f} MB   ({beside / forward:.3f} of it)")
    print(f"  the reference alone, with its top 64 tokens {alone / 1e6:8.0f} MB   ({alone / forward:.3f} of it)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--formats", default="fp32,int8,nf4")
    told = parser.parse_args()
    speed(told.model, told.rounds, told.formats.split(","))
    memory()
