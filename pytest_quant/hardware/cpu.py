"""The CPU: model, usable cores, instruction sets and memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pytest_quant.hardware import apple, cgroup, sysfs
from pytest_quant.hardware.cpuinfo import CpuInfo, parse
from pytest_quant.hardware.device import Device

MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "i686": "x86", "i386": "x86"}

APPLE_FEATURES = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}


def find(
    system: str | None = None,
    machine: str | None = None,
    root: Path = sysfs.ROOT,
    cores: int | None = None,
    ask: apple.Sysctl = apple.sysctl,
) -> Device:
    """The CPU as one device. Raises nothing; what is not known is ``None``, absent, or said in ``notes``.

    The name carries the usable cores, since speed depends on them: the logical CPUs that this process may run on
    (``cores``, by default its affinity), less where a control group's quota is smaller. Memory is the machine's, less
    where a control group's limit is smaller. Instruction sets are those of all cores, as the kernel prints them;
    Linux prints neither AVX-NE-CONVERT nor AMX-FP16 on many versions, and then they are missing here too.
    ``bandwidth`` is always ``None``: :mod:`pytest_quant.engines.probe` measures it on request.
    """
    system = system or platform.system()
    machine = (machine or platform.machine()).lower()
    architecture = MACHINES.get(machine, machine) or "unknown"
    if system == "Linux":
        info = parse(sysfs.text(root / "proc/cpuinfo") or "", architecture)
    elif system == "Darwin":
        info = _darwin(ask)
    else:
        info = CpuInfo(platform.processor() or None, _vendor(platform.processor()), None, None)
    notes = []
    if info.model is None:
        notes.append("The system does not tell the CPU's model.")
    if info.features is None:
        notes.append("The system does not tell the CPU's instruction sets.")
    memory = _memory(root) if system == "Linux" else info.memory_bytes
    if memory is None:
        notes.append("The system does not tell its memory.")
    usable = _cores(root if system == "Linux" else None, cores)
    return Device(
        kind="cpu",
        vendor=info.vendor,
        name=f"{info.model or f'{architecture} CPU'}, {usable:g} {'core' if usable == 1 else 'cores'}",
        architecture=architecture,
        features=info.features or frozenset(),
        memory_bytes=memory,
        notes=(*notes, "The memory bandwidth is not known unless it is measured."),
    )


def _cores(root: Path | None, cores: int | None) -> float:
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = None if root is None else cgroup.cpu_limit(root)
    return cores if quota is None else min(cores, round(quota, 2))


def _memory(root: Path) -> int | None:
    for line in (sysfs.text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
            limit = cgroup.memory_limit(root)
            return total if limit is None else min(total, limit)
    return None


def _darwin(ask: apple.Sysctl) -> CpuInfo:
    model = apple.text(ask("machdep.cpu.brand_string"))
    features = frozenset(name for key, name in APPLE_FEATURES.items() if apple.number(ask(key)))
    return CpuInfo(model, _vendor(model or ""), features, apple.number(ask("hw.memsize")))


def _vendor(model: str) -> str:
    lowered = model.lower()
    known = {"apple": "apple", "intel": "intel", "amd": "amd", "arm": "arm"}
    return next((vendor for word, vendor in known.items() if word in lowered), "unknown")
