"""What runs on this machine and what does not, and what would change it: decided without loading any model.

Hardware comes from the support matrix, libraries from the installed distributions. The two are told apart: where the
hardware cannot run a format, no ``pip install`` is offered.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from pytest_quant import answering, asking
from pytest_quant.errors import Unsupported
from pytest_quant.formats import backend as installation
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Backend
from pytest_quant.formats.format import Format
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix import Matrix, Support

if TYPE_CHECKING:
    from packaging.requirements import Requirement

LIBRARY, HARDWARE, SETUP = "library", "hardware", "setup"


@dataclass(frozen=True)
class Library:
    """A distribution that a format needs, or that helps one."""

    name: str
    version: str | None
    """``None``: not installed."""
    wanted: str = ""
    """The versions that are needed, where the installed one is not among them."""
    backends: tuple[str, ...] = ()
    """Those that cannot do without it."""
    purpose: str = ""
    """What it is good for, where it is optional."""


@dataclass(frozen=True)
class Line:
    """One format on the device."""

    format: str
    backend: str
    status: str
    """``native`` or ``dequantized``: it runs; ``unsupported``: it cannot."""
    reason: str
    cause: str = ""
    """Why it cannot run: ``library``, ``hardware`` or ``setup`` (all is there, and something stands in the way)."""
    remedy: str = ""
    """What would change that."""
    source: str = ""
    from_checkpoint: bool = False

    @property
    def runs(self) -> bool:
        return self.status != "unsupported"


@dataclass(frozen=True)
class NotUsed:
    """A way to quantize that others use, that does not work with today's transformers, or not as it claims."""

    name: str
    distribution: str
    works_with: str
    """The last versions that it works with."""
    why: str
    instead: str
    source: str
    version: str | None = None
    """The one that is installed here."""


@dataclass(frozen=True)
class Diagnosis:
    """All that the command prints."""

    device: Device
    here: bool
    """Whether the device is the one of this machine; the libraries of another are not judged."""
    matrix: str
    libraries: tuple[Library, ...]
    lines: tuple[Line, ...]
    broken: tuple[str, ...]
    """What is wrong with backends of other packages."""
    not_used: tuple[NotUsed, ...]


_DESCRIPTION = """What can this machine run? Each format runs natively (multiplied in its own type), runs dequantized
(stored so, unpacked to a wider type first), or cannot run: then with the reason, and with what would change it, other
hardware or a pip install. Loads no model."""
_EXAMPLES = """examples:
  pytest-quant doctor
  pytest-quant doctor --device L4          # hardware that is not here
  pytest-quant doctor --json > doctor.json"""

OPTIONAL = {
    "kernels": "faster kernels, from a hub that must be reached",
    "triton": "faster kernels on GPUs",
    "mslk": "faster int4 and nvfp4 of torchao's on NVIDIA GPUs",
    "llmcompressor": "makes checkpoints for compressed-tensors; in an environment of its own, as it pins transformers",
    "lm-eval": "accuracy on tasks",
    "datasets": "corpora of the hub",
}
"""Distributions that no format is impossible without, and what each is good for."""

NOT_USED = (
    NotUsed(
        "AutoAWQ",
        "autoawq",
        "autoawq 0.2.9 (its last release) with transformers 4.51.3 and torch 2.6",
        "it is deprecated, and transformers 5 no longer calls it",
        "the format awq: gptqmodel makes such checkpoints and loads AutoAWQ's",
        "AutoAWQ README:6-7,63-69; transformers 5.23 quantizer_awq.py:45-61",
    ),
    NotUsed(
        "AutoGPTQ",
        "auto-gptq",
        "auto-gptq 0.7.1 (its last release) with transformers below 5 and torch below 2.6",
        "it is no longer maintained, and transformers 5 asks for gptqmodel",
        "the format gptq: gptqmodel makes such checkpoints and loads AutoGPTQ's",
        "auto-round 0.16.1 auto_round/inference/backend.py:264; transformers 5.23 quantizer_gptq.py:58-73",
    ),
    NotUsed(
        "HqqConfig of transformers",
        "hqq",
        "hqq 0.2.8 through its own AutoHQQHFModel",
        "transformers 5.23 raises NotImplementedError: HQQ is not available yet",
        "the format int4@hqq, which uses hqq's own loader",
        "transformers 5.23 quantizer_hqq.py:50-57, quantizers/base.py:314-316",
    ),
    NotUsed(
        "FbgemmFp8Config of transformers",
        "fbgemm-gpu",
        "fbgemm-gpu on NVIDIA GPUs of compute capability 9.0 and newer",
        "it refuses Ada, whose GPUs have fp8 units, and lets AMD GPUs without them pass",
        "the formats fp8 and fp8@finegrained-fp8, which begin at 8.9",
        "transformers 5.23 quantizer_fbgemm_fp8.py:54-74",
    ),
    NotUsed(
        "Mxfp4Config of transformers",
        "kernels",
        "models of the gpt-oss family",
        "it quantizes the experts of gpt-oss; on any other model it quantizes nothing and only warns",
        "the format mxfp4, which is torchao's",
        "transformers 5.23 integrations/mxfp4.py:517-538",
    ),
    NotUsed(
        "NVFP4Config of transformers",
        "kernels",
        "NVIDIA GPUs of compute capability 10.0 and newer, quantized while loading",
        "it loads no checkpoint and lets AMD GPUs pass, whose gfx version it takes for a compute capability",
        "the format nvfp4, which is torchao's, or nvfp4@compressed-tensors for checkpoints",
        "transformers 5.23 quantizer_nvfp4.py:52-79",
    ),
)


def diagnose(device: Device, matrix: Matrix, *, here: bool) -> Diagnosis:
    """What runs on the device. ``here``: judge the installed libraries too. Raises nothing for a backend of another
    package that is broken: it is among the lines."""
    backends, broken = registry.backends()
    wrong = [str(error) for error in broken]
    obstacle = _obstacle(device) if here else None
    lines: list[Line] = []
    sound: list[Backend] = []
    for backend in backends:
        try:
            lines += [_line(format, backend, device, matrix, here, obstacle) for format in backend.formats]
            sound.append(backend)
        except Exception as error:  # of another package
            name = getattr(backend, "name", type(backend).__qualname__)
            wrong.append(f"the backend {name!r} fails: {type(error).__name__}: {error}; mend or uninstall it")
    return Diagnosis(
        device,
        here,
        matrix.name,
        tuple(_libraries(sound)) if here else (),
        tuple(_with_alternatives(lines, sound)),
        tuple(wrong),
        tuple(replace(way, version=installation.installed(way.distribution)) for way in NOT_USED) if here else NOT_USED,
    )


def _line(
    format: Format, backend: Backend, device: Device, matrix: Matrix, here: bool, obstacle: Unsupported | None
) -> Line:
    own = backend.support(format, device)
    support = own or matrix.support(format, device)

    def cannot(cause: str, reason: str, remedy: str) -> Line:
        checkpoint = format.from_checkpoint
        return Line(format.name, backend.name, "unsupported", reason, cause, remedy, support.source, checkpoint)

    reason = support.reason if own else _reason(format, device, matrix) or support.reason
    if not support.runs:
        return cannot(HARDWARE, reason, support.needed)
    if here:
        if absent := installation.missing_packages(format, backend):
            return cannot(LIBRARY, f"{absent.found}; the hardware {_would(support)}", absent.needed)
        if trouble := obstacle or backend.trouble(format, device):
            return cannot(SETUP, trouble.found, trouble.needed)
    return Line(
        format.name,
        backend.name,
        support.status,
        reason,
        remedy=support.needed,
        source=support.source,
        from_checkpoint=format.from_checkpoint,
    )


def _reason(format: Format, device: Device, matrix: Matrix) -> str:
    """What the matrix says of the backend, where that says it all; the verdict need not be repeated."""
    realized = matrix.realized(format, device)
    decides = realized.status == "unsupported" or (realized.runs and format.weight_only)
    return realized.reason if decides else ""


def _would(support: Support) -> str:
    return "would run it natively" if support.status == "native" else "would run it dequantized"


def _obstacle(device: Device) -> Unsupported | None:
    """Why the installed torch cannot use the device, if it is there at all."""
    if device.kind == "cpu" or installation.installed("torch") is None:
        return None
    from pytest_quant.engines.loading import require_torch_for

    try:
        require_torch_for(device, "any format")
    except Unsupported as reason:
        return reason
    except Exception as error:  # whatever a broken installation raises
        found = f"torch cannot be imported: {type(error).__name__}: {error}"
        return Unsupported(f"any format on {device.name}", found, "torch mended or installed again")
    return None


def _with_alternatives(lines: Iterable[Line], backends: Iterable[Backend]) -> list[Line]:
    """What cannot run, with the formats that do much the same and run."""
    lines = list(lines)
    running = {line.format for line in lines if line.runs}
    instead = {
        format.name: [name for name in format.instead if name in running]
        for backend in backends
        for format in backend.formats
    }
    return [
        replace(line, remedy=f"{line.remedy}; or instead {' or '.join(others)}, which can run here")
        if not line.runs and (others := instead[line.format])
        else line
        for line in lines
    ]


def _libraries(backends: Iterable[Backend]) -> list[Library]:
    """Every distribution that a backend requires, in the order of the backends, and the optional ones after them."""
    from packaging.requirements import Requirement

    asked: dict[str, dict[str, list[str]]] = {}
    for backend in backends:
        for text in backend.requires:
            asked.setdefault(Requirement(text).name, {}).setdefault(text, []).append(backend.name)
    found = []
    for name, texts in asked.items():
        version = installation.installed(name)
        unmet = [text.removeprefix(name) for text in texts if not _met(Requirement(text), version)]
        wanted = " and ".join(text for text in unmet if text)
        found.append(Library(name, version, wanted, tuple(dict.fromkeys(chain(*texts.values())))))
    optional = {name: purpose for name, purpose in OPTIONAL.items() if name not in asked}
    return found + [Library(name, installation.installed(name), purpose=text) for name, text in optional.items()]


def _met(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the command's subcommands."""
    command = commands.add_parser(
        "doctor",
        help="which formats run here, and what would make the others run",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    asking.add_device(command, default="here", help="other hardware, e.g. L4 (default: here, this machine)")
    asking.add_matrix(command)
    command.add_argument(
        "--verbose", "-v", action="store_true", help="with sources, and what optional libraries are there"
    )
    answering.add_json(command)
    command.set_defaults(run=_run)


def _run(told: argparse.Namespace) -> int:
    from pytest_quant.hardware import matrix
    from pytest_quant.report.doctor import render

    found = diagnose(asking.device(told.device), matrix.load(told.matrix), here=told.device == "here")
    if told.json:
        return answering.answer(_record(found))
    print(render(found, verbose=told.verbose), end="")
    return 0


def _record(found: Diagnosis) -> dict[str, Any]:
    from pytest_quant.environment import describe_hardware

    return {
        "hardware": describe_hardware(found.device),
        "here": found.here,
        "matrix": found.matrix,
        "libraries": found.libraries,
        "formats": found.lines,
        "broken": found.broken,
        "not_used": found.not_used,
    }
