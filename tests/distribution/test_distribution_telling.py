"""What a worker tells of its tests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_quant.distribution.telling import heard, tell
from pytest_quant.engines.source import ModelSource
from pytest_quant.placement import parse
from pytest_quant.spec import ModelSpec, packed
from pytest_quant.targets import Target

PLAIN = ModelSpec(ModelSource("org/model"))
SPREAD = {
    "device_map": ModelSpec(ModelSource("org/model"), placement=parse("auto")),
    "the second device": ModelSpec(ModelSource("org/model"), placement=parse({"": 1})),
    "tensors": ModelSpec(ModelSource("org/model"), engine="vllm", engine_args=packed({"tensor_parallel_size": 2})),
    "layers": ModelSpec(ModelSource("org/model"), engine="vllm", engine_args=packed({"pipeline_parallel_size": 2})),
}


def told(tmp_path, *specs, kind="cuda", count=4):
    targets = {f"test_{i}": Target(spec, ("int8",), (), False, False) for i, spec in enumerate(specs)}
    run = SimpleNamespace(
        spreads=any(spec.spreads for spec in specs),
        known_tests=set(targets),
        hardware=lambda: {"kind": kind, "count": count},
        target=lambda item: targets[item.nodeid],
        lost=lambda item: [],
    )
    items = [SimpleNamespace(nodeid=name, fixturenames=()) for name in targets]
    tell(run, items, tmp_path / "shared", "gw0")
    return heard(tmp_path / "shared")


def test_each_device_is_a_worker_s(tmp_path):
    assert told(tmp_path, PLAIN, ModelSpec(ModelSource("m"), engine="vllm")).count == 4


@pytest.mark.parametrize("which", SPREAD)
def test_what_is_spread_needs_them_all(tmp_path, which):
    assert told(tmp_path, PLAIN, SPREAD[which]).count == 1
