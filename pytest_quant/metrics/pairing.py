"""Scoring windows by a format and its reference, side by side or against what is known of the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pytest_quant.corpora.windows import Window, Windows
from pytest_quant.engines.vllm.scoring import known_kl
from pytest_quant.errors import UsageError
from pytest_quant.reference import WindowReference, coarse_kl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP_K = 64
"""Tokens of the reference that are kept at each position."""


class Scorer(Protocol):
    """What scoring asks of an engine's model; each answer is by row, sequence after sequence."""

    @property
    def max_positions(self) -> int | None: ...

    def windows_at_once(self, length: int) -> int: ...

    def top(self, tokens: NDArray[np.int64], scored_from: int, count: int) -> tuple[NDArray[np.float32], Any]: ...

    def against_top(self, tokens: NDArray[np.int64], scored_from: int, ids: NDArray[np.uint32]) -> Any: ...

    def against(
        self, reference: Any, tokens: NDArray[np.int64], scored_from: int, count: int
    ) -> tuple[NDArray[np.float32], Any, Any]: ...


@dataclass(frozen=True)
class WindowScore:
    """What both models say of one window, by predicted token, ``(T,)`` each."""

    weight: int
    """What its NLL is counted by: its predicted tokens, or its words."""
    nll: NDArray[np.float32]
    """Of the format, in nats."""
    reference_nll: NDArray[np.float32]
    agree: NDArray[np.bool_]
    """Whether the reference's most probable token is the format's too."""
    bound: NDArray[np.float64]
    """KL(reference || format) over the partition into the reference's top tokens and the rest: a lower bound, nats."""
    kl: NDArray[np.float32] | None = None
    """KL(reference || format) over the whole vocabulary, in nats; None where only a stored reference was there."""

    @property
    def scored(self) -> int:
        return len(self.nll)


def check_fits(model: Scorer, windows: Windows) -> None:
    """:class:`UsageError` where the model's context is shorter than a window."""
    longest = max(len(piece.tokens) - 1 for window in windows.drawn for piece in window.pieces)
    if model.max_positions is not None and longest > model.max_positions:
        limit = getattr(model, "max_model_len", None)
        where = "" if limit is None else f", which vLLM's max_model_len={limit} leaves"
        raise UsageError(
            f"windows of {longest + 1} tokens do not fit the model's {model.max_positions} positions{where}; "
            f"use a shorter one, such as --quant-protocol=gptq-{model.max_positions}"
        )


def next_batch(windows: Windows, start: int, size: int) -> Sequence[Window]:
    """The windows from ``start`` that are scored in one forward: at most ``size``, in groups that begin at multiples of
    it and hold one shape, so that a window has the same company in every run of the same batches."""
    end = min((start // size + 1) * size, len(windows.drawn))
    batch = [windows.drawn[start]]
    for window in windows.drawn[start + 1 : end]:
        if _shape(window) is None or _shape(window) != _shape(batch[0]):
            break
        batch.append(window)
    return batch


def score_reference(model: Scorer, batch: Sequence[Window], top_k: int) -> list[WindowReference]:
    """What the reference says of windows of one batch."""

    def run(tokens: NDArray[np.int64], scored_from: int, rows: slice) -> dict[str, NDArray[Any]]:
        nll, top = model.top(tokens, scored_from, top_k)
        return _kept(nll, top)

    return [_window_reference(found) for found in _by_window(batch, run)]


def score_against(model: Scorer, batch: Sequence[Window], known: Sequence[WindowReference]) -> list[WindowScore]:
    """A format against what is known of the reference in the same windows."""
    import numpy as np

    ids = np.concatenate([window.top_ids for window in known])

    def run(tokens: NDArray[np.int64], scored_from: int, rows: slice) -> dict[str, NDArray[Any]]:
        found = model.against_top(tokens, scored_from, ids[rows])
        return {"nll": found.nll, "agree": found.agree, "at_top": found.at_top}

    pairs = zip(batch, _by_window(batch, run), known, strict=True)
    return [_window_score(window, found, reference) for window, found, reference in pairs]


def score_beside(
    model: Scorer, reference: Scorer, batch: Sequence[Window], top_k: int
) -> list[tuple[WindowScore, WindowReference]]:
    """Both models in the same windows, with the divergence over the whole vocabulary."""

    def run(tokens: NDArray[np.int64], scored_from: int, rows: slice) -> dict[str, NDArray[Any]]:
        nll, top, found = model.against(reference, tokens, scored_from, top_k)
        kept = {f"reference_{name}": values for name, values in _kept(nll, top).items()}
        return {**kept, "nll": found.nll, "agree": found.agree, "at_top": found.at_top, "kl": found.kl}

    scored = []
    for window, found in zip(batch, _by_window(batch, run), strict=True):
        theirs = {name.removeprefix("reference_"): found[name] for name in found if name.startswith("reference_")}
        known = _window_reference(theirs)
        scored.append((_window_score(window, found, known), known))
    return scored


def _shape(window: Window) -> tuple[int, int] | None:
    """Length and first scored token of a window of one piece; others are scored by themselves."""
    if len(window.pieces) != 1:
        return None
    piece = window.pieces[0]
    return len(piece.tokens), piece.scored_from


def _by_window(
    batch: Sequence[Window], run: Callable[[NDArray[np.int64], int, slice], dict[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    """Run the batch (one forward for windows of one shape, one for each piece of another) and cut the rows apart."""
    import numpy as np

    if len(batch) == 1:
        parts, start = [], 0
        for piece in batch[0].pieces:
            stop = start + piece.scored
            parts.append(run(piece.tokens[None], piece.scored_from, slice(start, stop)))
            start = stop
        return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}]
    first = batch[0].pieces[0]
    tokens = np.stack([window.pieces[0].tokens for window in batch])
    rows = first.scored
    found = run(tokens, first.scored_from, slice(0, rows * len(batch)))
    return [{name: values[i * rows : (i + 1) * rows] for name, values in found.items()} for i in range(len(batch))]


def _kept(nll: NDArray[np.float32], top: Any) -> dict[str, NDArray[Any]]:
    return {"nll": nll, "top_ids": top.ids, "top_log_probs": top.log_probs, "rest_log_mass": top.rest}


def _window_reference(found: dict[str, NDArray[Any]]) -> WindowReference:
    return WindowReference(found["nll"], found["top_ids"], found["top_log_probs"], found["rest_log_mass"])


def _bound(found: dict[str, NDArray[Any]], known: WindowReference) -> NDArray[np.float64]:
    """What the reference's top tokens tell of the divergence; fewer of them where an engine does not tell what it gives
    to some."""
    import numpy as np

    told = found["at_top"]
    some = np.isnan(told).any() and bool(np.isfinite(found["nll"]).all())
    return (known_kl if some else coarse_kl)(known.top_log_probs, known.rest_log_mass, told)


def _window_score(window: Window, found: dict[str, NDArray[Any]], known: WindowReference) -> WindowScore:
    return WindowScore(
        weight=window.weight,
        nll=found["nll"],
        reference_nll=known.nll,
        agree=found["agree"],
        bound=_bound(found, known),
        kl=found.get("kl"),
    )
