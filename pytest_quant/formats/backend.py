"""The wall between the formats and the libraries that realize them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import Unsupported
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix_rows import Support

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FromPretrained = Callable[..., Any]
"""``from_pretrained(name, **arguments)`` of transformers, as the engine calls it: on the device, from safetensors only,
with all weights there. Gives the model."""


@dataclass(frozen=True)
class Stored:
    """How a loaded module really stores its weight, as far as the backend can tell."""

    num_bits: int
    type: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Asked:
    """A model that is to be opened in a format."""

    model: str
    """The base model: a folder or a hub id."""
    format: Format
    compute_dtype: str
    """torch's name of the type that quantized weights are multiplied in."""
    place: str
    """``cpu``, ``cuda:0``, ..."""
    excluded: tuple[str, ...] = ()
    """Full names of the modules that the format's ``exclude`` means."""
    checkpoint: str | None = None
    """Where the format is made beforehand: its folder or hub id, or a file."""
    revision: str | None = None
    """Of the base model."""
    trust_remote_code: bool = False

    @property
    def opening(self) -> dict[str, Any]:
        """What ``from_pretrained`` is told besides the base model's name."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


class Backend:
    """One library that realizes formats. Its module imports the library only when a model is opened.

    A package of yours adds one by an entry point of the group ``pytest_quant.backends`` that names an instance.
    """

    name: str
    requires: tuple[str, ...]
    """The distributions that it needs, as ``name`` or ``name>=version``."""
    install: str
    """What ``pip install`` is to be given for them."""
    formats: tuple[Format, ...]
    """What it realizes."""

    makes: bool = False
    """Whether :meth:`make` makes checkpoints."""
    takes_checkpoints: bool = False
    """Whether :meth:`open` takes a checkpoint of a format that can also be quantized while it is loaded."""
    unpacks: bool = False
    """Whether loading or the first forward makes wide weights of the stored ones; memory is then measured after it."""
    by_bytes: bool = False
    """Whether a weight that takes more bytes than the format says is not in it, whatever ``stored`` tells."""

    recipe: tuple[str, ...] = ()
    """Parameters of its formats that say how a checkpoint is made, and that no loaded model shows."""

    def support(self, format: Format, device: Device) -> Support | None:
        """Whether the format runs on the device, and why; ``None`` leaves the answer to the support matrix, which knows
        the built-in backends only."""
        return None

    def trouble(self, format: Format, device: Device) -> Unsupported | None:
        """Why the installed libraries cannot run the format on the device, although they are there; ``None`` if they
        can. Loads no model."""
        return None

    def computes_in(self, format: Format, device: Device, compute_dtype: str) -> str:
        """torch's name of the type that the kernels multiply unpacked weights in, when they are asked for
        ``compute_dtype``."""
        return format.compute_dtype(compute_dtype)

    def open(self, asked: Asked, from_pretrained: FromPretrained) -> Any:
        """The model in the format, on its device, before its first forward."""
        raise NotImplementedError

    def stored(self, module: Any) -> Stored | None:
        """How the module stores its weight; ``None`` if not in a format of this backend."""
        raise NotImplementedError

    def weight(self, module: Any, name: str) -> Any:
        """What holds the weight that the architecture calls ``name``, scales included, for its bytes to be counted."""
        return getattr(module, name, None)

    def realizes(self, stored: Stored, format: Format) -> bool:
        """Whether a weight that is stored so is in the format, its parameters apart."""
        return stored.num_bits == format.weights.num_bits and stored.type == format.weights.type

    def whole(self, model: Any) -> Any:
        """What holds the whole model, for its bytes to be counted."""
        return model

    def excluding(self, names: Sequence[str], head: str = "lm_head") -> str:
        """What leaves these modules in the compute type: the argument of the library as a line to paste, ``...`` in the
        place of its other arguments. ``names`` are full; ``head`` is the output head, which some libraries quantize
        too once they are told what to leave.

        Unless a backend knows better it is a format of ours, whose exclusions are what :meth:`open` and :meth:`make`
        find in ``asked.excluded``. :class:`Unsupported` where the library has no word for a module.
        """
        return f'variant("{self.formats[0].name}", "NAME", exclude={listed(names)})'

    def calibrates(self, format: Format) -> bool:
        """Whether making a checkpoint of the format needs calibration samples."""
        return False

    def make(
        self, asked: Asked, samples: Sequence[NDArray[np.int64]], folder: Path, tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        """Quantize the base model into the new ``folder``: config, tokenizer and safetensors; returns the recipe as
        it was carried out. ``samples`` are calibration windows without padding; ``tell`` shows progress."""
        raise Unsupported(
            asked=f"a checkpoint of {asked.model} in {asked.format.name}",
            found=f"{self.name} makes none",
            needed="one that was made elsewhere",
        )


def listed(names: Sequence[str]) -> str:
    """A Python list of strings."""
    return json.dumps(list(names), ensure_ascii=False)


def missing_packages(format: Format, backend: Backend) -> Unsupported | None:
    """The skip if a library that the format needs is not installed, or too old."""
    problems = [text for text in map(_problem, backend.requires) if text]
    if not problems:
        return None
    return Unsupported(
        asked=f"the format {format.name} (backend {backend.name})",
        found=", ".join(problems),
        needed=f"pip install {backend.install}",
    )


def installed(distribution: str) -> str | None:
    """The version that is installed; ``None`` if it is not."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _problem(requirement: str) -> str:
    from packaging.requirements import Requirement

    asked = Requirement(requirement)
    found = installed(asked.name)
    if found is None:
        return f"{asked.name} not installed"
    return "" if asked.specifier.contains(found, prereleases=True) else f"{asked.name} {found}, not {asked.specifier}"
