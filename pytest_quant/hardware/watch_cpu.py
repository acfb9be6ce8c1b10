"""What others took of the CPUs, what a quota or heat held back: counted by Linux, read twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quant.hardware import cgroup, sysfs
from pytest_quant.hardware.condition import Condition, Conditions

OTHERS_SHARE = 0.10
"""Of the time of this process's CPUs, how much others may take before it counts as load."""
OTHERS_SECONDS = 0.1
"""And how many CPU seconds at least: ten ticks, so that a short measurement is not judged by how its ticks fell."""
SHORTEST = 0.1
"""Seconds, below which the kernel's clock of 10 ms says nothing about shares."""
THROTTLED_SHARE = 0.01
"""Of the time, how much throttling counts: governors brake for microseconds all the time."""

_BUSY = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal of a line of ``/proc/stat``; user and nice hold the guests' time already."""
_STEAL = 7


@dataclass(frozen=True)
class Reading:
    """The counters at one moment; ``None`` or absent is what the kernel does not tell."""

    time: float
    """Seconds, as all below that is not said to be ticks of the kernel's clock."""
    busy: int | None = None
    """Ticks of the CPUs together, stolen time included."""
    stolen: int | None = None
    """Ticks."""
    own: int | None = None
    """Ticks of this process, of its children that have ended and of its descendants that live."""
    throttled: float | None = None
    """CPU time that the quota of a control group held back."""
    hot: Mapping[int, float] = field(default_factory=dict)
    """Seconds that each CPU was throttled by its own or its package's heat."""


def read(root: Path, pid: int, cpus: Collection[int], now: float) -> Reading:
    """The counters of these CPUs and of a process, below ``root``."""
    times = _times(root, cpus)
    return Reading(
        now,
        None if times is None else sum(line[field] for line in times for field in _BUSY),
        None if times is None else sum(line[_STEAL] for line in times),
        _own(root, pid),
        cgroup.cpu_throttled(root),
        {cpu: heat for cpu in cpus if (heat := _heat(root, cpu)) is not None},
    )


def judge(before: Reading, after: Reading, cpus: int, tick: float = 0.01) -> Conditions:
    """What happened between two readings of so many CPUs; ``tick`` in seconds.

    Figures: ``others_cpu_share`` and ``stolen_cpu_share`` of the time of these CPUs, ``cpu_throttled_share`` of the
    time (the quota; more than 1 where it held several CPUs), ``cpu_hot_share`` of the time.
    """
    seconds = after.time - before.time
    if seconds < SHORTEST or cpus < 1:
        return Conditions()
    found: list[Condition] = []
    figures: dict[str, float] = {}
    busy, stolen = _grown(before.busy, after.busy), _grown(before.stolen, after.stolen)
    own = _grown(before.own, after.own)
    if busy is not None and own is not None:
        others = max(busy - own, 0) * tick
        share = figures["others_cpu_share"] = min(others / (seconds * cpus), 1.0)
        steal = figures["stolen_cpu_share"] = min((stolen or 0) * tick / (seconds * cpus), 1.0)
        if share > OTHERS_SHARE and others >= OTHERS_SECONDS:
            found.append(Condition("cpu-load", _load(share, steal, cpus)))
    throttled = _grown(before.throttled, after.throttled)
    if throttled is not None:
        share = figures["cpu_throttled_share"] = throttled / seconds
        if share > THROTTLED_SHARE:
            text = f"the control group's CPU quota held threads back for {throttled:.2f} s of {seconds:.1f} s"
            found.append(Condition("cpu-quota", text))
    hot = [after.hot[cpu] - heat for cpu, heat in before.hot.items() if cpu in after.hot]
    if hot:
        share = figures["cpu_hot_share"] = min(max(0.0, *hot) / seconds, 1.0)
        if share > THROTTLED_SHARE:
            found.append(Condition("thermal-throttling", f"heat throttled a CPU in {share:.0%} of the time"))
    return Conditions(tuple(found), figures)


class CpuWatch:
    """Two readings, and what lies between. ``cpus`` are by default those that any thread of this process may use."""

    def __init__(
        self,
        root: Path = sysfs.ROOT,
        pid: int | None = None,
        cpus: Collection[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._pid, self._clock = root, os.getpid() if pid is None else pid, clock
        self._asked = cpus
        self._cpus: frozenset[int] = frozenset()
        self._start: Reading | None = None

    def start(self) -> None:
        self._cpus = usable(self._root, self._pid) if self._asked is None else frozenset(self._asked)
        self._start = self._read()

    def look(self) -> None:
        """Nothing: the kernel counts."""

    def stop(self) -> Conditions:
        start, self._start = self._start, None
        if start is None:
            return Conditions()
        tick = 1.0 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
        return judge(start, self._read(), len(self._cpus), tick)

    def _read(self) -> Reading:
        return read(self._root, self._pid, self._cpus, self._clock())


def usable(root: Path, pid: int) -> frozenset[int]:
    """The CPUs that the threads of a process may run on, together: an OpenMP library may bind each thread to its own.
    Empty where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset()
    found: set[int] = set()
    for thread in sysfs.folders(root / f"proc/{pid}/task", r"\d+"):
        try:
            found |= os.sched_getaffinity(int(thread.name))
        except OSError:
            continue  # it has ended
    return frozenset(found)


def _load(share: float, steal: float, cpus: int) -> str:
    text = f"others took {share:.0%} of {'the CPU' if cpus == 1 else f'the {cpus} CPUs'}"
    return f"{text} ({steal:.0%} by the hypervisor, for other guests)" if steal > THROTTLED_SHARE else text


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(after - before, 0.0)


def _times(root: Path, cpus: Collection[int]) -> list[list[int]] | None:
    """The ticks of each CPU; ``None`` if not all are listed, as where a container renumbers them."""
    lines = {}
    for line in (sysfs.text(root / "proc/stat") or "").splitlines():
        name, *fields = line.split()
        if not name.startswith("cpu"):
            break
        lines[name] = [int(text) for text in fields]
    try:
        return [[lines[f"cpu{cpu}"][field] for field in range(8)] for cpu in cpus] or None
    except (KeyError, IndexError):
        return None


def _own(root: Path, pid: int) -> int | None:
    """Ticks of a process and of its descendants; a child that ends passes its own on to its parent."""
    processes = {}
    for entry in sysfs.folders(root / "proc", r"\d+"):
        text = sysfs.text(entry / "stat")
        if text is None:
            continue  # it has ended
        # A process's name stands in brackets and may itself hold brackets and spaces.
        fields = text.rpartition(")")[2].split()
        processes[int(entry.name)] = int(fields[1]), sum(int(ticks) for ticks in fields[11:15])
    if pid not in processes:
        return None
    total, family = 0, {pid}
    while family:
        total += sum(processes[member][1] for member in family)
        family = {child for child, (parent, _) in processes.items() if parent in family and child != parent}
    return total


def _heat(root: Path, cpu: int) -> float | None:
    """Seconds since boot (Intel, ``thermal_throttle`` of Linux 5.7 and newer)."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
    told = [sysfs.number(folder / f"{what}_throttle_total_time_ms") for what in ("core", "package")]
    return max((milliseconds / 1e3 for milliseconds in told if milliseconds is not None), default=None)
