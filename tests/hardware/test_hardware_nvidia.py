"""NVIDIA GPUs, replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hardware_replay import MIB, nvml, tree

from pytest_quant.hardware import nvidia

NOWHERE = Path("/nonexistent")


def ask(name, environ=None, root=None):
    fake = nvml(name)
    found = nvidia.find(lambda: fake, environ or {}, root or NOWHERE)
    assert fake.references == 0, "NVML was not shut down as often as it was initialized"
    return found


def device(name, **environ):
    found, notes = ask(name, environ)
    assert found is not None
    assert notes == ()
    return found


@pytest.mark.parametrize(
    ("recording", "name", "capability", "mib", "terabytes"),
    [
        ("h100-sxm", "NVIDIA H100 80GB HBM3", (9, 0), 81559, 3.35),
        ("a100-sxm-80gb", "NVIDIA A100-SXM4-80GB", (8, 0), 81920, 2.039),
        ("a10g", "NVIDIA A10G", (8, 6), 23028, 0.6),
        ("l40s", "NVIDIA L40S", (8, 9), 46068, 0.864),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", (8, 9), 24564, 1.008),
        ("rtx-3090", "NVIDIA GeForce RTX 3090", (8, 6), 24576, 0.936),
        ("h200", "NVIDIA H200", (9, 0), 143771, 4.8),
        ("b200", "NVIDIA B200", (10, 0), 183359, 8.0),
        ("rtx-5090", "NVIDIA GeForce RTX 5090", (12, 0), 32607, 1.792),
        ("t4", "Tesla T4", (7, 5), 15360, 0.32),
    ],
)
def test_a_whole_gpu(recording, name, capability, mib, terabytes):
    found = device(recording)
    assert (found.kind, found.vendor, found.name, found.count) == ("cuda", "nvidia", name, 1)
    assert found.compute_capability == capability
    assert found.architecture == f"sm_{capability[0]}{capability[1]}"
    assert found.memory_bytes == mib * MIB
    assert found.bandwidth == pytest.approx(terabytes * 1e12)
    assert found.bandwidth_source == "specification table (pytest_quant/hardware/specs.toml)"
    assert found.driver == "580.95.05"
    assert found.partition is None
    assert found.features == frozenset()
    assert found.notes == ()


def test_an_old_driver_leaves_out_the_vendor_and_the_name_is_kept_as_reported():
    found = device("a100-old-driver")
    assert found.name == "A100-SXM4-80GB"
    assert found.bandwidth == pytest.approx(2.039e12)


def test_bytes_of_old_bindings_are_decoded(monkeypatch):
    fake = nvml("l40s")
    monkeypatch.setattr(fake, "nvmlDeviceGetName", lambda handle: b"NVIDIA L40S")
    monkeypatch.setattr(fake, "nvmlSystemGetDriverVersion", lambda: b"535.0")
    found, _ = nvidia.find(lambda: fake, {})
    assert (found.name, found.driver) == ("NVIDIA L40S", "535.0")


def test_bindings_without_the_newer_questions_still_answer(monkeypatch):
    class Old(type(nvml("l40s"))):
        nvmlDeviceGetMigMode = property()
        nvmlDeviceGetVirtualizationMode = property()

    found, _ = nvidia.find(lambda: Old(nvml("l40s").recording), {})
    assert (found.name, found.partition) == ("NVIDIA L40S", None)


def test_an_unknown_name_has_no_bandwidth_and_not_that_of_a_similar_one():
    found = device("rtx-3090-ti")
    assert found.bandwidth is None
    assert found.bandwidth_source is None
    assert found.notes == (
        "The memory bandwidth of 'NVIDIA GeForce RTX 3090 Ti' is not known, so no speed is predicted.",
    )


def test_memory_that_nvml_does_not_tell_is_unknown_and_not_zero():
    found = device("gb10")
    assert found.memory_bytes is None
    assert found.architecture == "sm_121"
    assert found.notes[0] == "NVML does not tell this GPU's memory."


def test_eight_gpus_of_one_name_are_counted():
    assert device("h100-x8").count == 8
    assert device("h100-x8").key == "nvidia-h100-80gb-hbm3-x8"


def test_a_lost_gpu_is_noted_and_the_other_is_used():
    found = device("one-of-two-lost")
    assert (found.name, found.count) == ("NVIDIA L40S", 1)
    assert found.notes == ("The NVIDIA GPU number 0 could not be asked: NVML says 'GPU is lost'.",)


class TestVisible:
    @pytest.mark.parametrize(
        ("mask", "count"),
        [
            ("0", 1),
            ("0,1,2", 3),
            ("3, 1", 2),
            ("0,2,-1,1", 2),
            ("0,99,1", 1),
            ("GPU-11000000", 1),
            ("GPU-11000000,GPU-22000000-1b2c-3d4e-5f60-718293a4b5c6", 2),
            ("GPU-11000000,1", 1),
            ("1,GPU-11000000", 1),
        ],
    )
    def test_counts(self, mask, count):
        assert device("h100-x8", CUDA_VISIBLE_DEVICES=mask).count == count

    @pytest.mark.parametrize("mask", ["", "-1", "-1,0", "8", "0,0", "NoDevFiles", "GPU-", "GPU-deadbeef", "MIG-1"])
    def test_hides_all(self, mask):
        assert ask("h100-x8", {"CUDA_VISIBLE_DEVICES": mask}) == (
            None,
            (f"CUDA_VISIBLE_DEVICES={mask!r} hides all 8 NVIDIA GPUs that are here.",),
        )

    def test_order_of_the_mask_decides(self):
        assert device("mixed", CUDA_VISIBLE_DEVICES="1,0").name == "NVIDIA GeForce RTX 4090"
        assert device("mixed", CUDA_VISIBLE_DEVICES="GPU-20000003").name == "NVIDIA GeForce RTX 3090"

    def test_a_beginning_that_two_gpus_share_hides(self):
        assert ask("mixed", {"CUDA_VISIBLE_DEVICES": "GPU-2000000"})[0] is None


ORDER = (
    "The NVIDIA GPUs here are of different names, and CUDA numbers the fastest first where NVML follows the PCI bus: "
    "another GPU than this may be used. Set CUDA_DEVICE_ORDER=PCI_BUS_ID to be sure."
)


class TestMixed:
    def test_counts_only_the_first_name_and_warns_of_the_order(self):
        found = device("mixed")
        assert (found.name, found.count) == ("NVIDIA GeForce RTX 3090", 2)
        assert found.notes == (ORDER, "Also visible: NVIDIA GeForce RTX 4090.")

    def test_the_bus_order_is_certain(self):
        assert device("mixed", CUDA_DEVICE_ORDER="PCI_BUS_ID").notes == ("Also visible: NVIDIA GeForce RTX 4090.",)

    def test_an_index_is_uncertain_and_a_uuid_is_not(self):
        assert device("mixed", CUDA_VISIBLE_DEVICES="1").notes == (ORDER,)
        assert device("mixed", CUDA_VISIBLE_DEVICES="GPU-20000002").notes == ()


class TestMig:
    def test_the_first_slice_when_nothing_is_said(self):
        found = device("a100-mig")
        assert (found.name, found.partition, found.count) == ("NVIDIA A100-SXM4-80GB", "MIG 1g.10gb", 1)
        assert found.memory_bytes == 9728 * MIB
        assert found.bandwidth == pytest.approx(2.039e12 / 8)
        assert found.key == "nvidia-a100-sxm4-80gb-mig-1g.10gb"

    @pytest.mark.parametrize(
        "mask",
        [
            "MIG-000000a2-2b2c-5d4e-8f60-718293a4b5c6",
            "MIG-GPU-10000001-1b2c-3d4e-5f60-718293a4b5c6/1/0",
        ],
    )
    def test_a_named_slice(self, mask):
        found = device("a100-mig", CUDA_VISIBLE_DEVICES=mask)
        assert found.partition == "MIG 3g.40gb"
        assert found.bandwidth == pytest.approx(2.039e12 / 2)

    def test_a_compute_instance_that_shares_its_slice(self):
        mask = "MIG-000000a3-2b2c-5d4e-8f60-718293a4b5c6"
        assert device("a100-mig", CUDA_VISIBLE_DEVICES=mask).partition == "MIG 1c.3g.40gb"

    def test_a_slice_must_be_named_in_full(self):
        assert ask("a100-mig", {"CUDA_VISIBLE_DEVICES": "MIG-000000a2"})[0] is None

    def test_several_slices_are_one_device(self):
        mask = "MIG-000000a2-2b2c-5d4e-8f60-718293a4b5c6,MIG-000000a1-2b2c-5d4e-8f60-718293a4b5c6"
        found = device("a100-mig", CUDA_VISIBLE_DEVICES=mask)
        assert (found.partition, found.count) == ("MIG 3g.40gb", 1)
        assert found.notes == ("Only the first of the visible MIG devices is counted.",)

    def test_a_profile_is_named_after_the_rounded_eighth_of_the_board(self):
        assert device("b200-mig").partition == "MIG 1g.23gb"

    def test_no_slice_was_created(self):
        note = "MIG is enabled on the NVIDIA GPUs that are visible, but no instance has been created."
        assert ask("a100-mig-empty") == (None, (note,))

    def test_a_partitioned_gpu_is_not_counted_with_a_whole_one(self):
        assert device("h100-mig-and-whole", CUDA_VISIBLE_DEVICES="0").count == 1
        found = device("h100-mig-and-whole", CUDA_VISIBLE_DEVICES="1")
        assert (found.partition, found.memory_bytes) == ("MIG 1g.10gb", 9984 * MIB)

    def test_a_slice_that_nvml_does_not_describe(self, monkeypatch):
        fake = nvml("a100-mig")
        refuse = {"error": "NOT_SUPPORTED"}
        fake.recording["gpus"][0]["mig_devices"][0]["gpu_instance_slices"] = refuse
        found, _ = nvidia.find(lambda: fake, {})
        assert (found.partition, found.memory_bytes) == ("MIG", 9728 * MIB)
        assert found.bandwidth == pytest.approx(2.039e12 / 8)


class TestVgpu:
    NOTE = "This is a vGPU: its bandwidth is shared, so the published one is an upper limit."

    def test_time_sliced(self):
        found = device("vgpu-a100")
        assert (found.name, found.partition) == ("GRID A100DX-80C", "vGPU")
        assert found.bandwidth == pytest.approx(2.039e12)
        assert found.notes == (self.NOTE,)

    def test_backed_by_mig(self):
        assert device("vgpu-a100-mig-backed").bandwidth == pytest.approx(2.039e12 / 8)

    def test_known_by_its_name_where_nvml_does_not_tell_the_mode(self):
        fake = nvml("vgpu-a100")
        fake.recording["gpus"][0]["virtualization_mode"] = {"error": "NOT_SUPPORTED"}
        assert nvidia.find(lambda: fake, {})[0].partition == "vGPU"

    def test_passthrough_is_a_whole_gpu(self):
        assert nvml("h200").recording["gpus"][0]["virtualization_mode"] == 1
        assert device("h200").partition is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("recording", "note"),
        [
            (
                "driver-not-loaded",
                "NVIDIA's driver could not be asked: NVML says 'Driver Not Loaded': "
                "the library is installed, the kernel module is not loaded.",
            ),
            (
                "version-mismatch",
                "NVIDIA's driver could not be asked: NVML says 'RM has detected an NVML/RM version mismatch.': "
                "its library and its kernel module are of different versions (reload the module, or reboot).",
            ),
            ("unknown-error", "NVIDIA's driver could not be asked: NVML says 'Unknown Error'."),
            ("no-permission", "NVIDIA's driver could not be asked: NVML says 'Insufficient Permissions'."),
            ("zero-devices", "NVIDIA's driver is loaded but reports no GPU."),
        ],
    )
    def test_is_told(self, recording, note):
        assert ask(recording) == (None, (note,))

    def test_no_library_and_no_gpu_is_the_common_case_and_says_nothing(self, tmp_path):
        assert ask("library-not-found", root=tmp_path) == (None, ())

    def test_no_library_but_a_gpu_on_the_bus(self, tmp_path):
        slot = "sys/bus/pci/devices/0000:01:00.0"
        tree(tmp_path, {f"{slot}/vendor": "0x10de\n", f"{slot}/class": "0x030200\n"})
        note = "There seems to be an NVIDIA GPU, but it could not be asked: "
        assert ask("library-not-found", root=tmp_path) == (
            None,
            (note + "the driver's library libnvidia-ml was not found.",),
        )

    def test_an_audio_function_of_nvidia_is_no_gpu(self, tmp_path):
        slot = "sys/bus/pci/devices/0000:01:00.1"
        tree(tmp_path, {f"{slot}/vendor": "0x10de\n", f"{slot}/class": "0x040300\n"})
        assert ask("library-not-found", root=tmp_path) == (None, ())

    def test_bindings_not_installed(self, tmp_path):
        def load():
            raise ImportError("No module named 'pynvml'")

        assert nvidia.find(load, {}, tmp_path) == (None, ())
        tree(tmp_path, {"dev/nvidiactl": ""})
        note = "There seems to be an NVIDIA GPU, but it could not be asked: "
        assert nvidia.find(load, {}, tmp_path) == (
            None,
            (note + "the Python package nvidia-ml-py is not installed.",),
        )

    def test_shut_down_after_an_error_in_the_middle(self):
        fake = nvml("l40s")
        fake.recording["gpus"][0]["compute_capability"] = {"error": "GPU_IS_LOST"}
        assert nvidia.find(lambda: fake, {}) == (
            None,
            ("NVIDIA's driver could not be asked: NVML says 'GPU is lost'.",),
        )
        assert (fake.initialized, fake.references) == (1, 0)

    def test_the_replay_raises_the_real_exceptions(self):
        import pynvml

        with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
            nvml("driver-not-loaded").nvmlInit()
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            nvml("l40s").nvmlDeviceGetCount()

    def test_the_replay_has_only_functions_that_the_bindings_have(self):
        import pynvml

        asked = [name for name in dir(nvml("l40s")) if name.startswith("nvml")]
        assert [name for name in asked if not hasattr(pynvml, name)] == []
        assert len(asked) >= 26
