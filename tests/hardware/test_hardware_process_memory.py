"""What a process holds of a device's memory, replayed; and what a control group leaves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from hardware_replay import MIB, FakeNvml, nvml, tree

from pytest_quant.hardware import cgroup, detect, process_memory, specs
from pytest_quant.hardware.device import Device

H100 = specs.device("NVIDIA H100 80GB HBM3")
CPU = Device("cpu", "amd", "Zen 4", "x86_64")


class WithUse(FakeNvml):
    """A driver that tells how much of a device is used, too."""

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=self._get(handle, "used_mib") * MIB)


def asked(fake, environ=None, device=H100, pid=100):
    found = process_memory.figures(device, lambda: fake, environ or {}, pid=pid)
    assert fake.references == 0, "NVML was not shut down as often as it was initialized"
    return found


@pytest.fixture
def gpu() -> WithUse:
    fake = WithUse(nvml("h100-sxm").recording)
    fake.recording["gpus"][0].update(
        used_mib=9000, compute_processes=[[{"pid": 7, "mib": 3000}, {"pid": 100, "mib": 5500}]]
    )
    return fake


def test_the_process_among_others(gpu):
    assert asked(gpu) == {"process_bytes": 5500 * MIB}


def test_a_process_that_is_listed_by_the_hosts_number_gets_what_the_whole_device_holds(gpu):
    assert asked(gpu, pid=4711) == {"device_used_bytes": 9000 * MIB}


def test_a_driver_that_does_not_tell_the_bytes_of_a_process(gpu):
    gpu.recording["gpus"][0]["compute_processes"] = [[{"pid": 100, "mib": None}]]
    assert asked(gpu) == {"device_used_bytes": 9000 * MIB}


@pytest.mark.parametrize("error", ["NO_PERMISSION", "NOT_SUPPORTED", "FUNCTION_NOT_FOUND"])
def test_processes_that_nobody_may_see(gpu, error):
    gpu.recording["gpus"][0]["compute_processes"] = [{"error": error}]
    assert asked(gpu) == {"device_used_bytes": 9000 * MIB}


def test_nothing_where_nothing_is_told(gpu):
    gpu.recording["gpus"][0].update(compute_processes=[{"error": "NO_PERMISSION"}], used_mib={"error": "NO_PERMISSION"})
    assert asked(gpu) == {}


def test_the_gpu_that_cuda_shows():
    fake = WithUse(nvml("h100-x8").recording)
    for number, board in enumerate(fake.recording["gpus"]):
        board.update(compute_processes=[[{"pid": 100, "mib": 1000 + number}]], used_mib=1)
    assert asked(fake, {"CUDA_VISIBLE_DEVICES": "3,1"}) == {"process_bytes": 1003 * MIB}
    assert asked(fake, {"CUDA_VISIBLE_DEVICES": ""}) == {}


def test_a_slice_is_asked_itself():
    fake = WithUse(nvml("a100-mig").recording)
    board = fake.recording["gpus"][0]
    board.update(used_mib=70000, compute_processes=[[{"pid": 100, "mib": 1}]])
    board["mig_devices"][0].update(used_mib=3000, compute_processes=[[{"pid": 100, "mib": 2500}]])
    board["mig_devices"][1].update(used_mib=4000)
    assert asked(fake) == {"process_bytes": 2500 * MIB}
    second = board["mig_devices"][1]["uuid"]
    assert asked(fake, {"CUDA_VISIBLE_DEVICES": second}) == {"device_used_bytes": 4000 * MIB}


def test_no_bindings_and_no_driver():
    def absent():
        raise ImportError("pynvml")

    assert process_memory.figures(H100, absent, {}) == {}
    assert asked(nvml("driver-not-loaded")) == {}


def test_bindings_that_do_not_know_the_question(gpu):
    old = SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        nvmlInit=gpu.nvmlInit,
        nvmlShutdown=gpu.nvmlShutdown,
        nvmlDeviceGetCount=gpu.nvmlDeviceGetCount,
    )
    assert process_memory.figures(H100, lambda: old, {}) == {}


def test_a_cpu_tells_the_resident_set(tmp_path):
    tree(tmp_path, {"proc/self/status": "Name:\tpytest\nVmPeak:\t 9000 kB\nVmRSS:\t  5120 kB\nThreads:\t4\n"})
    assert process_memory.figures(CPU, root=tmp_path) == {"process_bytes": 5120 * 1024}


@pytest.mark.parametrize("status", ["Name:\tx\n", "VmRSS:\n", "VmRSS:\t12 MB\n", "VmRSS:\t-1 kB\n"])
def test_a_system_that_does_not_tell(tmp_path, status):
    tree(tmp_path, {"proc/self/status": status})
    assert process_memory.figures(CPU, root=tmp_path) == {}
    assert process_memory.figures(CPU, root=tmp_path / "nowhere") == {}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_this_process_grows_by_what_it_touches():
    device = detect()
    if device.kind != "cpu":
        device = CPU
    before = process_memory.figures(device)["process_bytes"]
    held = bytearray(b"x") * (64 * MIB)
    grown = process_memory.figures(device)["process_bytes"] - before
    assert 60 * MIB < grown < 200 * MIB
    del held


@pytest.mark.parametrize("kind", ["rocm", "xpu", "mps"])
def test_devices_that_this_version_does_not_ask(kind):
    assert process_memory.figures(Device(kind, "amd", "x", "y")) == {}


# what a control group leaves


def v2(root, *, limit="1000", used="700", stat="anon 500\nfile 150\nshmem 30\nslab_reclaimable 20\n"):
    group = "sys/fs/cgroup/job"
    return tree(
        root,
        {
            "proc/self/cgroup": "0::/job\n",
            f"{group}/memory.max": f"{limit}\n",
            f"{group}/memory.current": f"{used}\n",
            f"{group}/memory.stat": stat,
        },
    )


def test_what_is_not_used_and_what_the_kernel_would_drop_is_free(tmp_path):
    assert cgroup.memory_free(v2(tmp_path)) == 300 + 150 - 30 + 20


def test_a_group_without_a_limit_leaves_all(tmp_path):
    assert cgroup.memory_free(v2(tmp_path, limit="max")) is None
    assert cgroup.memory_free(tmp_path / "nowhere") is None


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path):
    assert cgroup.memory_free(v2(tmp_path, used="1200", stat="file 10\nshmem 10\n")) == 0


def test_the_tightest_of_the_groups_counts(tmp_path):
    v2(tmp_path)
    tree(tmp_path, {"sys/fs/cgroup/memory.max": "900\n", "sys/fs/cgroup/memory.current": "850\n"})
    assert cgroup.memory_free(tmp_path) == 50


def test_version_one(tmp_path):
    group = "sys/fs/cgroup/memory/job"
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/job\n",
            f"{group}/memory.limit_in_bytes": "1000\n",
            f"{group}/memory.usage_in_bytes": "900\n",
            f"{group}/memory.stat": "cache 999\ntotal_cache 300\ntotal_shmem 100\n",
        },
    )
    assert cgroup.memory_free(tmp_path) == 100 + 200


def test_version_one_writes_no_limit_as_a_large_number(tmp_path):
    group = "sys/fs/cgroup/memory"
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/\n",
            f"{group}/memory.limit_in_bytes": f"{2**63 - 4096}\n",
            f"{group}/memory.usage_in_bytes": "900\n",
        },
    )
    assert cgroup.memory_free(tmp_path) is None
