"""AMD GPUs, replayed from the kernel's KFD topology."""

from __future__ import annotations

import pytest
from hardware_replay import tree

from pytest_quant.hardware import amd


@pytest.fixture
def ask(tmp_path):
    def ask(recording, usable=lambda path: True, **environ):
        return amd.find(environ, tree(tmp_path, recording), usable)

    return ask


def test_mi300x(ask):
    found, notes = ask("mi300x-x8")
    assert notes == ()
    assert (found.kind, found.vendor, found.name) == ("rocm", "amd", "AMD Instinct MI300X OAM")
    assert (found.architecture, found.count) == ("gfx942", 8)
    assert found.compute_capability is None, "what HIP calls so is the gfx version"
    assert found.memory_bytes == 206141652992
    assert found.bandwidth == 5.3e12
    assert found.driver == "6.12.12"
    assert found.notes == ()


def test_a_partition_of_mi300x_has_no_known_bandwidth(ask):
    found, _ = ask("mi300x-partitioned")
    assert (found.count, found.memory_bytes, found.bandwidth, found.bandwidth_source) == (4, 51522830336, None, None)
    assert found.notes == (
        "This device has less memory than its board: it is a partition, and its bandwidth is not known.",
    )


def test_mi250_is_two_devices_named_by_its_pci_id(ask):
    found, _ = ask("mi250")
    assert (found.name, found.architecture, found.count) == ("AMD Instinct MI250X / MI250", "gfx90a", 2)
    assert found.memory_bytes == 68702699520
    assert found.bandwidth is None
    assert found.notes == (
        "The memory bandwidth of 'AMD Instinct MI250X / MI250' is not known, so no speed is predicted.",
    )


def test_rx_7900_xtx_beside_an_integrated_gpu(ask):
    found, notes = ask("rx-7900-xtx")
    assert (found.name, found.architecture, found.count) == ("AMD Radeon RX 7900 XTX", "gfx1100", 1)
    assert found.memory_bytes == 25753026560
    assert found.driver is None
    assert notes == ("The AMD GPU AMD gfx1036 is left out: PyTorch is not built for its architecture.",)


def test_an_integrated_gpu_alone_is_left_to_the_cpu(ask):
    assert ask("ryzen-integrated") == (
        None,
        ("The AMD GPU AMD gfx1036 is left out: PyTorch is not built for its architecture.",),
    )


def test_a_gpu_without_a_name_says_so(tmp_path):
    tree(tmp_path, "mi250")
    (tmp_path / "sys/class/kfd/kfd/topology/nodes/2").rename(tmp_path / "away")
    properties = tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties"
    properties.write_text(properties.read_text().replace("device_id 29708", "device_id 1"))
    found, _ = amd.find({}, tmp_path, lambda path: True)
    assert found.name == "AMD gfx90a"
    assert found.notes[0] == "The kernel does not tell this GPU's product name."


def test_no_permission_is_told(ask):
    assert ask("mi300x-x8", usable=lambda path: False) == (
        None,
        ("There is an AMD GPU (AMD Instinct MI300X OAM), but /dev/kfd may not be opened (groups render, video).",),
    )


def test_the_device_file_is_asked_for(ask, tmp_path):
    asked = []
    ask("mi300x-x8", usable=lambda path: asked.append(path) or True)
    assert asked == [tmp_path / "dev/kfd"]


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({"HIP_VISIBLE_DEVICES": "0,1,2"}, 3),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 1),
        ({"HIP_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "0"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6"}, 3),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6", "HIP_VISIBLE_DEVICES": "0,2"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6", "HIP_VISIBLE_DEVICES": "0,4"}, 1),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0000000000001003,GPU-0000000000001001"}, 2),
    ],
)
def test_visible(ask, environ, count):
    assert ask("mi300x-x8", **environ)[0].count == count


@pytest.mark.parametrize("environ", [{"HIP_VISIBLE_DEVICES": ""}, {"ROCR_VISIBLE_DEVICES": "-1"}])
def test_hidden(ask, environ):
    note = "ROCR_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES hides all 8 AMD GPUs that are here."
    assert ask("mi300x-x8", **environ) == (None, (note,))


def test_no_kfd(tmp_path):
    assert amd.find({}, tmp_path, lambda path: True) == (None, ())
