"""What NVML tells of an NVIDIA GPU during a measurement: other processes, throttling, clocks, heat and power."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quant.hardware import nvidia, sysfs
from pytest_quant.hardware.condition import Condition, Conditions

STEADY = 0.9
"""The lowest SM clock seen at work over the highest, below which the clocks were not steady."""
THROTTLED_SHARE = 0.01
"""Of the time, how much throttling counts: a GPU at work touches its power limit for microseconds all the time."""

# NVML's bits (nvmlClocksEventReasons*, once nvmlClocksThrottleReasons*): the names differ between bindings.
IDLE = 0x01
POWER_CAP = 0x04
SLOWDOWN = 0x08
SW_THERMAL = 0x20
HW_THERMAL = 0x40
POWER_BRAKE = 0x80

# The numbers of NVML's enumerations.
SM_CLOCK = 1
ON_THE_GPU = 0
BY_POWER = 0
BY_HEAT = 1

_INITIAL_NAMESPACE = "pid:[4026531836]"
"""Where process ids are the kernel's own (PROC_PID_INIT_INO of Linux)."""


@dataclass(frozen=True)
class Process:
    """One that holds a context on the GPU; bytes are ``None`` where the driver does not tell them."""

    pid: int
    bytes: int | None


@dataclass(frozen=True)
class Others:
    """Processes of others on the GPU: how many, the bytes they hold where that can be told, and their names."""

    count: int
    bytes: int | None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """What NVML says at one moment; ``None`` where it does not. MHz, degrees Celsius, watts."""

    clock: float | None = None
    reasons: int | None = None
    temperature: float | None = None
    power: float | None = None
    others: Others | None = None

    @property
    def idle(self) -> bool:
        return self.reasons is not None and bool(self.reasons & IDLE)


@dataclass(frozen=True)
class Totals:
    """Seconds since the driver was loaded in which power or heat held the clocks down."""

    time: float
    power: float | None
    thermal: float | None


class GpuWatch:
    """NVML's answers at the start, at each look and at the end. ``pid`` is this process's."""

    def __init__(
        self,
        load: Callable[[], Any] = nvidia.load,
        environ: Mapping[str, str] | None = None,
        root: Path = sysfs.ROOT,
        pid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._environ, self._root, self._clock = load, environ, root, clock
        self._pid = os.getpid() if pid is None else pid
        self._nvml: Any = None
        self._gpu: nvidia.Handles | None = None
        self._start: Totals | None = None
        self._at_rest: Others | None = None
        self._looks: list[Look] = []

    def start(self) -> None:
        self._close()
        self._looks = []
        nvml = self._load()
        nvml.nvmlInit()
        self._nvml = nvml
        self._gpu = nvidia.handles(nvml, self._environ)
        if self._gpu is not None:
            self._at_rest = self._others(("Compute", "Graphics"))
            self._start = self._totals()

    def look(self) -> None:
        if self._gpu is None:
            return
        board = self._gpu.board
        power = self._ask(board, ("nvmlDeviceGetPowerUsage",))
        look = Look(
            clock=self._ask(board, ("nvmlDeviceGetClockInfo", SM_CLOCK)),
            reasons=self._reasons(),
            temperature=self._ask(
                board, ("nvmlDeviceGetTemperatureV", ON_THE_GPU), ("nvmlDeviceGetTemperature", ON_THE_GPU)
            ),
            power=None if power is None else power / 1e3,
            others=self._others(("Compute",)),
        )
        self._looks.append(look)

    def stop(self) -> Conditions:
        try:
            if self._gpu is None or self._start is None:
                return Conditions()
            self.look()
            at_the_end = self._others(("Compute", "Graphics"))
            crowd, crowded = company([self._at_rest, *(look.others for look in self._looks), at_the_end])
            held, holding = throttling(self._looks, self._start, self._totals())
            uneven, speeds = clocks(self._looks)
            return Conditions((*crowd, *held, *uneven), {**crowded, **holding, **speeds, **self._limits()})
        finally:
            self._close()

    def _close(self) -> None:
        nvml, self._nvml, self._gpu, self._start = self._nvml, None, None, None
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _ask(self, handle: Any, *questions: tuple[Any, ...]) -> Any:
        """The first answer to a question (name and arguments); ``None`` where bindings, driver or GPU know none."""
        for question, *arguments in questions:
            with suppress(self._nvml.NVMLError, AttributeError):
                return getattr(self._nvml, question)(handle, *arguments)
        return None

    def _reasons(self) -> int | None:
        assert self._gpu is not None
        found = self._ask(
            self._gpu.board,
            ("nvmlDeviceGetCurrentClocksEventReasons",),
            ("nvmlDeviceGetCurrentClocksThrottleReasons",),
        )
        return None if found is None else int(found)

    def _totals(self) -> Totals:
        assert self._gpu is not None
        told = [self._ask(self._gpu.board, ("nvmlDeviceGetViolationStatus", by)) for by in (BY_POWER, BY_HEAT)]
        power, thermal = (None if status is None else status.violationTime / 1e9 for status in told)
        return Totals(self._clock(), power, thermal)

    def _others(self, kinds: Iterable[str]) -> Others | None:
        """Of the slice, where there is one."""
        assert self._gpu is not None
        handle = self._gpu.board if self._gpu.part is None else self._gpu.part
        names = [f"nvmlDeviceGet{kind}RunningProcesses" for kind in kinds]
        told = [self._ask(handle, (f"{name}_v3",), (f"{name}_v2",), (name,)) for name in names]
        if all(processes is None for processes in told):
            return None
        listed: dict[Any, Process] = {}
        for process in (process for processes in told for process in processes or ()):
            pid, held = int(process.pid), process.usedGpuMemory
            # One that draws and computes stands in both lists; 0 is each one whose number the driver does not give.
            listed.setdefault(pid or (0, len(listed)), Process(pid, None if held is None else int(held)))
        return others(tuple(listed.values()), self._root, self._pid)

    def _limits(self) -> dict[str, float]:
        assert self._gpu is not None
        top = self._ask(self._gpu.board, ("nvmlDeviceGetMaxClockInfo", SM_CLOCK))
        watts = self._ask(self._gpu.board, ("nvmlDeviceGetEnforcedPowerLimit",))
        limits = {"sm_clock_mhz_limit": top, "power_limit_w": None if watts is None else watts / 1e3}
        return {name: float(value) for name, value in limits.items() if value is not None}


def others(listed: Sequence[Process], root: Path, pid: int) -> Others | None:
    """Who of the listed is neither the process ``pid`` nor a descendant of it; ``None`` where that cannot be told.

    Inside a container older drivers list the host's process ids, newer ones the container's and hide the rest. So where
    this process is not listed and its ids are not the kernel's, one that is unknown here is taken to be this one: which
    one cannot be told, and so the bytes of the others cannot either.
    """
    theirs = [process for process in listed if not _ours(root, process.pid, pid)]
    if len(theirs) == len(listed) and not _initial(root):
        strange = [process for process in theirs if not (root / f"proc/{process.pid}").exists()]
        if not strange:
            return None if not theirs else _counted(theirs, root)
        if len(strange) > 1:
            return Others(len(theirs) - 1, None, _names(theirs, root))
        theirs = [process for process in theirs if process is not strange[0]]
    elif not listed:
        return None  # not even this process, which holds a context
    return _counted(theirs, root)


def _counted(theirs: Sequence[Process], root: Path) -> Others:
    held = [process.bytes for process in theirs]
    told = [count for count in held if count is not None]
    return Others(len(theirs), sum(told) if len(told) == len(held) else None, _names(theirs, root))


def _names(processes: Sequence[Process], root: Path) -> tuple[str, ...]:
    names = (sysfs.text(root / f"proc/{process.pid}/comm") for process in processes)
    return tuple(sorted({name for name in names if name}))


def _initial(root: Path) -> bool:
    try:
        return str((root / "proc/self/ns/pid").readlink()) == _INITIAL_NAMESPACE
    except OSError:
        return False


def _ours(root: Path, pid: int, own: int) -> bool:
    """Whether a process is ``own`` or descends from it."""
    seen: set[int] = set()
    while pid > 0 and pid not in seen:
        if pid == own:
            return True
        seen.add(pid)
        fields = (sysfs.text(root / f"proc/{pid}/stat") or "").rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    return False


Found = tuple[tuple[Condition, ...], dict[str, float]]


def company(seen: Iterable[Others | None]) -> Found:
    """The fullest of the moments. Figures: ``other_processes``, ``other_processes_bytes``."""
    moments = [moment for moment in seen if moment is not None]
    if not moments:
        return (), {}
    most = max(moments, key=lambda moment: (moment.count, moment.bytes or 0))
    figures = {"other_processes": float(most.count)}
    if most.count == 0:
        return (), figures
    text = f"{most.count} other process{'' if most.count == 1 else 'es'} on the GPU"
    if most.names:
        text += f" ({', '.join(most.names)})"
    if most.bytes is not None:
        figures["other_processes_bytes"] = float(most.bytes)
        text += f" with {most.bytes / 1e9:.1f} GB of its memory"
    return (Condition("other-process", text),), figures


def throttling(looks: Sequence[Look], before: Totals, after: Totals) -> Found:
    """What held the clocks down. Heat and brakes count wherever a look shows them; the power limit by its share of the
    time, and by the looks only where NVML does not count it.

    Figures: ``power_throttled_share`` and ``thermal_throttled_share`` of the time.
    """
    figures: dict[str, float] = {}
    seconds = after.time - before.time
    for name in ("power", "thermal"):
        start, end = getattr(before, name), getattr(after, name)
        if start is not None and end is not None and seconds > 0:
            figures[f"{name}_throttled_share"] = min(max(end - start, 0.0) / seconds, 1.0)
    known = [look for look in looks if look.reasons is not None]
    found = []

    def shown(bits: int) -> int:
        return sum(bool((look.reasons or 0) & bits) for look in known)

    def judge(name: str, title: str, seen: Mapping[str, int], share: float | None) -> None:
        parts = [f"{cause} in {count} of {len(known)} looks" for cause, count in seen.items() if count]
        if share is not None and share > THROTTLED_SHARE:
            parts.insert(0, f"{share:.0%} of the time")
        if parts:
            found.append(Condition(name, f"the GPU was throttled by {title}: {', '.join(parts)}"))

    # The general bit comes with one of the two that say why; by itself it may be either.
    why = SLOWDOWN | HW_THERMAL | POWER_BRAKE
    alone = sum((look.reasons or 0) & why == SLOWDOWN for look in known)
    heat = {"thermal slowdown": shown(SW_THERMAL | HW_THERMAL), "hardware slowdown (heat or power brake)": alone}
    judge("thermal-throttling", "heat", heat, figures.get("thermal_throttled_share"))
    power = {"power brake": shown(POWER_BRAKE)}
    if "power_throttled_share" not in figures:
        power["power limit"] = shown(POWER_CAP)
    judge("power-throttling", "power", power, figures.get("power_throttled_share"))
    return tuple(found), figures


def clocks(looks: Sequence[Look]) -> Found:
    """Whether the SM clock was steady while the GPU was at work; a look at an idle GPU shows the clock of idling.

    Figures: ``sm_clock_mhz_min`` and ``_max`` at work, the highest ``temperature_c`` and ``power_w`` of any look.
    """
    figures: dict[str, float] = {}
    heat = [look.temperature for look in looks if look.temperature is not None]
    power = [look.power for look in looks if look.power is not None]
    figures.update({"temperature_c": float(max(heat))} if heat else {})
    figures.update({"power_w": float(max(power))} if power else {})
    speeds = [look.clock for look in looks if look.clock is not None and not look.idle]
    if not speeds:
        return (), figures
    low, high = float(min(speeds)), float(max(speeds))
    figures.update({"sm_clock_mhz_min": low, "sm_clock_mhz_max": high})
    if low >= STEADY * high:
        return (), figures
    return (Condition("clocks", f"the SM clock moved between {low:.0f} and {high:.0f} MHz"),), figures
