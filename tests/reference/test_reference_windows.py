"""Keys, windows and stored references in memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from reference_examples import key, reference, window

from pytest_quant.reference import FLOOR, ReferenceKey, StoreError, WindowReference, Windows


def test_importing_the_room_imports_no_heavy_library() -> None:
    code = (
        "import sys, pytest_quant.reference, pytest_quant.reference.commands\n"
        "print([name for name in ('numpy', 'torch', 'safetensors', 'filelock', 'pytest') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_digest_does_not_change_from_release_to_release() -> None:
    assert key().digest == "8d0a1807d86e8450bbdb9f47a9a13c7c"


@pytest.mark.parametrize(
    "changed", [{"model": "x"}, {"dtype": "fp32"}, {"engine": "vllm"}, {"protocol": {"name": "gptq-8"}}]
)
def test_every_part_of_the_key_counts(changed) -> None:
    assert key(**changed) != key()
    assert key(**changed).digest != key().digest


def test_a_subset_of_the_windows_is_the_same_key() -> None:
    subset = key(protocol={**key().protocol, "subset": {"windows": 4, "seed": 0}})
    assert subset == key()
    assert subset.digest == key().digest
    assert len({subset, key()}) == 1


def test_a_key_is_plain_json() -> None:
    assert ReferenceKey("m", "d", "e", {"b": (1, 2.0), "a": None}).protocol == {"b": [1, 2]}


@pytest.mark.parametrize(
    "changed", [{"model": ""}, {"dtype": None}, {"protocol": [1]}, {"protocol": {"a": float("nan")}}]
)
def test_a_key_that_is_none_is_refused(changed) -> None:
    with pytest.raises(StoreError, match="key of a stored reference"):
        key(**changed)


def test_a_window_is_cast_and_frozen() -> None:
    made = WindowReference([1.0], [[70000]], [[-0.5]], [-0.93])
    assert [getattr(made, name).dtype.name for name in vars(made)] == ["float32", "uint32", "float16", "float32"]
    with pytest.raises(ValueError, match="read-only"):
        made.nll[0] = 2


def test_no_mass_outside_the_top_tokens_is_the_floor() -> None:
    made = WindowReference([0.0], [[1, 2]], [[0.0, -1e30]], [-np.inf])
    assert made.rest_log_mass.tolist() == [FLOOR]
    assert made.top_log_probs.tolist() == [[0.0, FLOOR]]


@pytest.mark.parametrize(
    "arrays",
    [
        ([1.0, 2.0], [[1]], [[0.0]], [FLOOR]),
        ([1.0], [[1, 2]], [[0.0]], [FLOOR]),
        ([1.0], [1], [0.0], [FLOOR]),
        ([1.0], [[1]], [[0.0]], [[FLOOR]]),
        (1.0, [[1]], [[0.0]], [FLOOR]),
        ([], np.zeros((0, 1), int), np.zeros((0, 1)), []),
        ([1.0], np.zeros((1, 0), int), np.zeros((1, 0)), [0.0]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arrays) -> None:
    with pytest.raises(StoreError, match="do not fit together"):
        WindowReference(*arrays)


@pytest.mark.parametrize("ids", [[[-1]], [[2**32]], [[1.0]]])
def test_ids_that_are_none_are_refused(ids) -> None:
    with pytest.raises(StoreError, match="whole numbers"):
        WindowReference([1.0], ids, [[0.0]], [FLOOR])


def test_windows_are_a_sequence() -> None:
    windows = reference(4).windows
    assert len(windows) == 4
    assert windows.top_k == 3
    assert [len(part.nll) for part in windows] == [7, 8, 9, 7]
    assert np.array_equal(windows[-1].nll, window(3, tokens=7).nll)
    assert np.array_equal(windows[1].top_ids, window(1, tokens=8).top_ids)
    assert windows[1].top_ids.dtype == np.uint32
    assert [len(part.nll) for part in windows[1:3]] == [8, 9]
    for outside in (4, -5):
        with pytest.raises(IndexError):
            windows[outside]


@pytest.mark.parametrize("vocabulary, stored", [(2**16, "uint16"), (256_000, "uint32")])
def test_ids_take_two_bytes_where_they_can(vocabulary, stored) -> None:
    ids = np.array([[vocabulary - 1]])
    windows = Windows.of([WindowReference([1.0], ids, [[0.0]], [FLOOR])])
    assert windows.top_ids.dtype == stored
    assert windows[0].top_ids.tolist() == [[vocabulary - 1]]


def test_windows_are_extended_in_the_drawn_order() -> None:
    longer = reference(2).windows.extended(reference(4).windows[2:])
    assert np.array_equal(longer.nll, reference(4).windows.nll)
    huge = longer.extended([window(9, vocabulary=10**6)])
    assert huge.top_ids.dtype == np.uint32
    assert np.array_equal(huge[0].top_ids, longer[0].top_ids)


def test_no_windows_and_unlike_windows_are_refused() -> None:
    with pytest.raises(StoreError, match="no window"):
        Windows.of([])
    with pytest.raises(StoreError, match=r"\[2, 3\]"):
        Windows.of([window(0, top_k=2), window(1, top_k=3)])


def test_complete_means_all_windows() -> None:
    assert not reference(39).complete
    assert reference(40).complete
