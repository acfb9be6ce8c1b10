"""What a container's control groups (v1 and v2) leave of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_quant.hardware import sysfs


def memory_limit(root: Path = sysfs.ROOT) -> int | None:
    """The smallest memory limit in bytes on this process's group and the groups around it; ``None`` for no limit.

    Version 1 writes "no limit" as a number near 2**63, which is answered as ``None``.
    """
    found = [sysfs.number(folder / "memory.max") for folder in _folders(root, "")]
    found += [sysfs.number(folder / "memory.limit_in_bytes") for folder in _folders(root, "memory")]
    limits = [limit for limit in found if limit is not None and 0 < limit < 2**60]
    return min(limits, default=None)


def memory_free(root: Path = sysfs.ROOT) -> int | None:
    """Bytes that the tightest of the groups with a memory limit still lets this process take, what the kernel would
    drop for it (cached files, but not those in memory only) among them; ``None`` for no limit."""
    files = (
        ("", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    )
    left = []
    for controller, limit_name, used_name, prefix in files:
        for folder in _folders(root, controller):
            limit, used = sysfs.number(folder / limit_name), sysfs.number(folder / used_name)
            if limit is None or used is None or not 0 < limit < 2**60:
                continue
            told = sysfs.numbers(folder / "memory.stat")
            cached = told.get("total_cache" if prefix else "file", 0) - told.get(f"{prefix}shmem", 0)
            left.append(max(0, limit - used + max(0, cached) + told.get("slab_reclaimable", 0)))
    return min(left, default=None)


def cpu_limit(root: Path = sysfs.ROOT) -> float | None:
    """The smallest quota on CPU time, in CPUs (1.5 is one and a half); ``None`` for no limit."""
    limits = []
    for folder in _folders(root, ""):
        words = (sysfs.text(folder / "cpu.max") or "").split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            limits.append((int(words[0]), int(words[1])))
    for folder in _folders(root, "cpu"):
        quota, period = sysfs.number(folder / "cpu.cfs_quota_us"), sysfs.number(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None:
            limits.append((quota, period))
    return min((quota / period for quota, period in limits if quota > 0 and period > 0), default=None)


def cpu_throttled(root: Path = sysfs.ROOT) -> float | None:
    """Seconds of CPU time that quotas on this process's group and those around it have held back since the groups were
    made, over all CPUs; ``None`` where no group counts them."""
    found = []
    for folder in _folders(root, ""):
        found.append((sysfs.numbers(folder / "cpu.stat").get("throttled_usec"), 1e-6))
    for folder in _folders(root, "cpu"):
        found.append((sysfs.numbers(folder / "cpu.stat").get("throttled_time"), 1e-9))
    told = [count * unit for count, unit in found if count is not None]
    return sum(told) if told else None


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and those around it; ``controller`` is empty for version 2."""
    for line in (sysfs.text(root / "proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3 or controller not in fields[1].split(","):
            continue
        tops = ["sys/fs/cgroup", "sys/fs/cgroup/unified"] if not controller else [f"sys/fs/cgroup/{controller}"]
        # Inside a container the path may be the host's, of which only the group itself is mounted, at the top.
        inner = Path(fields[2].lstrip("/"))
        for top in tops:
            for path in {inner, *inner.parents, Path()}:
                yield root / top / path
