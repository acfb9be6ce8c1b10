"""Models of random weights, small enough for logic: never for a claim about a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SENTENCE = "The quick brown fox jumps over the lazy dog. "


def save_llama(folder: Path, tokenizer: Any, *, learn: int = 0, rate: float = 1e-2, **sizes: int) -> Path:
    """Save a Llama of two layers with its tokenizer of one token a byte. ``sizes`` are those of ``LlamaConfig``; it
    learns one sentence for so many steps, so that damage makes it worse."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    usual = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **{**usual, **sizes}))
    tokens = torch.tensor(tokenizer(SENTENCE * 6)["input_ids"])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(learn):
        batch = torch.stack([tokens[start : start + 64] for start in range(step % 8, step % 8 + 64, 16)])
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
