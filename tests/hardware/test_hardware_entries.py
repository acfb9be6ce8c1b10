"""What the environment must say for one of several GPUs to be the only one that is seen, from recorded answers."""

from __future__ import annotations

import pytest
from hardware_replay import nvml, tree

from pytest_quant.hardware import amd, nvidia


def names(recording, **environ):
    fake = nvml(recording)
    found = nvidia.entries(lambda: fake, environ)
    assert fake.references == 0
    return found


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, tuple("01234567")),
        ("4,2", ("4", "2")),
        (" 1 , 5 ,99", ("1", "5")),
        ("3", ("3",)),
        ("", ()),
        ("1,1", ()),
    ],
)
def test_eight_gpus(mask, expected):
    environ = {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}
    assert names("h100-x8", **environ) == expected


@pytest.mark.parametrize("name", ["h100-x8", "mixed"])
@pytest.mark.parametrize("environ", [{}, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, {"CUDA_VISIBLE_DEVICES": "0,2"}])
def test_each_leaves_one_gpu_of_the_name_that_was_counted(name, environ):
    """As the watch and the energy counter see it: they follow the variable too."""
    counted, _ = nvidia.find(lambda: nvml(name), environ)
    found = names(name, **environ)
    assert len(found) == counted.count > 1
    assert len(set(found)) == len(found)
    boards = set()
    for entry in found:
        alone = {**environ, "CUDA_VISIBLE_DEVICES": entry, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        device, _ = nvidia.find(lambda: nvml(name), alone)
        assert (device.name, device.count) == (counted.name, 1)
        fake = nvml(name)
        fake.nvmlInit()
        boards.add(nvidia.handles(fake, alone).board["uuid"])
    assert len(boards) == len(found), "each is watched by itself"


def test_gpus_that_nvml_and_cuda_may_count_differently_are_named_by_their_uuid():
    assert all(name.startswith("GPU-") for name in names("mixed"))
    assert names("mixed", CUDA_DEVICE_ORDER="PCI_BUS_ID") == ("0", "2")


@pytest.mark.parametrize("recording", ["a100-mig", "h100-mig-and-whole", "driver-not-loaded", "zero-devices"])
def test_partitions_and_silence_leave_nothing_to_give(recording):
    assert names(recording) == ()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, tuple("01234567")),
        ({"HIP_VISIBLE_DEVICES": "6,1"}, ("6", "1")),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, ("2", "3")),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6"}, ("0", "1", "2")),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6", "HIP_VISIBLE_DEVICES": "2,0"}, ("2", "0")),
    ],
)
def test_amd(tmp_path, environ, expected):
    root = tree(tmp_path, "mi300x-x8")
    assert amd.entries(environ, root) == expected
    for name in expected:
        device, _ = amd.find({**environ, "HIP_VISIBLE_DEVICES": name}, root, lambda path: True)
        assert device.count == 1


def test_amd_leaves_out_what_is_not_counted(tmp_path):
    assert len(amd.entries({}, tree(tmp_path, "rx-7900-xtx"))) == 1
