"""Intel GPUs, read from ``/sys/class/drm``: only discrete ones are chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pytest_quant.hardware import sysfs
from pytest_quant.hardware.device import Device

VENDOR = 0x8086
DRIVERS = frozenset({"xe", "i915"})

DISCRETE = {
    0x0BD5: ("xe-hpc", "Intel Data Center GPU Max 1550"),
    0x0BD6: ("xe-hpc", "Intel Data Center GPU Max 1550"),
    0x0BD7: ("xe-hpc", "Intel Data Center GPU Max 1350"),
    0x0BD8: ("xe-hpc", "Intel Data Center GPU Max 1350"),
    0x0BD9: ("xe-hpc", "Intel Data Center GPU Max 1100"),
    0x0BDA: ("xe-hpc", "Intel Data Center GPU Max 1100"),
    0x0BDB: ("xe-hpc", "Intel Data Center GPU Max 1100"),
    0x56A0: ("xe-hpg", "Intel Arc A770"),
    0x56A1: ("xe-hpg", "Intel Arc A750"),
    0x56A2: ("xe-hpg", "Intel Arc A580"),
    0x56A5: ("xe-hpg", "Intel Arc A380"),
    0x56A6: ("xe-hpg", "Intel Arc A310"),
    0x56C0: ("xe-hpg", "Intel Data Center GPU Flex 170"),
    0x56C1: ("xe-hpg", "Intel Data Center GPU Flex 140"),
    0xE20B: ("xe2", "Intel Arc B580"),
    0xE20C: ("xe2", "Intel Arc B570"),
}
"""Architecture and name by PCI id (pci.ids)."""


def _usable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def find(
    environ: Mapping[str, str] | None = None, root: Path = sysfs.ROOT, usable: Callable[[Path], bool] = _usable
) -> tuple[Device | None, tuple[str, ...]]:
    """The first discrete Intel GPU, and how many of its name; else ``None`` and a sentence about what was left out.

    A GPU whose PCI id is not in the table may be integrated, where the CPU is as good: it is not chosen. A board of
    two tiles is two devices, unless ``ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE``.
    ``memory_bytes`` is told by the ``xe`` driver alone. ``ZE_AFFINITY_MASK`` is not interpreted. Raises nothing.
    """
    environ = os.environ if environ is None else environ
    notes: list[str] = []
    found: list[tuple[Path, str, str]] = []
    for card in sysfs.folders(root / "sys/class/drm", r"card\d+"):
        board = card / "device"
        if sysfs.number(board / "vendor") != VENDOR or (board / "driver").resolve().name not in DRIVERS:
            continue
        product = sysfs.number(board / "device") or 0
        known = DISCRETE.get(product)
        nodes = [root / "dev/dri" / node.name for node in sysfs.folders(board / "drm", r"renderD\d+")]
        if known is None:
            notes.append(
                f"The Intel GPU 8086:{product:04x} (xe-unknown) is left out: it is not known to be a discrete one."
            )
        elif not all(usable(node) for node in nodes):
            notes.append(f"There is an {known[1]}, but its device file in /dev/dri may not be opened (group render).")
        else:
            found.append((board, *known))
    if not found:
        return None, tuple(notes)
    board, architecture, name = found[0]
    tiles = [sysfs.number(tile / "physical_vram_size_bytes") or 0 for tile in sysfs.folders(board, r"tile\d+")]
    whole = environ.get("ZE_FLAT_DEVICE_HIERARCHY") == "COMPOSITE"
    memory = (sum(tiles) if whole else max(tiles, default=0)) or None
    if memory is None:
        notes.append("The kernel does not tell this GPU's memory.")
    notes.append(f"The memory bandwidth of {name!r} is not known, so no speed is predicted.")
    if environ.get("ZE_AFFINITY_MASK") is not None:
        notes.append("ZE_AFFINITY_MASK is set; it is not interpreted here.")
    return Device(
        kind="xpu",
        vendor="intel",
        name=name,
        architecture=architecture,
        count=sum(other == name for _, _, other in found) * (1 if whole else max(1, len(tiles))),
        memory_bytes=memory,
        driver=(board / "driver").resolve().name,
        notes=tuple(notes),
    ), ()
