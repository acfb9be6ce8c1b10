"""Whether flat arrays can be a reference at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_quant.reference.windows import Windows

_ABOVE_ZERO = 1e-3  # nats by which rounding may lift a log-probability above 0
_MASS = 0.05  # by which the probabilities of a token may miss 1: float16 logarithms make it 0.005 at most
_ROWS = 1 << 14  # tokens whose mass is added up at a time


def problem(windows: Windows, total: int, top_k: int) -> str | None:
    """What makes these windows unfit to be a reference, as the end of a sentence that says "it holds ..."; None if
    nothing does."""
    return _shapes(windows, total, top_k) or _finite(windows) or _probabilities(windows)


def _shapes(windows: Windows, total: int, top_k: int) -> str | None:
    tokens = len(windows.nll)
    expected: dict[str, tuple[int, ...]] = {"nll": (tokens,), "rest_log_mass": (tokens,)}
    expected |= {"top_ids": (tokens, top_k), "top_log_probs": (tokens, top_k), "lengths": (len(windows),)}
    types = {"nll": "float32", "rest_log_mass": "float32", "top_log_probs": "float16", "lengths": "int64"}
    for name, shape in expected.items():
        array = getattr(windows, name)
        if array.shape != shape:
            return f"{name} of shape {array.shape} where {shape} belongs"
        if array.dtype.name != types.get(name, array.dtype.name):
            return f"{name} of type {array.dtype.name} where {types[name]} belongs"
    if windows.top_ids.dtype.name not in ("uint16", "uint32"):
        return f"top_ids of type {windows.top_ids.dtype.name} where uint16 or uint32 belongs"
    if top_k < 1 or not 1 <= len(windows) <= total:
        return f"{len(windows)} windows of {total} with the top {top_k} tokens; there must be 1 or more of each"
    # tokens bounds each length first, so that the sum of a few huge ones cannot wrap around
    if int(windows.lengths.min()) < 1 or int(windows.lengths.max()) > tokens or int(windows.lengths.sum()) != tokens:
        return f"windows whose lengths do not add up to its {tokens} tokens, or a window without tokens"
    return None


def _finite(windows: Windows) -> str | None:
    import numpy as np

    for name in ("nll", "top_log_probs", "rest_log_mass"):
        if not bool(np.isfinite(getattr(windows, name)).all()):
            return f"NaN or infinity in {name}"
    return None


def _probabilities(windows: Windows) -> str | None:
    import numpy as np

    if float(windows.nll.min()) < -_ABOVE_ZERO:
        return "a negative number in nll, which would be a probability above 1"
    for start in range(0, len(windows.nll), _ROWS):
        top = windows.top_log_probs[start : start + _ROWS].astype(np.float32)
        if bool((top[:, 1:] > top[:, :-1]).any()):
            return "top_log_probs that are not in falling order"
        with np.errstate(over="ignore"):
            mass = np.exp(top).sum(axis=1) + np.exp(windows.rest_log_mass[start : start + _ROWS])
        if bool((np.abs(mass - 1) > _MASS).any()):
            return "probabilities of a token that do not add up to 1"
    return None
