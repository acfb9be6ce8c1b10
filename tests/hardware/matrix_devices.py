"""Devices that the matrix is asked about: replayed from recordings, or described by the specification table."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hardware_replay import cpuinfo, nvml, tree

from pytest_quant.hardware import amd, apple, cpu, intel, nvidia, specs
from pytest_quant.hardware.device import Device

MEMINFO = "MemTotal:       65863248 kB\n"
M2 = {"machdep.cpu.brand_string": b"Apple M2 Max\0", "hw.memsize": (64 * 2**30).to_bytes(8, "little")}

NVIDIA = {
    "T4": "t4",
    "A100": "a100-sxm-80gb",
    "A10G": "a10g",
    "RTX 3090": "rtx-3090",
    "L40S": "l40s",
    "RTX 4090": "rtx-4090",
    "H100": "h100-sxm",
    "H200": "h200",
    "B200": "b200",
    "RTX 5090": "rtx-5090",
    "GB10": "gb10",
}
AMD = {"MI250": "mi250", "MI300X": "mi300x-x8", "RX 7900 XTX": "rx-7900-xtx"}
INTEL = {"Arc A770": "arc-a770", "Max 1550": "max-1550"}
CPUS = {
    "Haswell": ("haswell", "x86_64"),
    "Ice Lake": ("ice-lake", "x86_64"),
    "Sapphire Rapids": ("sapphire-rapids", "x86_64"),
    "Zen 4": ("zen4", "x86_64"),
    "Graviton2": ("graviton2", "aarch64"),
    "Graviton3": ("graviton3", "aarch64"),
}
DESCRIBED = ("V100", "L4", "B300", "MI355X")
"""Nobody recorded these."""
RDNA4 = "RX 9070 XT"
APPLE = "Apple M2"
ALL = (*NVIDIA, *AMD, *INTEL, *CPUS, *DESCRIBED, RDNA4, APPLE)


@cache
def device(name: str) -> Device:
    """The device of that name as our detection finds it. It keeps nothing of the recording."""
    with TemporaryDirectory() as folder:
        found = _device(name, Path(folder))
    assert found is not None
    return found


def _device(name: str, folder: Path) -> Device | None:
    if name in NVIDIA:
        fake = nvml(NVIDIA[name])
        return nvidia.find(lambda: fake, {}, folder)[0]
    if name in AMD:
        return amd.find({}, tree(folder, AMD[name]), lambda path: True)[0]
    if name in INTEL:
        return intel.find({}, tree(folder, INTEL[name]), lambda path: True)[0]
    if name in CPUS:
        recording, machine = CPUS[name]
        tree(folder, {"proc/cpuinfo": cpuinfo(recording), "proc/meminfo": MEMINFO})
        return cpu.find("Linux", machine, folder, 8)
    if name == APPLE:
        return apple.find("Darwin", "arm64", "14.5", M2.get)[0]
    if name == RDNA4:
        return Device("rocm", "amd", "AMD Radeon RX 9070 XT", "gfx1201")
    return specs.device(name)
