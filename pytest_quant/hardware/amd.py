"""AMD GPUs, read from the kernel's KFD topology below ``/sys``: no ROCm library is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_quant.hardware import specs, sysfs
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.visible import select

VENDOR = 0x1002
ARCHITECTURES = frozenset(
    {"gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030"}
    | {"gfx1100", "gfx1101", "gfx1102", "gfx1151", "gfx1200", "gfx1201"}
)
"""Those that PyTorch's ROCm builds are made for; any other GPU (most integrated ones) is left to the CPU."""

NAMES = {
    0x738C: "AMD Instinct MI100",
    0x7408: "AMD Instinct MI250X",
    0x740C: "AMD Instinct MI250X / MI250",
    0x740F: "AMD Instinct MI210",
    0x74A0: "AMD Instinct MI300A",
    0x74A1: "AMD Instinct MI300X",
    0x74A5: "AMD Instinct MI325X",
    0x74B5: "AMD Instinct MI300X VF",
    0x74B9: "AMD Instinct MI325X VF",
}
"""By PCI id (pci.ids), for boards that tell no product name; only ids that stand for one kind of board."""

REVISIONS = {
    (0x744C, 0xC8): "AMD Radeon RX 7900 XTX",
    (0x744C, 0xCC): "AMD Radeon RX 7900 XT",
    (0x744C, 0xCE): "AMD Radeon RX 7900 GRE",
}
"""By PCI id and revision (libdrm's amdgpu.ids), where the id stands for several."""


@dataclass(frozen=True)
class _Gpu:
    gfx: str
    name: str
    named: bool
    uuid: str
    memory_bytes: int | None


def _usable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def find(
    environ: Mapping[str, str] | None = None, root: Path = sysfs.ROOT, usable: Callable[[Path], bool] = _usable
) -> tuple[Device | None, tuple[str, ...]]:
    """The first GPU that HIP would show, and how many of its name; else ``None`` and why, if there is one at all.

    Honours ``ROCR_VISIBLE_DEVICES``, then ``HIP_VISIBLE_DEVICES`` (where unset, ``CUDA_VISIBLE_DEVICES``) among what
    that leaves. A board of two chips (MI250) is two devices, as for HIP. ``compute_capability`` stays ``None``: what
    HIP reports under that name is the gfx version, not NVIDIA's scale. Memory is that of one device. Raises nothing.
    """
    environ = os.environ if environ is None else environ
    gpus = _all(root)
    if not gpus:
        return None, ()
    if not usable(root / "dev/kfd"):
        return None, (f"There is an AMD GPU ({gpus[0].name}), but /dev/kfd may not be opened (groups render, video).",)
    visible = [gpu for _, gpu in _visible(gpus, environ)]
    if not visible:
        return None, (f"ROCR_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES hides all {len(gpus)} AMD GPUs that are here.",)
    left_out = sorted({gpu.name for gpu in visible if gpu.gfx not in ARCHITECTURES})
    notes = tuple(f"The AMD GPU {name} is left out: PyTorch is not built for its architecture." for name in left_out)
    supported = [gpu for gpu in visible if gpu.gfx in ARCHITECTURES]
    return (_device(root, supported) if supported else None), notes


def entries(environ: Mapping[str, str] | None = None, root: Path = sysfs.ROOT) -> tuple[str, ...]:
    """For each GPU that :func:`find` counts, what ``HIP_VISIBLE_DEVICES`` must be for HIP to show it alone."""
    visible = _visible(_all(root), os.environ if environ is None else environ)
    supported = [(name, gpu) for name, gpu in visible if gpu.gfx in ARCHITECTURES]
    return tuple(name for name, gpu in supported if gpu.name == supported[0][1].name)


def _all(root: Path) -> list[_Gpu]:
    nodes = sysfs.folders(root / "sys/class/kfd/kfd/topology/nodes", r"\d+")
    return [gpu for gpu in (_gpu(root, node) for node in nodes) if gpu is not None]


def _visible(gpus: list[_Gpu], environ: Mapping[str, str]) -> list[tuple[str, _Gpu]]:
    """The GPUs that HIP would show, each with its name among those that ROCm's own variable leaves."""
    mask = environ.get("HIP_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))
    left = [gpus[at] for at, _ in select(environ.get("ROCR_VISIBLE_DEVICES"), [gpu.uuid for gpu in gpus])]
    places = select(mask, [gpu.uuid for gpu in left])
    named = [str(at) for at, _ in places] if mask is None else [entry.strip() for entry in mask.split(",")]
    return [(name, left[at]) for name, (at, _) in zip(named, places, strict=False)]


def _device(root: Path, visible: list[_Gpu]) -> Device:
    gpu = visible[0]
    spec = specs.find(gpu.name)
    bandwidth = spec.bandwidth if spec else None
    notes = []
    if not gpu.named:
        notes.append("The kernel does not tell this GPU's product name.")
    if gpu.memory_bytes is None:
        notes.append("The kernel does not tell this GPU's memory.")
    if bandwidth is None:
        notes.append(f"The memory bandwidth of {gpu.name!r} is not known, so no speed is predicted.")
    elif spec and gpu.memory_bytes and gpu.memory_bytes < 0.9 * spec.memory_bytes:
        notes.append("This device has less memory than its board: it is a partition, and its bandwidth is not known.")
        bandwidth = None
    return Device(
        kind="rocm",
        vendor="amd",
        name=gpu.name,
        architecture=gpu.gfx,
        count=sum(other.name == gpu.name for other in visible),
        memory_bytes=gpu.memory_bytes,
        bandwidth=bandwidth,
        bandwidth_source=None if bandwidth is None else specs.SOURCE,
        driver=sysfs.text(root / "sys/module/amdgpu/version"),
        notes=tuple(notes),
    )


def _gpu(root: Path, node: Path) -> _Gpu | None:
    properties = sysfs.numbers(node / "properties")
    version = properties.get("gfx_target_version", 0)
    if properties.get("simd_count", 0) == 0 or version == 0:
        return None
    gfx = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    board = root / f"sys/class/drm/renderD{properties.get('drm_render_minor', 0)}/device"
    product = properties.get("device_id", 0)
    told = sysfs.text(board / "product_name") or NAMES.get(product)
    told = told or REVISIONS.get((product, sysfs.number(board / "revision") or 0))
    name = told if told is None or told.startswith("AMD") else f"AMD {told}"
    banks = [sysfs.numbers(bank / "properties") for bank in sysfs.folders(node / "mem_banks", r"\d+")]
    # heap types 1 and 2 are the GPU's own memory, visible and not visible to the CPU (kfd_crat.h).
    memory = sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in (1, 2))
    unique = properties.get("unique_id", 0)
    return _Gpu(gfx, name or f"AMD {gfx}", name is not None, f"GPU-{unique:016x}" if unique else "", memory or None)
