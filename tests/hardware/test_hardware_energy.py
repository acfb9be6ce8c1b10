"""Energy counters: recorded answers of NVML, fake trees of powercap, and every refusal with its three parts."""

from __future__ import annotations

import gc
import os

import pytest
from hardware_replay import FakeNvml, nvml, tree

from pytest_quant.errors import NotMeasured, Unsupported
from pytest_quant.hardware import energy, nvidia, rapl
from pytest_quant.hardware.device import Device

CPU = Device("cpu", "intel", "a CPU, 2 cores", "x86_64")
RAPL = "sys/class/powercap"


def domain(at, name, joules, span=262_143_328_850):
    folder = f"{RAPL}/intel-rapl:{at}"
    return {
        f"{folder}/name": f"{name}\n",
        f"{folder}/energy_uj": f"{int(joules * 1e6)}\n",
        f"{folder}/max_energy_range_uj": f"{span}\n",
    }


def spend(root, at, joules):
    (root / RAPL / f"intel-rapl:{at}" / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def refused(device, **given) -> Unsupported:
    with pytest.raises(Unsupported) as raised:
        energy.counter(device, **given)
    assert all((raised.value.asked, raised.value.found, raised.value.needed))
    return raised.value


class TestRapl:
    def test_joules_of_one_package(self, tmp_path):
        tree(tmp_path, domain("0", "package-0", 1000.0))
        counter = energy.counter(CPU, root=tmp_path)
        start = counter.joules()
        spend(tmp_path, "0", 1012.5)
        assert counter.joules() - start == pytest.approx(12.5)
        assert counter.joules() - start == pytest.approx(12.5)
        assert counter.source.startswith("RAPL")
        assert counter.period == pytest.approx(0.001)

    def test_several_packages_are_added_and_other_domains_are_not(self, tmp_path):
        files = domain("0", "package-0", 10.0) | domain("1", "package-1-die-0", 20.0) | domain("2", "psys", 5.0)
        files |= domain("0:0", "core", 7.0) | domain("0:1", "dram", 7.0)
        files |= {f"{RAPL}/intel-rapl-mmio:0/name": "package-0\n", f"{RAPL}/intel-rapl-mmio:0/energy_uj": "1\n"}
        tree(tmp_path, files)
        counter = energy.counter(CPU, root=tmp_path)
        for at in ("0", "1", "2", "0:0", "0:1"):
            spend(tmp_path, at, 120.0)
        assert counter.joules() == pytest.approx(110.0 + 100.0)

    def test_a_counter_that_starts_again(self, tmp_path):
        tree(tmp_path, domain("0", "package-0", 99.0, span=100_000_000))
        counter = energy.counter(CPU, root=tmp_path)
        spend(tmp_path, "0", 4.0)
        assert counter.joules() == pytest.approx(5.0)
        spend(tmp_path, "0", 90.0)
        assert counter.joules() == pytest.approx(91.0)
        spend(tmp_path, "0", 0.5)
        assert counter.joules() == pytest.approx(101.5)

    def test_no_domains(self, tmp_path):
        said = refused(CPU, root=tmp_path)
        assert said.found == f"no package domain (intel-rapl:N) in {tmp_path / RAPL}"
        assert "intel_rapl_msr" in said.needed

    def test_a_platform_domain_alone_is_no_package(self, tmp_path):
        tree(tmp_path, domain("0", "psys", 1.0))
        assert "no package domain" in refused(CPU, root=tmp_path).found

    def test_a_counter_that_may_not_be_read(self, tmp_path, monkeypatch):
        """As for a user who is not root; root reads whatever the mode says, so the refusal is planted."""
        tree(tmp_path, domain("0", "package-0", 1.0))
        path = tmp_path / RAPL / "intel-rapl:0" / "energy_uj"
        path.chmod(0o000)
        if os.access(path, os.R_OK):
            path.unlink()
        said = refused(CPU, root=tmp_path)
        assert said.found == f"{path} cannot be read by this user"
        assert f"chmod a+r {path}" in said.needed
        assert "CVE-2020-8694" in said.needed

    def test_a_counter_without_its_range_is_refused_since_it_could_turn_unseen(self, tmp_path):
        tree(tmp_path, domain("0", "package-0", 1.0, span=0))
        assert "max_energy_range_uj does not tell" in refused(CPU, root=tmp_path).found

    def test_a_counter_that_goes_away(self, tmp_path):
        tree(tmp_path, domain("0", "package-0", 1.0))
        counter = rapl.packages(tmp_path)
        (tmp_path / RAPL / "intel-rapl:0" / "energy_uj").unlink()
        with pytest.raises(NotMeasured, match="can no longer be read"):
            counter.joules()


def h100(*answers) -> tuple[Device, FakeNvml]:
    fake = nvml("h100-sxm")
    fake.recording["gpus"][0]["millijoules"] = list(answers)
    device, _ = nvidia.find(lambda: fake, {})
    return device, fake


class TestNvidia:
    def test_millijoules_are_joules(self):
        device, fake = h100(1_000, 5_000_000, 5_012_500)
        counter = energy.counter(device, load=lambda: fake, environ={})
        start = counter.joules()
        assert counter.joules() - start == pytest.approx(12.5)
        assert counter.source.startswith("NVML")
        assert 0.01 <= counter.period <= 0.1

    def test_nvml_is_held_while_the_counter_lives(self):
        device, fake = h100(1_000)
        counter = energy.counter(device, load=lambda: fake, environ={})
        assert fake.references == 1
        counter.joules()
        del counter
        gc.collect()
        assert fake.references == 0

    def test_the_gpu_that_cuda_shows_is_read(self):
        fake = nvml("h100-x8")
        for at, gpu in enumerate(fake.recording["gpus"]):
            gpu["millijoules"] = [at * 1000]
        environ = {"CUDA_VISIBLE_DEVICES": "3,1"}
        device, _ = nvidia.find(lambda: fake, environ)
        assert energy.counter(device, load=lambda: fake, environ=environ).joules() == 3.0

    def test_a_counter_that_goes_away(self):
        device, fake = h100(1_000, 2_000, {"error": "GPU_IS_LOST"})
        counter = energy.counter(device, load=lambda: fake, environ={})
        counter.joules()
        with pytest.raises(NotMeasured, match="GPU is lost"):
            counter.joules()

    def test_a_gpu_older_than_the_counter(self):
        device, fake = h100({"error": "NOT_SUPPORTED"})
        said = refused(device, load=lambda: fake, environ={})
        assert said.asked == "the energy that NVIDIA H100 80GB HBM3 takes"
        assert said.found == "NVML says 'Not Supported'"
        assert "Volta or newer" in said.needed
        assert fake.references == 0

    @pytest.mark.parametrize(("recording", "part"), [("a100-mig", "MIG 1g.10gb"), ("vgpu-a100", "vGPU")])
    def test_a_part_of_a_gpu_has_no_counter_of_its_own(self, recording, part):
        fake = nvml(recording)
        fake.recording["gpus"][0]["millijoules"] = [1_000]
        device, _ = nvidia.find(lambda: fake, {})
        said = refused(device, load=lambda: fake, environ={})
        assert said.found == f"{part}: NVML counts the energy of the whole board, not of a part"

    def test_a_gpu_that_cannot_be_told_from_another(self):
        fake = nvml("mixed")
        for at, gpu in enumerate(fake.recording["gpus"]):
            gpu["millijoules"] = [at * 1000]
        device, _ = nvidia.find(lambda: fake, {})
        said = refused(device, load=lambda: fake, environ={})
        assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in said.needed
        assert fake.references == 0
        ordered = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}
        assert energy.counter(device, load=lambda: fake, environ=ordered).joules() == 1.0

    def test_a_driver_that_does_not_answer(self):
        device, _ = h100(1)
        assert "Driver Not Loaded" in refused(device, load=lambda: nvml("driver-not-loaded"), environ={}).found

    def test_bindings_that_are_not_installed(self):
        def load():
            raise ImportError("No module named 'pynvml'")

        assert refused(h100(1)[0], load=load, environ={}).needed == "pip install nvidia-ml-py"


@pytest.mark.parametrize(("kind", "whose"), [("rocm", "AMD GPUs"), ("xpu", "Intel GPUs"), ("mps", "Apple's chips")])
def test_other_devices_are_not_read(kind, whose):
    said = refused(Device(kind, "unknown", "a device", "unknown"))
    assert said.found == f"this version of pytest-quant reads no energy counter of {whose}"
