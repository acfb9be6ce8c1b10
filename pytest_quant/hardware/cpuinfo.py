"""Reads Linux's ``/proc/cpuinfo``, of x86 and of Arm."""

from __future__ import annotations

from dataclasses import dataclass

X86_FLAGS = {
    "avx2": "avx2",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx_ne_convert": "avx_ne_convert",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "amx_fp16": "amx_fp16",
    "amx_fp8": "amx_fp8",
}
AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""What Skylake-X brought and libraries mean by AVX-512; Knights Landing has only the first."""

ARM_FEATURES = {"asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve"}

X86_VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
ARM_VENDORS = {0x41: "arm", 0x61: "apple"}
ARM_MODELS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0xC0, 0xAC3): "AmpereOne",
}
"""By implementer and part, the numbers of the main id register (MIDR)."""


@dataclass(frozen=True)
class CpuInfo:
    """``None`` for what is not told; ``memory_bytes`` only where the same source tells it."""

    model: str | None
    vendor: str
    features: frozenset[str] | None
    memory_bytes: int | None = None


def parse(text: str, architecture: str) -> CpuInfo:
    """Model, vendor and the instruction sets that every core has (by the names of ``Device.features``).

    Cores may differ (big and little): the model then names each kind. Raises nothing.
    """
    cores = _cores(text)
    if architecture == "x86_64":
        flags = _common(cores, "flags")
        first = cores[0] if cores else {}
        model = " ".join(first.get("model name", "").split()) or None
        return CpuInfo(model, X86_VENDORS.get(first.get("vendor_id", ""), "unknown"), _x86(flags))
    if architecture == "aarch64":
        words = _common(cores, "Features")
        features = None if words is None else frozenset(ARM_FEATURES[word] for word in words if word in ARM_FEATURES)
        ids = sorted({(_hex(core, "CPU implementer"), _hex(core, "CPU part")) for core in cores if "CPU part" in core})
        models = [ARM_MODELS.get(id_, f"Arm CPU {id_[0]:#x}/{id_[1]:#x}") for id_ in ids]
        return CpuInfo(" + ".join(models) or None, ARM_VENDORS.get(ids[0][0] if ids else 0, "unknown"), features)
    return CpuInfo(None, "unknown", None)


def _x86(flags: frozenset[str] | None) -> frozenset[str] | None:
    if flags is None:
        return None
    return frozenset(
        {X86_FLAGS[flag] for flag in flags if flag in X86_FLAGS} | ({"avx512"} if flags >= AVX512 else set())
    )


def _cores(text: str) -> list[dict[str, str]]:
    blocks = []
    for block in text.replace("\r", "").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in fields:
            blocks.append(fields)
    return blocks


def _common(cores: list[dict[str, str]], key: str) -> frozenset[str] | None:
    sets = [frozenset(core[key].split()) for core in cores if key in core]
    return frozenset.intersection(*sets) if sets else None


def _hex(core: dict[str, str], key: str) -> int:
    try:
        return int(core.get(key, "0"), 0)
    except ValueError:
        return 0
