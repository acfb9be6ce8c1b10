"""Running a model again on one sequence with some of its modules replaced, from the decoder block on where they lie.

The reference runs once and what each block gave is kept. In a later run the blocks before the first replaced module
give that at once, by a ``forward`` of their own that is taken away afterwards, so that the model's own code does the
rest, whatever its architecture. Whether a run with bypassed blocks is the run itself, to the bit, is tried before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quant.engines import packed, predictions
from pytest_quant.engines.candidates import blocks
from pytest_quant.engines.memory import is_out_of_memory
from pytest_quant.engines.plain_head import PlainHead, plain_head
from pytest_quant.engines.predictions import Predictions

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pytest_quant.engines.transformers import TransformersModel

_PROBE = 16
"""Tokens that it is tried on whether blocks can be bypassed."""


@dataclass(frozen=True)
class Change:
    """What replacing modules did at each scored position, ``(rows,)``: of the NLL in nats, and KL(reference ||
    changed)."""

    nats: NDArray[np.float64]
    kl: NDArray[np.float64]


class Replay:
    """A reference model that is run with changes; a context manager, after which the model is as it was before."""

    def __init__(self, engine: TransformersModel, *, pack: bool = True, reuse: bool = True) -> None:
        self._engine = engine
        found = blocks(engine.model)
        self._prefix, self._blocks = found if found is not None and reuse else ("", ())
        self._outputs: list[Any] = [None] * len(self._blocks)
        self._recording = False
        self._first = 0
        self._pack = pack
        self._head = PlainHead(engine.head, engine.device, pack=pack) if plain_head(engine.head) else None
        self._held = contextlib.ExitStack()
        self._recorded: _Recorded | None = None
        self._tried = False
        self.reused = False
        """Whether what comes before a change is taken from the reference's run; else each run is a whole one."""

    def __enter__(self) -> Replay:
        with contextlib.ExitStack() as held:
            if self._pack:
                held.enter_context(packed.packed(self._engine.model, self._engine.device))
            for depth, block in enumerate(self._blocks):
                held.enter_context(packed.own_forward(block, self._bypass(depth, block.forward)))
            self.reused = bool(self._blocks) and self._can_bypass()
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._outputs = [None] * len(self._blocks)
        self._recorded = None
        self._held.close()

    def record(self, tokens: NDArray[np.int64], scored_from: int) -> None:
        """Run the reference on one sequence, of which ``tokens[scored_from:]`` are scored; the last is no input."""
        import torch

        with torch.inference_mode():
            self._recorded = None
            inputs = self._engine.tensor(tokens[None, :-1])
            states = self._run(inputs, record=True)
            if self.reused and not self._tried:  # on a real sequence too, from the middle
                self.reused = torch.equal(self._run(inputs, first=len(self._blocks) // 2), states)
                self._tried = True
            labels = self._engine.tensor(tokens[scored_from:])
            self._recorded = _Recorded(self._engine, self._head, inputs, labels, states[0, scored_from - 1 :])

    def nll(self) -> NDArray[np.float64]:
        """The reference's NLL of each scored token of the recorded sequence, nats."""
        import torch

        with torch.inference_mode():
            return self._now.nll()

    def change(self, modules: Mapping[str, Any]) -> Change:
        """What the model says of the recorded sequence with these modules, by full name, in the place of its own."""
        import torch

        now, model = self._now, self._engine.model
        head = model.get_output_embeddings()
        own_head = any(model.get_submodule(name) is head for name in modules)
        first = self._start(modules)
        with torch.inference_mode():
            with swapped(model, modules):
                states = self._run(now.inputs, first=first, whole=own_head)
            return now.against(states[0, -len(now.labels) :], logits=own_head or self._engine.head is None)

    @property
    def _now(self) -> _Recorded:
        if self._recorded is None:
            raise ValueError("no sequence was recorded")
        return self._recorded

    def _run(self, inputs: torch.Tensor, *, first: int = 0, record: bool = False, whole: bool = False) -> torch.Tensor:
        """Hidden states before the head or, where that cannot be told apart or ``whole``, logits; of all positions."""
        self._first, self._recording = first, record
        try:
            if whole or self._engine.head is None:
                found: torch.Tensor = self._engine.model(inputs, use_cache=False).logits
            else:
                found = self._engine.model.base_model(inputs, use_cache=False).last_hidden_state
        finally:
            self._first, self._recording = 0, False
        return found

    def _bypass(self, depth: int, forward: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            if depth < self._first:
                return self._outputs[depth]
            out = forward(*arguments, **named)
            if self._recording:
                self._outputs[depth] = out
            return out

        return run

    def _can_bypass(self) -> bool:
        """Whether the model says the same to the bit with any number of its first blocks bypassed."""
        import torch

        tokens = torch.arange(_PROBE, device=next(self._engine.model.parameters()).device)[None]
        tokens = tokens % self._engine.vocabulary
        with torch.inference_mode():
            try:
                whole = self._run(tokens, record=True)
                return all(
                    torch.equal(self._run(tokens, first=first), whole) for first in range(1, len(self._blocks) + 1)
                )
            except Exception as error:  # what code of the model's own may raise that is not meant for this
                if is_out_of_memory(error):
                    raise
                return False
            finally:
                self._outputs = [None] * len(self._blocks)

    def _start(self, modules: Mapping[str, Any]) -> int:
        """The first block that must run when these are replaced."""
        if not self.reused:
            return 0
        head = self._engine.model.get_output_embeddings()
        return min((self._depth(name, head) for name in modules), default=0)

    def _depth(self, name: str, head: Any) -> int:
        inside, dot, rest = name.partition(f"{self._prefix}.")
        if dot and not inside:
            return int(rest.partition(".")[0])
        return len(self._blocks) if self._engine.model.get_submodule(name) is head else 0


class _Recorded:
    """What the reference says of one sequence, and how another run compares with it."""

    def __init__(
        self,
        engine: TransformersModel,
        head: PlainHead | None,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        states: torch.Tensor,
    ) -> None:
        self.inputs, self.labels = inputs, labels
        self._head = engine.head
        self._states = states
        self._vocabulary = int(getattr(engine.model.get_output_embeddings(), "out_features", states.shape[-1]))
        self._base = None if head is None else head.base(states, labels)

    def nll(self) -> NDArray[np.float64]:
        return predictions.nll(self._predictions(self._states, self._head)).astype("float64")

    def against(self, states: torch.Tensor, *, logits: bool) -> Change:
        """Another run's hidden states, or its ``logits``, against the reference's."""
        if self._base is not None and not logits:
            compared = self._base.compare(states)
            if compared is not None:
                nats, kl = compared
                return Change(nats.cpu().numpy(), kl.cpu().numpy())
        theirs = self._predictions(self._states, self._head)
        ours = self._predictions(states, None if logits else self._head)
        nll, _, found = predictions.against(theirs, ours, 1)
        assert found.kl is not None
        return Change(found.nll.astype("float64") - nll, found.kl.astype("float64"))

    def _predictions(self, states: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor] | None) -> Predictions:
        width = states.shape[-1] if head is None else self._vocabulary
        return Predictions(states, head, self.labels, width)


@contextlib.contextmanager
def swapped(model: Any, modules: Mapping[str, Any]) -> Iterator[None]:
    """The model with other modules in the place of its own, by full name; restored whatever happens."""
    with contextlib.ExitStack() as held:
        for name in modules:
            parent_name, _, leaf = name.rpartition(".")
            children = model.get_submodule(parent_name)._modules
            held.callback(children.__setitem__, leaf, children[leaf])
            children[leaf] = modules[name]
        yield
