"""The last part of the proof: a format does not answer as its reference does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pytest_quant.errors import NotFinite, NotMeasured, UsageError
from pytest_quant.model import ModelHandle
from pytest_quant.models import Models
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOKENS = 32


class Difference:
    """Asks both models the same once; they need not be in memory together."""

    def __init__(self, models: Models, stream: Callable[[ModelHandle, ModelSpec], NDArray[np.int64]]) -> None:
        self._models = models
        self._stream = stream
        self._answers: WeakKeyDictionary[ModelHandle, NDArray[np.float32]] = WeakKeyDictionary()
        self._noted: dict[ModelSpec, NDArray[np.float32]] = {}
        """What references answered that were given back since."""

    def note(self, spec: ModelSpec) -> None:
        """Keep what the reference answers, which is in memory now: it may have to give way to its format."""
        if spec not in self._noted:
            self._noted[spec] = self._answer(spec, spec.reference)

    def is_noted(self, spec: ModelSpec) -> bool:
        """Whether the reference's answer is kept."""
        return spec in self._noted

    def forget(self, spec: ModelSpec) -> None:
        """Forget what the reference of a model answered: somebody changed one of them."""
        self._noted.pop(spec, None)

    def prove(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in the format, its proof completed by how far its answers are from the reference's; not where that
        runs on another engine, whose answers differ anyway.

        Raises :class:`UsageError` for the reference itself, :class:`NotMeasured` and :class:`NotFinite` where one of
        them answers NaN or infinity, ``ProofFailed`` where they answer the same.
        """
        import numpy as np

        if format_name == spec.reference:
            raise UsageError(f"{format_name} is the reference itself: its difference from the reference is 0")
        noted = self._noted.get(spec) if self._models.find(spec, spec.reference) is None else None
        theirs = self._answer(spec, spec.reference) if noted is None else noted
        ours = self._answer(spec, format_name)
        model = self._models.either(spec, format_name)
        if model.proof.reference_difference is not None:
            return model
        if not np.isfinite(theirs).all():
            raise NotMeasured(
                f"the {spec.reference} reference answers NaN or infinity: nothing can be said of {format_name}"
            )
        if not np.isfinite(ours).all():
            raise NotFinite(f"the {format_name} model answers NaN or infinity")
        if spec.mixes_engines:  # which differ by themselves: that proves nothing
            return model
        model.loaded.proof = model.proof.compared(float(np.abs(ours - theirs).max()), spec.reference)
        return model

    def _answer(self, spec: ModelSpec, name: str) -> NDArray[np.float32]:
        """Logits for the first tokens of the corpus; NLL where an engine tells no logits."""
        import numpy as np

        model = self._models.either(spec, name)
        if model not in self._answers:
            tokens = self._stream(model, spec)[:_TOKENS]
            if spec.in_process:
                self._answers[model] = model.in_process("logits").probe_logits(tokens)
            else:
                self._answers[model] = model.loaded.token_nll(tokens[None]).astype(np.float32)
        return self._answers[model]
