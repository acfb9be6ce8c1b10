"""How long a sequence an engine is started for, where the user does not say it. Pure.

vLLM counts a token that is scored as part of the prompt and refuses a prompt of ``max_model_len`` tokens, for at least
one is to come. So an engine of a model of L positions would take L - 1. Started for L + 1, it takes L, and computes at
positions 0 to L - 1 only: a sequence ends with L + 1 tokens, of which the last goes through the model no more. It has
to be told that this is meant (``VLLM_ALLOW_LONG_MAX_MODEL_LEN``). Read from vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALLOWED = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
"""The environment of an engine that is started for more than its model's positions."""
_OTHERS = (
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Where vLLM looks for the length too: the least one counts."""
_TOLD = ("max_model_len", "speculative_config", "hf_overrides", "hf_config_path", "disable_sliding_window")
"""Arguments that say how long, or have tokens computed that are not to come."""
_PLAIN = ("default", "llama3")
"""Rotary embeddings whose factors are the same whatever the longest sequence is."""


def room_for_all_positions(config: Any, engine_args: Mapping[str, Any], checkpoint: Any = None) -> int | None:
    """``max_model_len`` with which every position of the model (its ``config``, and that of the ``checkpoint`` that is
    loaded instead, where it is known) can be scored; ``None`` where vLLM is to choose, or the user has chosen."""
    if any(engine_args.get(name) not in (None, False) for name in _TOLD):
        return None
    positions = _positions(config)
    if positions is None or (checkpoint is not None and _positions(checkpoint) != positions):
        return None
    return positions + 1


def _positions(config: Any) -> int | None:
    """Positions of a model with plain rotary embeddings and nothing else that says how many."""
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        return None
    if any(getattr(text, name, None) not in (None, length) for name in _OTHERS):
        return None
    told = getattr(text, "rope_parameters", None)
    if not isinstance(told, Mapping) or not told:
        return None
    each = [told] if "rope_type" in told else list(told.values())
    return length if all(isinstance(rope, Mapping) and _is_plain(rope) for rope in each) else None


def _is_plain(rope: Mapping[str, Any]) -> bool:
    kind = rope.get("rope_type")
    if kind not in _PLAIN or "mrope_section" in rope or rope.get("use_fope"):
        return False
    return kind != "default" or rope.get("factor") in (None, 1, 1.0)
