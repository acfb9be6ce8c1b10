"""The readings of CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import pytest

from pytest_quant.hardware.visible import select

UUIDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]
SLICES = {"MIG-x": (0, 0), "MIG-y": (0, 1)}


@pytest.mark.parametrize(
    ("value", "places"),
    [
        (None, [(0, None), (1, None), (2, None)]),
        ("", []),
        (" ", []),
        ("2,0", [(2, None), (0, None)]),
        (" 1 , 2 ", [(1, None), (2, None)]),
        ("+1", [(1, None)]),
        ("1gpu,2other", [(1, None), (2, None)]),
        ("0,x,1", [(0, None)]),
        ("0,,1", [(0, None)]),
        ("0,3,1", [(0, None)]),
        ("1,0,1", []),
        ("GPU-aaaa", [(0, None)]),
        ("GPU-aa", []),
        ("GPU-c,GPU-aab", [(2, None), (1, None)]),
        ("GPU-c,GPU-cccc-3", []),
        ("MIG-y,MIG-x", [(0, 1), (0, 0)]),
        ("MIG-y,MIG-", [(0, 1)]),
        ("MIG-y,GPU-c", [(0, 1)]),
        ("gpu-c", []),
    ],
)
def test_select(value, places):
    assert select(value, UUIDS, SLICES) == places


def test_no_devices():
    assert select(None, []) == []
    assert select("0", []) == []
