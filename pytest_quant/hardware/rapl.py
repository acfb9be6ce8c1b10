"""The energy counters of a CPU's packages (RAPL), as Linux shows them below ``/sys/class/powercap``."""

from __future__ import annotations

from pathlib import Path

from pytest_quant.errors import NotMeasured, Unsupported
from pytest_quant.hardware import sysfs

ASKED = "the energy that the CPU takes"
SOURCE = "RAPL (package domains; memory that has a domain of its own is not in them)"
PERIOD = 1e-3
"""Seconds between updates: "approximately 1ms" (Intel SDM volume 3, package RAPL domain)."""


class Packages:
    """All packages together, since they were first read. AMD's Zen counts under the same names.

    A counter starts again at 0 after ``max_energy_range_uj``, 66 to 262 kJ on most CPUs, which is minutes of a busy
    server: it must be read at least once in that time, or a turn is lost.
    """

    source = SOURCE
    period = PERIOD

    def __init__(self, domains: list[Path]) -> None:
        """Raises :class:`~pytest_quant.errors.Unsupported` where one of them cannot be read."""
        self._domains = {domain: (_microjoules(domain), _range(domain)) for domain in domains}
        self._joules = 0.0

    def joules(self) -> float:
        """Raises :class:`~pytest_quant.errors.NotMeasured` where a counter can be read no more."""
        for domain, (last, span) in self._domains.items():
            now = sysfs.number(domain / "energy_uj")
            if now is None:
                raise NotMeasured(f"the energy counter {domain / 'energy_uj'} can no longer be read")
            grown = now - last if now >= last else now - last + span
            self._joules += grown / 1e6
            self._domains[domain] = now, span
        return self._joules


def packages(root: Path = sysfs.ROOT) -> Packages:
    """The counters of this machine. Raises :class:`~pytest_quant.errors.Unsupported` where there are none, or where
    they may not be read (root only, since CVE-2020-8694). The platform's domain (psys) is no package."""
    folder = root / "sys/class/powercap"
    domains = sysfs.folders(folder, r"intel-rapl:\d+")
    domains = [domain for domain in domains if (sysfs.text(domain / "name") or "").startswith("package")]
    if not domains:
        raise Unsupported(
            ASKED,
            f"no package domain (intel-rapl:N) in {folder}",
            "Linux with the module intel_rapl_msr on an Intel CPU or an AMD Zen; most virtual machines and containers "
            "show none",
        )
    return Packages(domains)


def _microjoules(domain: Path) -> int:
    path = domain / "energy_uj"
    found = sysfs.number(path)
    if found is None:
        raise Unsupported(
            ASKED,
            f"{path} cannot be read by this user",
            f"read access to it: root, or once `sudo chmod a+r {path}` (kernels since 5.10 keep it to root, "
            f"CVE-2020-8694)",
        )
    return found


def _range(domain: Path) -> int:
    path = domain / "max_energy_range_uj"
    found = sysfs.number(path)
    if found is None or found <= 0:
        raise Unsupported(ASKED, f"{path} does not tell where the counter starts again", "a kernel that tells it")
    return found
