"""What vendors publish about GPUs: memory, bandwidth and dense peak rates, found by the name that a driver reports.

The rows and their sources are in ``specs.toml``. A name only ever picks a row of numbers; what a device *can do* is
decided by its compute capability or gfx architecture. A value that is not known, or not trusted, is ``None``.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pytest_quant.hardware import specs_file
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.specs_file import SOURCE, Spec

__all__ = [
    "SOURCE",
    "Spec",
    "compute_share",
    "device",
    "find",
    "guest_share",
    "is_guest",
    "names",
    "short_names",
    "slice_share",
]

_MIG = re.compile(r"(?P<parent>.+) MIG (?P<profile>(?:\d+c\.)?\d+g\.(?P<gb>\d+)gb\S*)", re.IGNORECASE)
_INSTANCE = re.compile(r"MIG (?:(?P<compute>\d+)c\.)?(?P<gpu>\d+)g\..*", re.IGNORECASE)
_FOUR_SLICES = ("A30", "RTX PRO")
"""GPUs that are cut into four; all others that can be are cut into seven."""
_GUEST = re.compile(r"(?P<family>.+?)-(?:(?P<slices>\d+)-)?(?P<gb>\d+)(?:[abq]|c(?:me)?)")


def find(name: str) -> Spec | None:
    """The row for a name as a driver reports it; ``None`` for one that is not in the table, never the nearest.

    Names are compared whole, so ``RTX 4090 D``, ``Ti``, ``Laptop GPU`` and ``Max-Q`` are other hardware. Drivers
    before R465 omit the ``NVIDIA`` in front. Names of MIG slices (``... MIG 1g.10gb``) and of vGPU guests
    (``GRID A100DX-80C``) answer the parent's row.
    """
    mig = _MIG.fullmatch(name.strip())
    plain = _plain(mig["parent"] if mig else name)
    guest = _guest(plain)
    return _by_guest()[guest["family"]] if guest else _by_name().get(plain)


def names() -> list[str]:
    """The names of all rows, for messages."""
    return [spec.name for spec in specs_file.load()]


def short_names() -> list[str]:
    """What people call the devices of all rows, such as ``H100`` and ``RTX 4090``: :func:`device` understands it."""
    rows = specs_file.load()
    names = (name for spec in rows for name in (spec.short or (spec.name.removeprefix("NVIDIA "),)))
    return list(dict.fromkeys(names))


def slice_share(spec: Spec, gb: float) -> float:
    """Which part of the board's memory, and so of its bandwidth, a slice named after ``gb`` holds: in eighths."""
    return min(8, max(1, round(8 * gb / spec.memory_gb))) / 8


def is_guest(name: str) -> bool:
    """Whether a name is that of a vGPU guest, which ends in its memory and profile letter."""
    return _guest(_plain(name)) is not None


def guest_share(name: str) -> float:
    """The part of the board's bandwidth that a vGPU guest can reach: all when it is time-sliced, less on MIG."""
    guest = _guest(_plain(name))
    return slice_share(_by_guest()[guest["family"]], int(guest["gb"])) if guest and guest["slices"] else 1.0


def compute_share(device: Device) -> float | None:
    """Which part of the board's units a device holds: all of a whole board and of a time-sliced vGPU, its slices on
    MIG; ``None`` where nobody says how it was partitioned."""
    guest = _guest(_plain(device.name))
    if guest and guest["slices"]:
        return min(1.0, int(guest["slices"]) / 7)
    if device.partition is None:  # a partition of AMD's is seen by its bandwidth, which is not known then
        spec = find(device.name)
        return 1.0 if spec is None or spec.bandwidth is None or device.bandwidth is not None else None
    if device.partition == "vGPU":
        return 1.0
    instance = _INSTANCE.fullmatch(device.partition)
    if instance is None:
        return None
    slices = 4 if any(name in device.name for name in _FOUR_SLICES) else 7
    return min(1.0, int(instance["compute"] or instance["gpu"]) / slices)


def device(name: str) -> Device | None:
    """A device that is not here, to plan for; ``None`` for a name that is not in the table.

    Besides reported names this understands short ones (``H100 SXM5``, ``A100``, ``RTX 4090``) and MIG slices of
    either (``A100 MIG 1g.10gb``). ``memory_bytes`` is the driver's total where that is known, else the nameplate;
    ``bandwidth`` is the published peak, scaled to the slice.
    """
    mig = _MIG.fullmatch(name.strip())
    asked = mig["parent"] if mig else name
    spec = _by_short().get(" ".join(asked.lower().split())) or find(asked)
    if spec is None:
        return None
    memory, share, partition = spec.memory_bytes, 1.0, None
    guest = _guest(_plain(asked))
    if mig:
        share, partition = slice_share(spec, int(mig["gb"])), f"MIG {mig['profile'].lower()}"
        memory = min(int(mig["gb"]) << 30, int(share * memory))
    elif guest:
        memory, share, partition = min(int(guest["gb"]) << 30, memory), guest_share(asked), "vGPU"
    notes = [f"This device is not here: it is described by the {SOURCE}."]
    if spec.unsure:
        notes.append(f"The table is unsure about the {', '.join(spec.unsure)} of {spec.name}.")
    return Device(
        kind="rocm" if spec.cc is None else "cuda",
        vendor="amd" if spec.cc is None else "nvidia",
        name=spec.name,
        architecture=spec.architecture,
        compute_capability=spec.cc,
        memory_bytes=memory,
        bandwidth=None if spec.bandwidth is None else spec.bandwidth * share,
        bandwidth_source=None if spec.bandwidth is None else SOURCE,
        partition=partition,
        notes=tuple(notes),
    )


def _plain(name: str) -> str:
    return " ".join(name.lower().split()).removeprefix("nvidia ")


def _guest(plain: str) -> re.Match[str] | None:
    match = None if plain in _by_name() else _GUEST.fullmatch(plain)
    return match if match and match["family"] in _by_guest() else None


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Spec]:
    return {_plain(name): spec for spec in specs_file.load() for name in (spec.name, *spec.aliases)}


@lru_cache(maxsize=1)
def _by_guest() -> dict[str, Spec]:
    return {name.lower(): spec for spec in specs_file.load() for name in spec.vgpu}


@lru_cache(maxsize=1)
def _by_short() -> dict[str, Spec]:
    return {name.lower(): spec for spec in specs_file.load() for name in spec.short}
