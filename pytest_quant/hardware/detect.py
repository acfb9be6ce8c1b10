"""Which device models will run on here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_quant.hardware import amd, apple, cpu, intel, nvidia
from pytest_quant.hardware.device import Device

Finder = Callable[[], tuple[Device | None, tuple[str, ...]]]
"""Answers a device, or ``None`` and the sentences that say why not (none when there is nothing to say)."""

FINDERS: tuple[tuple[str, Finder], ...] = (
    ("NVIDIA", nvidia.find),
    ("AMD", amd.find),
    ("Intel", intel.find),
    ("Apple", apple.find),
)


def detect(finders: Sequence[tuple[str, Finder]] = FINDERS) -> Device:
    """The first device of NVIDIA, AMD, Intel and Apple that is here and can be asked, else the CPU.

    Never raises, starts no process and imports no framework: the answers come from NVML, ``/sys``, ``/proc`` and
    ``sysctl``. It says what the machine has; whether the installed PyTorch was built for it is not asked here. What
    stood in the way of an earlier accelerator is in ``Device.notes``.
    """
    notes: tuple[str, ...] = ()
    for vendor, find in finders:
        try:
            device, said = find()
        except Exception as error:
            device, said = None, (f"Looking for {vendor} devices failed: {type(error).__name__}: {error}.",)
        notes += said
        if device is not None:
            return replace(device, notes=notes + device.notes)
    try:
        device = cpu.find()
    except Exception as error:
        notes += (f"The CPU could not be asked: {type(error).__name__}: {error}.",)
        return Device("cpu", "unknown", "unknown CPU", "unknown", notes=notes)
    return replace(device, notes=notes + device.notes)
