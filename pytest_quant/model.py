"""What a model fixture yields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_quant.errors import QuantError
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Support

if TYPE_CHECKING:
    from pytest_quant.engines.transformers import TransformersModel
    from pytest_quant.formats.proof import Proof


class ModelHandle:
    """One model in one format, loaded and proven, on one device.

    The session takes it back when no later test needs it; using it after that is an error.
    """

    def __init__(self, loaded: TransformersModel, format: Format, support: Support, name: str) -> None:
        self._loaded: TransformersModel | None = loaded
        self.format = format
        self.support = support
        self.name = name

    @property
    def loaded(self) -> TransformersModel:
        """The engine's own object."""
        if self._loaded is None:
            raise QuantError(f"{self!r} was given back: a model is held only while tests that ask for it run")
        return self._loaded

    @property
    def model(self) -> Any:
        """The library's model, e.g. a ``transformers.PreTrainedModel``."""
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    @property
    def device(self) -> Device:
        return self.loaded.device

    @property
    def proof(self) -> Proof:
        """What the loaded model showed about its format."""
        return self.loaded.proof

    @property
    def weight_bytes(self) -> int:
        """True bytes of all weights, as loaded."""
        return self.proof.weight_bytes

    def generate(self, prompt: str, max_new_tokens: int = 20, **arguments: Any) -> str:
        """The continuation of ``prompt`` as text, greedy unless told otherwise."""
        return self.loaded.generate(prompt, max_new_tokens, **arguments)

    def release(self) -> None:
        """Let go of the model. Its memory is free when nobody else refers to it."""
        self._loaded = None

    def __repr__(self) -> str:
        return f"<{self.name} in {self.format.name}>"
