"""Apple silicon: the GPU behind PyTorch's MPS, asked through ``sysctlbyname``."""

from __future__ import annotations

import platform
from collections.abc import Callable

from pytest_quant.hardware.device import Device

Sysctl = Callable[[str], "bytes | None"]
"""Answers the raw value of a name, or ``None`` where there is no such name."""


def sysctl(name: str) -> bytes | None:
    """What the kernel's ``sysctlbyname`` answers; ``None`` on other systems and for unknown names."""
    import ctypes
    import ctypes.util

    try:
        call = ctypes.CDLL(ctypes.util.find_library("c") or "libc.dylib").sysctlbyname
    except (OSError, AttributeError):
        return None
    size = ctypes.c_size_t(0)
    key = name.encode()
    if call(key, None, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    value = ctypes.create_string_buffer(size.value)
    if call(key, value, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None
    return value.raw[: size.value]


def number(raw: bytes | None) -> int | None:
    """A sysctl integer, which comes little-endian in 4 or 8 bytes."""
    return int.from_bytes(raw, "little") if raw else None


def text(raw: bytes | None) -> str | None:
    """A sysctl string, which ends in a zero byte."""
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip() or None if raw else None


def find(
    system: str | None = None, machine: str | None = None, release: str | None = None, ask: Sysctl = sysctl
) -> tuple[Device | None, tuple[str, ...]]:
    """The GPU of a Mac with Apple silicon, else ``None``. Raises nothing.

    ``memory_bytes`` is the whole unified memory, which the CPU uses too. ``driver`` is the version of macOS, which
    decides what Metal can do (bf16 needs 14). A Python built for Intel, run translated, sees no such GPU.
    """
    system, machine = system or platform.system(), machine or platform.machine()
    if system != "Darwin" or machine != "arm64":
        return None, ()
    name, memory = text(ask("machdep.cpu.brand_string")), number(ask("hw.memsize"))
    notes = []
    if name is None:
        notes.append("The system does not tell the chip's name.")
    if memory is None:
        notes.append("The system does not tell its memory.")
    notes.append("The memory bandwidth is not known, so no speed is predicted.")
    release = platform.mac_ver()[0] if release is None else release
    return Device(
        kind="mps",
        vendor="apple",
        name=name or "Apple silicon",
        architecture="apple",
        memory_bytes=memory,
        driver=f"macOS {release}" if release else None,
        notes=tuple(notes),
    ), ()
