"""One GPU for each worker: which, and how many workers have one."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_quant.hardware.device import Device

VARIABLES = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES"}


class DeviceWarning(UserWarning):
    """A worker could not be given a GPU of its own."""


def lanes(kind: str, count: int) -> int | None:
    """How many workers can hold a model at once without sharing a device; None for any number, as on a CPU."""
    if kind == "cpu":
        return None
    return max(count, 1) if kind in VARIABLES else 1


def entries(device: Device) -> tuple[str, ...]:
    """What names each device that ``device`` counts, in the environment variable of its kind. Empty where there is
    nothing to choose from."""
    if device.count < 2:
        return ()
    if device.kind == "cuda":
        from pytest_quant.hardware import nvidia

        return nvidia.entries()
    if device.kind == "rocm":
        from pytest_quant.hardware import amd

        return amd.entries()
    return ()


def assign(
    kind: str,
    lane: int,
    names: Sequence[str],
    environ: MutableMapping[str, str] | None = None,
    seen: Callable[[], int | None] | None = None,
) -> str | None:
    """Leave only the ``lane``-th of the named devices visible to this process, and say which; None where there is
    nothing to choose.

    It takes effect only before CUDA (or HIP) starts. ``seen`` tells how many devices the framework sees afterwards,
    None where none is imported yet: where that is not one, the variable is put back, and a :class:`DeviceWarning` says
    what to do.
    """
    environ = os.environ if environ is None else environ
    if len(names) < 2 or kind not in VARIABLES:
        return None
    variable, name = VARIABLES[kind], names[lane % len(names)]
    before = environ.get(variable)
    environ[variable] = name
    if (visible := (_seen_by_torch if seen is None else seen)()) in (None, 1):
        return name
    if before is None:
        del environ[variable]
    else:
        environ[variable] = before
    warnings.warn(
        DeviceWarning(
            f"this worker shares the first of {visible} GPUs with others: {variable}={name} came too late, since "
            f"CUDA had been started while tests were collected. Do not ask torch.cuda.is_available() when a test "
            f"module is imported, ask in a fixture"
        ),
        stacklevel=2,
    )
    return None


def _seen_by_torch() -> int | None:
    """What the driver tells PyTorch, which unlike ``torch.cuda.device_count()`` does not read the variable anew."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    try:
        return int(torch._C._cuda_getDeviceCount())
    except (AttributeError, RuntimeError):  # built for no GPU, or no driver answers
        return None
