"""What a model fixture yields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pytest_quant.checkpoints.shelf import Checkpoint
from pytest_quant.errors import QuantError, Unsupported, UsageError
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Support

if TYPE_CHECKING:
    from pytest_quant.engines.transformers import TransformersModel
    from pytest_quant.engines.vllm.model import VllmModel
    from pytest_quant.formats.proof import Proof
    from pytest_quant.metrics.throughput import Timed
    from pytest_quant.roofline.shape import ModelShape


FLATTERED = ", which is the very corpus that it is judged on: its quality is flattered"
UNSURE = ", of a base that was named another way: whether it is this model cannot be told"
NO_RECORD = "not known: the checkpoint carries no record of its base model, recipe and calibration set"


class ModelHandle:
    """One model in one format, loaded and proven, on one device.

    The session takes it back when no later test needs it; using it after that is an error.
    """

    def __init__(
        self,
        loaded: TransformersModel | VllmModel,
        format: Format,
        support: Support,
        name: str,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._loaded: TransformersModel | VllmModel | None = loaded
        self.format = format
        """What it is in."""
        self.support = support
        """How the device runs that, and why."""
        self.name = name
        """The model's name, as people say it."""
        self._shape: list[ModelShape | None] = []
        self.checkpoint = checkpoint
        """Where a format that is made beforehand lies, with the record of how it was made, if there is one."""

    @property
    def loaded(self) -> TransformersModel | VllmModel:
        """The engine's own object."""
        if self._loaded is None:
            raise QuantError(f"{self!r} was given back: a model is held only while tests that ask for it run")
        return self._loaded

    def in_process(self, asked: str) -> TransformersModel:
        """The engine's own object, where it is in this process; :class:`Unsupported` names what was ``asked`` of it
        where it is not."""
        loaded = self.loaded
        if loaded.engine != "transformers":
            raise Unsupported(
                asked=f"{asked} of {self.format.name} on the engine {loaded.engine}",
                found="a model in a process of its own, of which only predictions are seen",
                needed='engine="transformers" for this test',
            )
        return cast("TransformersModel", loaded)

    @property
    def model(self) -> Any:
        """The library's model, e.g. a ``transformers.PreTrainedModel``."""
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        """Its own, of transformers."""
        return self.loaded.tokenizer

    @property
    def device(self) -> Device:
        """What it runs on."""
        return self.loaded.device

    @property
    def proof(self) -> Proof:
        """What the loaded model showed about its format."""
        return self.loaded.proof

    @property
    def weight_bytes(self) -> int:
        """True bytes of all weights in memory."""
        return self.proof.held_bytes

    def shape(self, *, trust_remote_code: bool = False) -> ModelShape | None:
        """What follows from its config for speed and memory; ``None`` where that cannot be told."""
        if not self._shape:
            from pytest_quant.engines.shape import shape_of

            try:
                self._shape.append(shape_of(self.loaded.config, trust_remote_code))
            except Exception:  # code of the model's own may raise anything, and a prediction is not worth a measurement
                self._shape.append(None)
        return self._shape[0]

    def figures(self, corpus: str | None = None) -> dict[str, Any]:
        """The proof as it goes into records, with what is known of how a checkpoint was made, and whether it was
        calibrated on the ``corpus`` of that hash, on which it is judged."""
        figures = self.proof.figures()
        if self.checkpoint is not None:
            record = self.checkpoint.record
            figures["checkpoint"] = self.checkpoint.place
            figures["recipe"] = NO_RECORD if record is None else record.short
            if record is not None and self.checkpoint.of_this_base is None:
                figures["recipe"] += UNSURE
            if record is not None and corpus in record.calibrated_on:
                figures["recipe"] += FLATTERED
        return figures

    def require_on_devices(self, what: str) -> None:
        """:class:`Unsupported` where weights are offloaded, so that ``what`` would be of moving them."""
        if (away := self.loaded.offload) is not None:
            raise Unsupported(
                asked=f"{what} of {self.name} in {self.format.name}",
                found=f"{away}: each forward brings them to the device, and that is what would be measured",
                needed="more memory or fewer bits, or a device_map without offload; quality can be measured so",
            )

    def generate(self, prompt: str, max_new_tokens: int = 20, **arguments: Any) -> str:
        """The continuation of ``prompt`` as text, greedy unless told otherwise."""
        return self.loaded.generate(prompt, max_new_tokens, **arguments)

    def timer(self, cache: str = "dynamic", *, compiled: bool = False) -> Timed:
        """What times runs of the model; the static ``cache`` and compilation are those of transformers.

        :class:`UsageError` where they are asked of another engine.
        """
        from pytest_quant.engines.timing import Runner

        loaded = self.loaded
        if loaded.engine == "transformers":
            return Runner(cast("TransformersModel", loaded), cache, compiled=compiled)
        if cache != "dynamic" or compiled:
            raise UsageError(
                f"cache={cache!r} and compile={compiled} are asked of the engine {loaded.engine}, which decides both "
                f"itself; leave them out, and say it by engine_args"
            )
        return cast("VllmModel", loaded).timer()

    def release(self) -> None:
        """Let go of the model. Its memory is free when nobody else refers to it; an engine's process is ended."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.close()

    def __repr__(self) -> str:
        return f"<{self.name} in {self.format.name}>"
