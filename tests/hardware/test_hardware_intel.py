"""Intel GPUs, replayed from /sys/class/drm."""

from __future__ import annotations

import pytest
from hardware_replay import tree

from pytest_quant.hardware import intel

LEFT_OUT = "The Intel GPU 8086:4680 (xe-unknown) is left out: it is not known to be a discrete one."


@pytest.fixture
def ask(tmp_path):
    def ask(recording, usable=lambda path: True, **environ):
        return intel.find(environ, tree(tmp_path, recording), usable)

    return ask


def test_a_discrete_gpu_beside_an_integrated_one(ask):
    found, notes = ask("arc-b580-and-igpu")
    assert notes == ()
    assert (found.kind, found.vendor, found.name) == ("xpu", "intel", "Intel Arc B580")
    assert (found.architecture, found.count, found.driver) == ("xe2", 1, "xe")
    assert found.memory_bytes == 12884901888
    assert found.compute_capability is None
    assert found.notes == (
        LEFT_OUT,
        "The memory bandwidth of 'Intel Arc B580' is not known, so no speed is predicted.",
    )


def test_i915_does_not_tell_the_memory(ask):
    found, _ = ask("arc-a770")
    assert (found.name, found.architecture, found.memory_bytes) == ("Intel Arc A770", "xe-hpg", None)
    assert (found.driver, found.notes[0]) == ("i915", "The kernel does not tell this GPU's memory.")


@pytest.mark.parametrize(("hierarchy", "count", "gib"), [("FLAT", 2, 64), ("COMPOSITE", 1, 128)])
def test_the_tiles_of_max_1550(ask, hierarchy, count, gib):
    found, _ = ask("max-1550", ZE_FLAT_DEVICE_HIERARCHY=hierarchy)
    assert (found.name, found.architecture) == ("Intel Data Center GPU Max 1550", "xe-hpc")
    assert (found.count, found.memory_bytes) == (count, gib * 2**30)


def test_an_integrated_gpu_is_not_chosen(ask):
    assert ask("intel-integrated") == (None, (LEFT_OUT,))


def test_a_gpu_given_to_a_virtual_machine_is_not_ours(ask):
    assert ask("arc-vfio") == (None, ())


def test_no_permission_is_told(ask, tmp_path):
    asked = []
    found, notes = ask("arc-a770", usable=lambda path: bool(asked.append(path)))
    assert found is None
    assert notes == ("There is an Intel Arc A770, but its device file in /dev/dri may not be opened (group render).",)
    assert asked == [tmp_path / "dev/dri/renderD128"]


def test_a_mask_is_noted_as_not_interpreted(ask):
    found, _ = ask("arc-a770", ZE_AFFINITY_MASK="0")
    assert found.notes[-1] == "ZE_AFFINITY_MASK is set; it is not interpreted here."


def test_no_gpu(tmp_path):
    assert intel.find({}, tmp_path) == (None, ())
