"""Which GPU a worker gets, from recorded answers."""

from __future__ import annotations

import pytest

from pytest_quant.distribution.devices import DeviceWarning, assign, lanes


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [("cpu", 1, None), ("cuda", 8, 8), ("cuda", 1, 1), ("rocm", 4, 4), ("xpu", 2, 1), ("mps", 1, 1)],
)
def test_as_many_workers_hold_models_as_there_are_devices_to_give(kind, count, expected):
    assert lanes(kind, count) == expected


@pytest.mark.parametrize(("kind", "variable"), [("cuda", "CUDA_VISIBLE_DEVICES"), ("rocm", "HIP_VISIBLE_DEVICES")])
def test_each_lane_gets_a_device_of_its_own(kind, variable):
    given = []
    for lane in range(5):
        environ: dict[str, str] = {"OTHER": "1"}
        given.append(assign(kind, lane, ["4", "5", "6"], environ, lambda: None))
        assert environ == {"OTHER": "1", variable: given[-1]}
    assert given == ["4", "5", "6", "4", "5"], "where there are more workers than devices they share"


@pytest.mark.parametrize(("kind", "names"), [("cuda", ["0"]), ("cuda", []), ("cpu", ["0", "1"]), ("xpu", ["0", "1"])])
def test_nothing_to_choose_leaves_everything_as_it_is(kind, names):
    environ: dict[str, str] = {}
    assert assign(kind, 1, names, environ, lambda: 1) is None
    assert environ == {}


@pytest.mark.parametrize("before", [{}, {"CUDA_VISIBLE_DEVICES": "2,3"}])
def test_where_cuda_has_started_it_is_said_and_undone(before):
    environ = dict(before)
    with pytest.warns(DeviceWarning, match="shares the first of 2 GPUs .* CUDA_VISIBLE_DEVICES=3 came too late"):
        assert assign("cuda", 1, ["2", "3"], environ, lambda: 2) is None
    assert environ == before


def test_where_the_framework_is_there_and_sees_one_device_it_took_effect():
    environ: dict[str, str] = {}
    assert assign("cuda", 1, ["0", "1"], environ, lambda: 1) == "1"
