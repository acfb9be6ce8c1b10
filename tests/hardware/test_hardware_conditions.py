"""What would make a measurement untrue: planted in recorded answers and fake trees, and found by name."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pynvml
import pytest
from hardware_replay import FakeNvml, nvml, tree

from pytest_quant.hardware import cgroup, condition, conditions, nvidia, watch_cpu, watch_nvidia
from pytest_quant.hardware.conditions import NAMES, Condition, Conditions, Watch
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.watch_nvidia import Look, Others, Process, Totals

ME = 4000
CPU = Device("cpu", "intel", "a CPU, 2 cores", "x86_64")
GPU = Device("cuda", "nvidia", "NVIDIA H100 80GB HBM3", "sm_90", compute_capability=(9, 0))
ROOT_NAMESPACE = {"link": "pid:[4026531836]"}
CONTAINER = {"link": "pid:[4026532511]"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stat_line(pid, parent, ticks=(0, 0, 0, 0), name="python"):
    """A line of ``/proc/PID/stat``: utime, stime, cutime and cstime are its fields 14 to 17."""
    return f"{pid} ({name}) S {parent} 0 0 0 -1 4194304 1 0 0 0 {' '.join(map(str, ticks))} 20 0 1 0 100 1 1\n"


class Machine:
    """A tree of ``/proc`` and ``/sys`` whose counters move; all times in ticks of 10 ms."""

    def __init__(self, root: Path, cpus=(0, 1)) -> None:
        self.root, self.clock, self.cpus = root, Clock(), cpus
        self.lines = {cpu: [1000, 50, 300, 90_000, 200, 10, 20, 5, 400, 0] for cpu in (0, 1, 2, 3)}
        self.processes = {
            1: (0, [0] * 4, "init"),
            ME: (1, [500, 20, 0, 0], "python"),
            77: (1, [9999, 0, 0, 0], "other"),
        }
        self.write()

    def write(self) -> None:
        text = "".join(f"cpu{cpu} {' '.join(map(str, line))}\n" for cpu, line in self.lines.items())
        files = {"proc/stat": f"cpu  0 0 0 0 0 0 0 0 0 0\n{text}intr 1 2 3\nctxt 5\n"}
        for pid, (parent, ticks, name) in self.processes.items():
            files[f"proc/{pid}/stat"] = stat_line(pid, parent, ticks, name)
        tree(self.root, files)

    def spend(self, seconds, busy=0, own=0, cpu=0, kind=0) -> None:
        """Others' ticks of one kind (0 user, 1 nice, 2 system, 3 idle, 4 iowait, 7 steal) and this process's own."""
        self.clock.now += seconds
        self.lines[cpu][kind] += busy
        self.lines[cpu][0] += own
        self.processes[ME][1][0] += own
        self.write()

    def watch(self, device=CPU, **given) -> Watch:
        return Watch(device, root=self.root, pid=ME, cpus=self.cpus, clock=self.clock, **given)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def names(found: Conditions) -> list[str]:
    return [one.name for one in found.found]


class TestWords:
    def test_a_name_that_is_not_one_of_them_is_refused(self):
        with pytest.raises(ValueError, match="must be one of other-process, thermal-throttling"):
            Condition("heat", "too hot")

    def test_the_order_is_that_of_the_names(self):
        found = Conditions((Condition("workers", "x"), Condition("cpu-load", "y"), Condition("other-process", "z")))
        assert names(found) == ["other-process", "cpu-load", "workers"]

    def test_the_names_are_those_that_users_may_accept(self):
        assert conditions.NAMES is condition.NAMES
        assert len(set(NAMES)) == len(NAMES) == 9


class TestCpuLoad:
    def test_a_quiet_machine_has_none(self, machine):
        watch = machine.watch()
        watch.start()
        machine.spend(5.0, own=1000)
        watch.look()
        found = watch.stop()
        assert found.found == ()
        assert found.figures == {"others_cpu_share": 0.0, "stolen_cpu_share": 0.0}

    @pytest.mark.parametrize("kind", [0, 1, 2, 5, 6, 7], ids=["user", "nice", "system", "irq", "softirq", "steal"])
    def test_what_others_take_is_found(self, machine, kind):
        watch = machine.watch()
        watch.start()
        machine.spend(5.0, busy=300, own=400, kind=kind)
        found = watch.stop()
        assert names(found) == ["cpu-load"]
        assert found.figures["others_cpu_share"] == pytest.approx(0.3)
        assert found.found[0].text.startswith("others took 30% of the 2 CPUs")
        assert ("by the hypervisor" in found.found[0].text) == (kind == 7)
        assert found.figures["stolen_cpu_share"] == (pytest.approx(0.3) if kind == 7 else 0.0)

    @pytest.mark.parametrize("kind", [3, 4, 8, 9], ids=["idle", "iowait", "guest", "guest_nice"])
    def test_waiting_is_no_load_and_guests_are_in_user_already(self, machine, kind):
        watch = machine.watch()
        watch.start()
        machine.spend(5.0, busy=900, kind=kind)
        assert watch.stop().figures["others_cpu_share"] == 0.0

    def test_ten_percent_are_allowed(self, machine):
        watch = machine.watch()
        watch.start()
        machine.spend(5.0, busy=99)
        found = watch.stop()
        assert found.found == ()
        assert found.figures["others_cpu_share"] == pytest.approx(0.099)

    def test_a_cpu_that_this_process_may_not_use_does_not_matter(self, machine):
        watch = machine.watch()
        watch.start()
        machine.spend(5.0, busy=500, cpu=3)
        assert watch.stop().figures["others_cpu_share"] == 0.0

    def test_a_few_ticks_of_a_short_measurement_are_not_judged(self, machine):
        watch = machine.watch()
        watch.start()
        machine.spend(0.2, busy=9)  # 22 % of two CPUs
        found = watch.stop()
        assert found.found == ()
        assert found.figures["others_cpu_share"] == pytest.approx(0.225)
        watch.start()
        machine.spend(0.2, busy=11)
        assert names(watch.stop()) == ["cpu-load"]

    def test_shorter_than_the_clock_says_nothing(self, machine):
        watch = machine.watch()
        watch.start()
        machine.spend(0.05, busy=10)
        assert watch.stop() == Conditions()

    def test_children_are_this_process_too(self, machine):
        """One that lives, its child, and one that ended and left its time to its parent."""
        machine.processes[4100] = (ME, [0, 0, 0, 0], "worker (1) of 2")
        machine.processes[4200] = (4100, [0, 0, 0, 0], "x) S 1 (")
        machine.write()
        watch = machine.watch()
        watch.start()
        machine.processes[4100][1][0] += 100
        machine.processes[4200][1][1] += 100
        machine.processes[ME][1][2] += 100
        machine.spend(5.0, busy=300)
        assert watch.stop().figures["others_cpu_share"] == 0.0

    def test_a_sibling_is_another(self, machine):
        machine.processes[4001] = (1, [0, 0, 0, 0], "python")
        watch = machine.watch()
        watch.start()
        machine.processes[4001][1][0] += 300
        machine.spend(5.0, busy=300)
        assert names(watch.stop()) == ["cpu-load"]

    def test_a_machine_that_renumbers_its_cpus_is_not_asked(self, machine):
        machine.cpus = (0, 9)
        watch = machine.watch()
        watch.start()
        machine.spend(5.0, busy=500)
        assert watch.stop() == Conditions()

    def test_no_linux_is_not_asked(self, tmp_path):
        clock = Clock()
        watch = Watch(CPU, root=tmp_path, pid=ME, cpus=(0,), clock=clock)
        watch.start()
        clock.now += 9
        assert watch.stop() == Conditions()

    def test_beside_a_gpu_the_cpu_is_watched_too(self, machine):
        watch = machine.watch(Device("rocm", "amd", "AMD Instinct MI300X", "gfx942"))
        watch.start()
        machine.spend(5.0, busy=500)
        assert names(watch.stop()) == ["cpu-load"]


class TestQuota:
    @pytest.mark.parametrize(
        ("group", "path", "text"),
        [
            ("0::/pod/me\n", "sys/fs/cgroup/pod/cpu.stat", "usage_usec 9\nnr_throttled {}\nthrottled_usec {}\n"),
            ("4:cpu,cpuacct:/pod\n", "sys/fs/cgroup/cpu/pod/cpu.stat", "nr_throttled {}\nthrottled_time {}000\n"),
        ],
        ids=["v2", "v1"],
    )
    def test_throttling_is_found(self, machine, group, path, text):
        tree(machine.root, {"proc/self/cgroup": group, path: text.format(3, 70_000)})
        watch = machine.watch()
        watch.start()
        machine.spend(5.0)
        tree(machine.root, {path: text.format(9, 1_070_000)})
        found = watch.stop()
        assert names(found) == ["cpu-quota"]
        assert found.found[0].text == "the control group's CPU quota held threads back for 1.00 s of 5.0 s"
        assert found.figures["cpu_throttled_share"] == pytest.approx(0.2)

    def test_a_moment_is_a_figure_only_and_standing_still_is_zero(self, machine):
        path, text = "sys/fs/cgroup/cpu.stat", "nr_throttled 3\nthrottled_usec {}\n"
        tree(machine.root, {"proc/self/cgroup": "0::/\n", path: text.format(1000)})
        watch = machine.watch()
        watch.start()
        machine.spend(5.0)
        tree(machine.root, {path: text.format(41_000)})
        found = watch.stop()
        assert found.found == ()
        assert found.figures["cpu_throttled_share"] == pytest.approx(0.008)

    def test_a_group_without_a_quota_counts_nothing(self, tmp_path):
        tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.stat": "usage_usec 9\nuser_usec 4\n"})
        assert cgroup.cpu_throttled(tmp_path) is None


class TestHotCpu:
    def test_heat_is_found(self, machine):
        folder = "sys/devices/system/cpu/cpu{}/thermal_throttle/{}_throttle_total_time_ms"
        for cpu in (0, 1, 3):
            tree(machine.root, {folder.format(cpu, "core"): "5\n", folder.format(cpu, "package"): "40\n"})
        watch = machine.watch()
        watch.start()
        machine.spend(5.0)
        tree(machine.root, {folder.format(1, "package"): "540\n", folder.format(3, "package"): "4040\n"})
        found = watch.stop()
        assert names(found) == ["thermal-throttling"]
        assert found.found[0].text == "heat throttled a CPU in 10% of the time"
        assert found.figures["cpu_hot_share"] == pytest.approx(0.1)


class TestUsable:
    def test_the_cpus_of_all_threads_are_counted(self):
        if not Path("/proc/self/task").exists():
            pytest.skip("asked: the CPUs of each thread; found: no /proc; needed: Linux")
        assert watch_cpu.usable(Path("/"), os.getpid()) >= os.sched_getaffinity(0)

    def test_where_nothing_is_told_there_are_none(self, tmp_path):
        assert watch_cpu.usable(tmp_path, ME) == frozenset()


def h100(**answers) -> FakeNvml:
    fake = nvml("h100-sxm")
    fake.recording["gpus"][0] |= {"compute_processes": [[{"pid": ME, "mib": 900}]]} | answers
    return fake


@pytest.fixture
def host(machine):
    """A machine where process ids are the kernel's own."""
    tree(machine.root, {"proc/self/ns/pid": ROOT_NAMESPACE})
    return machine


def watched(machine, fake, device=GPU, looks=3, environ=None) -> Conditions:
    watch = machine.watch(device, load=lambda: fake, environ=environ or {})
    watch.start()
    for _ in range(looks):
        machine.spend(1.0)
        watch.look()
    found = watch.stop()
    assert fake.references == 0, "NVML was not shut down as often as it was initialized"
    return found


class TestGpu:
    def test_a_quiet_gpu_has_none_and_all_figures(self, host):
        fake = h100(
            graphics_processes=[[]],
            reasons=[0x1, 0x0],
            sm_clock=[345, 1980, 1965, 1980],
            sm_clock_limit=[1980],
            temperature=[41, 55, 54],
            milliwatts=[70_000, 640_500, 630_000],
            milliwatts_limit=[700_000],
            power_violation_ns=[5_000_000_000, 5_000_900_000],
            thermal_violation_ns=[0],
        )
        found = watched(host, fake)
        assert found.found == ()
        assert found.figures == {
            "others_cpu_share": 0.0,
            "stolen_cpu_share": 0.0,
            "other_processes": 0.0,
            "power_throttled_share": pytest.approx(0.0003),
            "thermal_throttled_share": 0.0,
            "temperature_c": 55.0,
            "power_w": 640.5,
            "sm_clock_mhz_min": 1965.0,
            "sm_clock_mhz_max": 1980.0,
            "sm_clock_mhz_limit": 1980.0,
            "power_limit_w": 700.0,
        }

    def test_a_driver_that_tells_nothing_finds_nothing_and_says_no_zero(self, host):
        fake = nvml("h100-sxm")
        found = watched(host, fake)
        assert found.found == ()
        assert set(found.figures) == {"others_cpu_share", "stolen_cpu_share"}

    @pytest.mark.parametrize("recording", ["library-not-found", "driver-not-loaded", "no-permission", "zero-devices"])
    def test_an_nvml_that_refuses_is_left_out(self, host, recording):
        assert watched(host, nvml(recording)).found == ()

    def test_bindings_that_are_not_installed_are_left_out(self, host):
        def load():
            raise ImportError("No module named 'pynvml'")

        watch = host.watch(GPU, load=load, environ={})
        watch.start()
        watch.look()
        assert watch.stop().found == ()

    def test_whatever_goes_wrong_nothing_is_raised_and_the_rest_is_told(self, host):
        class Broken(FakeNvml):
            def nvmlDeviceGetClockInfo(self, handle, which):
                raise OSError("access violation")

        fake = Broken(h100().recording)
        watch = host.watch(GPU, load=lambda: fake, environ={}, workers=3)
        watch.start()
        host.spend(5.0, busy=500)
        watch.look()
        assert names(watch.stop()) == ["cpu-load", "workers"]
        assert fake.references == 0

    def test_a_gpu_that_is_lost_meanwhile(self, host):
        lost = {"error": "GPU_IS_LOST"}
        fake = h100(sm_clock=[1980, lost], temperature=[50, lost], reasons=[0, lost])
        found = watched(host, fake)
        assert found.figures["sm_clock_mhz_max"] == 1980.0
        assert names(found) == []

    def test_nothing_is_looked_at_before_the_start_and_after_the_stop(self, host):
        fake = h100(reasons=[0x40])
        watch = host.watch(GPU, load=lambda: fake, environ={})
        watch.look()
        assert watch.stop() == Conditions()
        watch.start()
        host.spend(1.0)
        assert names(watch.stop()) == ["thermal-throttling"]
        watch.look()
        assert watch.stop() == Conditions()
        assert (fake.initialized, fake.references) == (1, 0)

    def test_begun_twice_it_begins_again(self, host):
        fake = h100(reasons=[0x40, 0x0])
        watch = host.watch(GPU, load=lambda: fake, environ={})
        watch.start()
        watch.look()
        watch.start()
        host.spend(1.0)
        assert names(watch.stop()) == []
        assert fake.references == 0

    def test_the_gpu_that_cuda_shows_is_watched(self, host):
        fake = nvml("h100-x8")
        fake.recording["gpus"][5]["reasons"] = [0x40]
        assert names(watched(host, fake, environ={"CUDA_VISIBLE_DEVICES": "5"})) == ["thermal-throttling"]
        assert names(watched(host, nvml("h100-x8"), environ={"CUDA_VISIBLE_DEVICES": "4"})) == []

    def test_a_gpu_that_cannot_be_told_from_another_is_not_asked(self, host):
        fake = nvml("mixed")
        for gpu in fake.recording["gpus"]:
            gpu["reasons"] = [0x40]
        assert names(watched(host, fake)) == []
        assert names(watched(host, fake, environ={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})) == ["thermal-throttling"]
        assert names(watched(host, fake, environ={"CUDA_VISIBLE_DEVICES": "GPU-20000003"})) == ["thermal-throttling"]


class TestThrottling:
    @pytest.mark.parametrize(
        ("bits", "name", "text"),
        [
            (0x20, "thermal-throttling", "heat: thermal slowdown in 1 of 4 looks"),
            (0x40, "thermal-throttling", "heat: thermal slowdown in 1 of 4 looks"),
            (0x48, "thermal-throttling", "heat: thermal slowdown in 1 of 4 looks"),
            (0x08, "thermal-throttling", "heat: hardware slowdown (heat or power brake) in 1 of 4 looks"),
            (0x88, "power-throttling", "power: power brake in 1 of 4 looks"),
            (0x04, "power-throttling", "power: power limit in 1 of 4 looks"),
        ],
    )
    def test_a_reason_that_a_look_shows(self, host, bits, name, text):
        found = watched(host, h100(reasons=[0, bits, 0]))
        assert names(found) == [name]
        assert found.found[0].text == f"the GPU was throttled by {text}"

    @pytest.mark.parametrize("bits", [0x1, 0x2, 0x10, 0x100, 0x200, 0x400, 0x0])
    def test_the_other_reasons_are_none(self, host, bits):
        assert watched(host, h100(reasons=[bits])).found == ()

    def test_the_limit_counts_by_its_time_where_that_is_told(self, host):
        quick = h100(reasons=[0x4], power_violation_ns=[0, 29_000_000])
        assert watched(host, quick).found == ()
        long = h100(reasons=[0x0], power_violation_ns=[7_000_000_000, 7_900_000_000])
        found = watched(host, long)
        assert [one.text for one in found.found] == ["the GPU was throttled by power: 30% of the time"]
        assert found.figures["power_throttled_share"] == pytest.approx(0.3)

    def test_heat_between_the_looks(self, host):
        found = watched(host, h100(reasons=[0x0], thermal_violation_ns=[0, 600_000_000]))
        assert [one.text for one in found.found] == ["the GPU was throttled by heat: 20% of the time"]

    def test_both_at_once_are_two(self, host):
        assert names(watched(host, h100(reasons=[0x44]))) == ["thermal-throttling", "power-throttling"]

    def test_older_drivers_know_it_by_its_older_name(self, host):
        class Old(FakeNvml):
            nvmlDeviceGetCurrentClocksEventReasons = property()
            nvmlDeviceGetTemperatureV = property()

            def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
                return self._next(handle, "reasons")

            def nvmlDeviceGetTemperature(self, handle, sensor):
                return self._next(handle, "temperature")

        found = watched(host, Old(h100(reasons=[0x40], temperature=[91]).recording))
        assert names(found) == ["thermal-throttling"]
        assert found.figures["temperature_c"] == 91.0

    def test_a_cpu_and_a_gpu_that_are_both_hot_are_one_condition(self, host):
        path = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_total_time_ms"
        tree(host.root, {path: "0\n"})
        watch = host.watch(GPU, load=lambda: h100(reasons=[0x40]), environ={})
        watch.start()
        host.spend(1.0)
        tree(host.root, {path: "500\n"})
        (found,) = watch.stop().found
        assert found.name == "thermal-throttling"
        assert found.text.startswith("heat throttled a CPU in 50% of the time; the GPU was throttled by heat")

    def test_a_counter_that_went_back_is_zero(self):
        before, after = Totals(0.0, 5.0, 5.0), Totals(10.0, 1.0, 5.0)
        found, figures = watch_nvidia.throttling([], before, after)
        assert (found, figures) == ((), {"power_throttled_share": 0.0, "thermal_throttled_share": 0.0})

    def test_the_bits_are_those_of_the_bindings(self):
        ours = watch_nvidia
        assert pynvml.nvmlClocksThrottleReasonGpuIdle == ours.IDLE
        assert pynvml.nvmlClocksThrottleReasonSwPowerCap == ours.POWER_CAP
        assert pynvml.nvmlClocksThrottleReasonHwSlowdown == ours.SLOWDOWN
        assert pynvml.nvmlClocksThrottleReasonSwThermalSlowdown == ours.SW_THERMAL
        assert pynvml.nvmlClocksThrottleReasonHwThermalSlowdown == ours.HW_THERMAL
        assert pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown == ours.POWER_BRAKE


class TestClocks:
    def test_clocks_that_move_are_found(self, host):
        found = watched(host, h100(reasons=[0x0], sm_clock=[1980, 1410, 1980]))
        assert [one.text for one in found.found] == ["the SM clock moved between 1410 and 1980 MHz"]
        assert (found.figures["sm_clock_mhz_min"], found.figures["sm_clock_mhz_max"]) == (1410.0, 1980.0)

    def test_a_tenth_is_allowed(self):
        assert watch_nvidia.clocks([Look(clock=1800), Look(clock=2000)])[0] == ()
        assert watch_nvidia.clocks([Look(clock=1799), Look(clock=2000)])[0] != ()

    def test_the_clock_of_idling_is_left_out(self):
        looks = [
            Look(clock=345, reasons=0x1, temperature=40),
            Look(clock=1980, reasons=0x0),
            Look(clock=210, reasons=0x5),
        ]
        found, figures = watch_nvidia.clocks(looks)
        assert (found, figures) == ((), {"temperature_c": 40.0, "sm_clock_mhz_min": 1980.0, "sm_clock_mhz_max": 1980.0})

    def test_only_idle_looks_tell_no_clock(self):
        assert watch_nvidia.clocks([Look(clock=345, reasons=0x1)]) == ((), {})


class TestProcesses:
    def test_others_are_counted_with_their_memory_and_names(self, host):
        tree(host.root, {"proc/77/comm": "python\n", "proc/80/comm": "Xorg\n"})
        fake = h100(
            compute_processes=[[{"pid": ME, "mib": 900}, {"pid": 77, "mib": 3000}]],
            graphics_processes=[[{"pid": 80, "mib": 100}, {"pid": 77, "mib": 3000}]],
        )
        found = watched(host, fake)
        text = "2 other processes on the GPU (Xorg, python) with 3.3 GB of its memory"
        assert [(one.name, one.text) for one in found.found] == [("other-process", text)]
        assert found.figures["other_processes"] == 2.0
        assert found.figures["other_processes_bytes"] == 3100 * 2**20

    def test_one_that_came_and_went_between_start_and_stop(self, host):
        mine = {"pid": ME, "mib": 900}
        fake = h100(compute_processes=[[mine], [mine], [mine, {"pid": 77, "mib": 10}], [mine]])
        found = watched(host, fake)
        assert names(found) == ["other-process"]
        assert found.figures["other_processes"] == 1.0

    def test_descendants_are_no_others(self, host):
        host.processes[4100] = (ME, [0] * 4, "sh")
        host.processes[4200] = (4100, [0] * 4, "EngineCore")
        host.write()
        fake = h100(compute_processes=[[{"pid": 4200, "mib": 900}]])
        found = watched(host, fake)
        assert (names(found), found.figures["other_processes"]) == ([], 0.0)

    def test_memory_that_is_not_told_is_not_added_up(self, host):
        fake = h100(compute_processes=[[{"pid": ME, "mib": 1}, {"pid": 77, "mib": None}, {"pid": 78, "mib": 5}]])
        found = watched(host, fake)
        assert found.found[0].text == "2 other processes on the GPU"
        assert "other_processes_bytes" not in found.figures

    def test_processes_without_a_number_are_each_another(self, host):
        fake = h100(compute_processes=[[{"pid": 0, "mib": 1}, {"pid": ME, "mib": 1}, {"pid": 0, "mib": 2}]])
        assert watched(host, fake).figures["other_processes"] == 2.0

    def test_a_list_without_this_process_shows_nobody(self, host):
        found = watched(host, h100(compute_processes=[[]], graphics_processes=[[]]))
        assert found.found == ()
        assert "other_processes" not in found.figures

    def test_a_slice_has_its_own_list(self, host):
        fake = nvml("a100-mig")
        gpu = fake.recording["gpus"][0]
        gpu["compute_processes"] = [[{"pid": 77, "mib": 5}, {"pid": ME, "mib": 5}]]
        gpu["reasons"] = [0x40]
        gpu["mig_devices"][0]["compute_processes"] = [[{"pid": ME, "mib": 5}]]
        device, _ = nvidia.find(lambda: fake, {})
        found = watched(host, fake, device)
        assert names(found) == ["thermal-throttling", "mig"]
        assert found.figures["other_processes"] == 0.0


class TestContainers:
    """Where process ids are another namespace's: :func:`watch_nvidia.others`."""

    @pytest.fixture
    def inside(self, tmp_path):
        files = {"proc/self/ns/pid": CONTAINER, "proc/12/stat": stat_line(12, 1), "proc/30/stat": stat_line(30, 1)}
        return tree(tmp_path, files | {"proc/30/comm": "python\n"})

    def ask(self, root, *listed):
        return watch_nvidia.others([Process(*process) for process in listed], root, 12)

    def test_the_one_that_is_unknown_is_this_one(self, inside):
        assert self.ask(inside, (882211, 900)) == Others(0, 0)

    def test_of_several_unknown_ones_one_is_this_one(self, inside):
        assert self.ask(inside, (882211, 900), (882300, 70)) == Others(1, None)

    def test_known_ones_beside_it_are_others(self, inside):
        assert self.ask(inside, (882211, 900), (30, 70)) == Others(1, 70, ("python",))

    def test_newer_drivers_list_this_one(self, inside):
        assert self.ask(inside, (12, 900)) == Others(0, 0)
        assert self.ask(inside, (12, 900), (30, 70)) == Others(1, 70, ("python",))

    def test_drivers_that_list_nobody_tell_nothing(self, inside):
        assert self.ask(inside) is None

    def test_on_the_host_an_unknown_one_is_another(self, tmp_path):
        tree(tmp_path, {"proc/self/ns/pid": ROOT_NAMESPACE, "proc/12/stat": stat_line(12, 1)})
        assert self.ask(tmp_path, (12, 1), (4711, 2)) == Others(1, 2)
        assert self.ask(tmp_path, (4711, 2)) == Others(1, 2)


class TestStatic:
    def test_a_mig_slice(self, machine):
        found = machine.watch(nvidia.find(lambda: nvml("a100-mig"), {})[0], load=lambda: nvml("a100-mig")).stop()
        assert [one.text for one in found.found] == [
            "on MIG 1g.10gb, whose neighbours share the board's power and clocks"
        ]
        assert names(found) == ["mig"]

    def test_a_vgpu(self, machine):
        device = nvidia.find(lambda: nvml("vgpu-a100"), {})[0]
        found = machine.watch(device, load=lambda: nvml("vgpu-a100"), environ={}).stop()
        assert [(one.name, one.text) for one in found.found] == [
            ("vgpu", "on the vGPU GRID A100DX-80C, which shares the GPU with other guests")
        ]

    @pytest.mark.parametrize(
        ("workers", "texts"),
        [(0, []), (1, []), (2, ["beside 1 other pytest worker"]), (4, ["beside 3 other pytest workers"])],
    )
    def test_workers(self, machine, workers, texts):
        assert [one.text for one in machine.watch(workers=workers).stop().found] == texts


def test_this_machine_can_be_watched():
    """No claim about its load: only that what is asked has an answer, and that the answer is a share."""
    watch = Watch(CPU)
    watch.start()
    end = time.monotonic() + 0.15
    while time.monotonic() < end:
        watch.look()
    found = watch.stop()
    json.dumps(dict(found.figures), allow_nan=False)
    if Path("/proc/stat").exists():
        assert 0.0 <= found.figures["others_cpu_share"] <= 1.0
    assert {one.name for one in found.found} <= set(NAMES)
