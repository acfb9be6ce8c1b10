"""Which earlier measurement may be compared, and the reason when none may."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from pytest_quant.baseline import BaselineError, Entry, File, Match, identity_difference, lookup

IDENTITY: dict[str, Any] = {
    "model": {"fingerprint": "ab12"},
    "format": {"num_bits": 4, "type": "float", "group_size": 64},
    "reference": "fp16",
    "engine": "transformers",
    "metric": {"name": "throughput_ratio", "phase": "decode", "batch_size": 1},
    "protocol": {"window": 512, "stride": 512},
    "hardware": "nvidia-a10g",
}


def identity(**changes: Any) -> dict[str, Any]:
    """The identity with values replaced; `protocol__window=2048` is the key `protocol.window`."""
    changed = copy.deepcopy(IDENTITY)
    for name, value in changes.items():
        *path, last = name.split("__")
        target = changed
        for part in path:
            target = target[part]
        target[last] = value
    return changed


def entry(metric: str = "throughput_ratio", format: str = "nf4", value: float = 1.0, **changes: Any) -> Entry:
    return Entry(metric, format, identity(**changes), value, "ratio")


def file(*entries: Entry) -> File:
    return File({"key": "nvidia-a10g", "name": "NVIDIA A10G"}, "m", entries)


def find(baseline: File | None, **changes: Any) -> Match:
    return lookup(baseline, "throughput_ratio", "nf4", identity(**changes))


def test_no_file_and_no_entry_are_missing() -> None:
    assert find(None) == find(file()) == Match("missing")
    assert find(file(entry(metric="memory_budget"), entry(format="int8"))) == Match("missing")


def test_the_same_identity_is_exact() -> None:
    wanted = entry(value=2.0)
    baseline = file(entry(protocol__window=2048), wanted, entry(metric__phase="prefill"))
    assert find(baseline) == Match("exact", wanted)


def test_how_the_identity_is_written_down_does_not_matter() -> None:
    wanted = entry(model__layers=[1, 2])
    same = dict(reversed(identity(model__layers=(1, 2), metric__batch_size=1.0, model__revision=None).items()))
    assert lookup(file(wanted), "throughput_ratio", "nf4", same) == Match("exact", wanted)


def test_another_identity_is_incomparable_and_says_which_values_differ() -> None:
    old = entry()
    match = find(file(old), protocol__window=2048, engine="vllm", model__revision="main")
    assert match.kind == "incomparable"
    assert match.entry is old
    assert match.differences == (
        'engine: "transformers" -> "vllm"',
        'model.revision: absent -> "main"',
        "protocol.window: 512 -> 2048",
    )


def test_of_several_the_nearest_is_named_whatever_the_order() -> None:
    near, far = entry(protocol__window=1024), entry(protocol__window=1024, engine="vllm")
    for entries in [(near, far), (far, near)]:
        match = find(file(*entries))
        assert match.entry is near
        assert match.differences == ("protocol.window: 1024 -> 512",)


@pytest.mark.parametrize("change", [{"metric__phase": "prefill"}, {"metric__batch_size": 8}, {"metric__of": "peak"}])
def test_another_question_of_the_same_metric_is_missing_not_incomparable(change: dict[str, Any]) -> None:
    assert find(file(entry()), **change) == Match("missing")


def test_without_metric_parameters_the_name_decides() -> None:
    old = Entry("m", "nf4", {"engine": "transformers"}, 1.0, "x")
    assert lookup(file(old), "m", "nf4", {"engine": "vllm"}).kind == "incomparable"
    assert lookup(file(old), "m", "nf4", {"engine": "vllm", "metric": {"name": "m"}}) == Match("missing")


def test_a_quality_metric_may_ignore_the_hardware() -> None:
    old = entry(hardware="nvidia-h100")
    assert find(file(old)).differences == ('hardware: "nvidia-h100" -> "nvidia-a10g"',)
    assert lookup(file(old), "throughput_ratio", "nf4", identity(), ignore=("hardware",)) == Match("exact", old)


def test_differences_of_every_kind() -> None:
    old = {"a": {"b": {"c": 1}}, "gone": True, "list": [1, 2], "kind": "4", "same": {"x": 1.0}, "empty": {}}
    new = {"a": {"b": {"c": 2, "d": False}}, "list": [1, 3], "kind": 4, "same": {"x": 1}, "empty": {}, "none": None}
    assert identity_difference(old, new) == [
        "a.b.c: 1 -> 2",
        "a.b.d: absent -> false",
        "gone: true -> absent",
        'kind: "4" -> 4',
        "list: [1, 2] -> [1, 3]",
    ]
    assert identity_difference(old, old) == identity_difference({}, {}) == []
    assert identity_difference({"a": {}}, {}) == ["a: {} -> absent"]
    assert identity_difference({"a": "absent"}, {}) == ['a: "absent" -> absent']
    assert identity_difference({"a": {"b": 1}}, {"a.b": 1}) != []


def test_what_is_not_json_is_an_error() -> None:
    with pytest.raises(BaselineError, match=r"^identity: protocol\.window: found the number nan, expected a finite"):
        find(file(entry()), protocol__window=math.nan)
