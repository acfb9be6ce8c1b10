"""CPUs, replayed from /proc/cpuinfo, and what control groups leave of them."""

from __future__ import annotations

import os

import pytest
from hardware_replay import cpuinfo, tree

from pytest_quant.hardware import cgroup, cpu
from pytest_quant.hardware.cpuinfo import parse

MEMINFO = "MemTotal:       65863248 kB\nMemFree:         1234 kB\n"
TOTAL = 65863248 * 1024
VNNI512 = {"avx2", "avx512", "avx512_vnni"}


def linux(root, recording, cores=8, machine="x86_64", **files):
    names = {name.replace("__", "/"): text for name, text in files.items()}
    tree(root, {"proc/cpuinfo": cpuinfo(recording), "proc/meminfo": MEMINFO} | names)
    return cpu.find("Linux", machine, root, cores)


@pytest.mark.parametrize(
    ("recording", "vendor", "name", "features"),
    [
        ("haswell", "intel", "Intel(R) Xeon(R) CPU E5-2670 v3 @ 2.30GHz", {"avx2"}),
        ("skylake", "intel", "Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", {"avx2", "avx512"}),
        ("knights-landing", "intel", "Intel(R) Xeon Phi(TM) CPU 7250 @ 1.40GHz", {"avx2"}),
        ("ice-lake", "intel", "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", VNNI512),
        (
            "sapphire-rapids",
            "intel",
            "Intel(R) Xeon(R) Platinum 8488C",
            VNNI512 | {"avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8"},
        ),
        ("zen4", "amd", "AMD EPYC 9R14", VNNI512 | {"avx512_bf16"}),
        ("alder-lake", "intel", "12th Gen Intel(R) Core(TM) i9-12900K", {"avx2", "avx_vnni"}),
    ],
)
def test_x86(tmp_path, recording, vendor, name, features):
    found = linux(tmp_path, recording)
    assert (found.kind, found.vendor, found.name) == ("cpu", vendor, f"{name}, 8 cores")
    assert (found.architecture, found.count, found.compute_capability) == ("x86_64", 1, None)
    assert found.features == features
    assert found.memory_bytes == TOTAL
    assert found.bandwidth is None
    assert found.notes == ("The memory bandwidth is not known unless it is measured.",)


@pytest.mark.parametrize(
    ("recording", "vendor", "model", "features"),
    [
        ("cortex-a72", "arm", "Cortex-A72", set()),
        ("graviton2", "arm", "Neoverse-N1", {"dotprod"}),
        ("graviton3", "arm", "Neoverse-V1", {"dotprod", "i8mm", "bf16", "sve"}),
        ("big-little", "arm", "Cortex-A53 + Cortex-A76", set()),
        ("unknown-arm", "unknown", "Arm CPU 0x99/0x123", {"dotprod"}),
    ],
)
def test_arm(tmp_path, recording, vendor, model, features):
    found = linux(tmp_path, recording, machine="aarch64")
    assert (found.vendor, found.name, found.architecture) == (vendor, f"{model}, 8 cores", "aarch64")
    assert found.features == features


@pytest.mark.parametrize(("flag", "name"), [("amx_fp16", "amx_fp16"), ("avx_ne_convert", "avx_ne_convert")])
def test_newer_flags_where_the_kernel_prints_them(flag, name):
    text = cpuinfo("sapphire-rapids").replace("amx_tile", f"amx_tile {flag}")
    assert name in parse(text, "x86_64").features


def test_cores_are_part_of_the_hardware_key(tmp_path):
    assert linux(tmp_path, "zen4", cores=2).key == "amd-epyc-9r14-2-cores"
    assert linux(tmp_path, "zen4", cores=1).name == "AMD EPYC 9R14, 1 core"


def test_without_a_number_the_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert linux(tmp_path, "zen4", cores=None).name == "AMD EPYC 9R14, 3 cores"


def test_nothing_to_read(tmp_path):
    found = cpu.find("Linux", "x86_64", tmp_path, 4)
    assert (found.name, found.vendor, found.features, found.memory_bytes) == (
        "x86_64 CPU, 4 cores",
        "unknown",
        frozenset(),
        None,
    )
    assert found.notes == (
        "The system does not tell the CPU's model.",
        "The system does not tell the CPU's instruction sets.",
        "The system does not tell its memory.",
        "The memory bandwidth is not known unless it is measured.",
    )


def test_windows_says_what_it_does_not_know(tmp_path):
    found = cpu.find("Windows", "AMD64", tmp_path, 16)
    assert (found.architecture, found.memory_bytes) == ("x86_64", None)
    assert "The system does not tell the CPU's instruction sets." in found.notes


V2 = {"proc/self/cgroup": "0::/kubepods/pod1\n", "sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}


class TestVersion2:
    @pytest.mark.parametrize(
        ("files", "memory", "cpus"),
        [
            ({}, None, None),
            ({"sys/fs/cgroup/kubepods/pod1/memory.max": "max\n"}, None, None),
            ({"sys/fs/cgroup/kubepods/pod1/cpu.max": "max 100000\n"}, None, None),
            ({"sys/fs/cgroup/kubepods/pod1/memory.max": "4294967296\n"}, 2**32, None),
            ({"sys/fs/cgroup/kubepods/pod1/cpu.max": "150000 100000\n"}, None, 1.5),
            ({"sys/fs/cgroup/memory.max": "1000\n"}, 1000, None),
            (
                {
                    "sys/fs/cgroup/kubepods/memory.max": "2000\n",
                    "sys/fs/cgroup/kubepods/pod1/memory.max": "3000\n",
                    "sys/fs/cgroup/kubepods/cpu.max": "400000 100000\n",
                    "sys/fs/cgroup/kubepods/pod1/cpu.max": "200000 100000\n",
                },
                2000,
                2.0,
            ),
        ],
    )
    def test_limits(self, tmp_path, files, memory, cpus):
        tree(tmp_path, V2 | files)
        assert (cgroup.memory_limit(tmp_path), cgroup.cpu_limit(tmp_path)) == (memory, cpus)


V1 = {"proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"}


class TestVersion1:
    @pytest.mark.parametrize(
        ("files", "memory", "cpus"),
        [
            ({}, None, None),
            ({"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
            ({"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "1073741824\n"}, 2**30, None),
            ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n"}, 2**30, None),
            (
                {
                    "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "-1\n",
                    "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
                },
                None,
                None,
            ),
            (
                {
                    "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "50000\n",
                    "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
                },
                None,
                0.5,
            ),
        ],
    )
    def test_limits(self, tmp_path, files, memory, cpus):
        tree(tmp_path, V1 | files)
        assert (cgroup.memory_limit(tmp_path), cgroup.cpu_limit(tmp_path)) == (memory, cpus)


def test_a_container_has_what_its_group_leaves(tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "8589934592\n"}
    found = linux(tmp_path, "zen4", cores=64, **files, **{"sys/fs/cgroup/cpu.max": "333333 100000\n"})
    assert (found.name, found.memory_bytes) == ("AMD EPYC 9R14, 3.33 cores", 8589934592)


def test_a_limit_above_the_machine_changes_nothing(tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(2**50)}
    found = linux(tmp_path, "zen4", cores=2, **files, **{"sys/fs/cgroup/cpu.max": "6400000 100000\n"})
    assert (found.name, found.memory_bytes) == ("AMD EPYC 9R14, 2 cores", TOTAL)
