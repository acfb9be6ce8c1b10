"""What an engine's process reports of an exception: a kind, and words. Imports no vLLM."""

from __future__ import annotations

from typing import Any

from pytest_quant.engines.memory import is_out_of_memory
from pytest_quant.errors import Unsupported, UsageError

_NO_ROOM = (
    "no available memory for the cache blocks",
    "less than desired gpu memory utilization",
    "less than desired cpu memory utilization",
    "less than requested memory for kv",
    "not enough gpu memory",
)
"""How vLLM says that the device's memory does not suffice, in small letters."""
_TOO_LONG = "larger than the available kv cache memory"


def told(error: BaseException) -> tuple[str, Any]:
    """``(kind, words)`` of an exception, or of the one that it came from: ``memory``, ``usage``, ``unsupported`` or
    ``failed``."""
    if isinstance(error, Unsupported):
        return "unsupported", (error.asked, error.found, error.needed)
    if isinstance(error, UsageError):
        return "usage", str(error)
    for each in _chain(error):
        words = _words(each)
        if is_out_of_memory(each) or any(said in words.lower() for said in _NO_ROOM):
            return "memory", words
        if _TOO_LONG in words.lower():
            return "usage", (
                f"the KV cache has no room for one sequence of the model's longest context: {words}; give a shorter "
                f"one (max_model_len among the engine's arguments), or more memory"
            )
    return "failed", _words(error)


def _words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if type(error).__name__ == "ValidationError" and len(lines) > 1:  # pydantic: a headline, the field, what is wrong
        lines = [line for line in lines[1:] if not line.startswith("For further information")]
        return " ".join(lines).partition(" [type=")[0][:500]
    said = " ".join(lines)[:500]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__ or each.__context__
    return found
