"""Two greedy continuations token by token, and their means over prompts."""

from __future__ import annotations

import pytest

from pytest_quant.metrics.generation import Match, compare, generation_match


@pytest.mark.parametrize(
    "reference, format, expected",
    [
        ([], [], Match(1.0, 1.0, True, None, 0)),
        ([5, 6, 0], [5, 6, 0], Match(1.0, 1.0, True, None, 3)),
        ([5, 6, 7, 8], [5, 6, 9, 8], Match(0.75, 0.5, False, 2, 4)),
        ([5, 6, 7, 8], [9, 6, 7, 8], Match(0.75, 0.0, False, 0, 4)),
        ([5, 6, 0], [5, 6, 7, 8], Match(0.5, 0.5, False, 2, 4)),
        ([5, 6, 7, 8], [5, 6], Match(0.5, 0.5, False, 2, 4)),
        ([5, 6], [], Match(0.0, 0.0, False, 0, 2)),
        ([1, 2, 3, 4], [2, 3, 4, 5], Match(0.0, 0.0, False, 0, 4)),
    ],
)
def test_compare(reference, format, expected):
    assert compare(reference, format) == expected
    assert compare(format, reference) == expected


def test_means_over_all_prompts_are_exact():
    matches = [compare([1, 2, 3, 4], other) for other in ([1, 2, 3, 4], [1, 2, 9, 4], [9, 2, 3, 4], [1, 2, 3, 9])]
    quantities, figures = generation_match(matches, 4, 0.01)
    assert {name: (q.low, q.value, q.high, q.unit) for name, q in quantities.items()} == {
        "share": (0.8125, 0.8125, 0.8125, "share"),
        "prefix": (0.5625, 0.5625, 0.5625, "share"),
        "same": (0.25, 0.25, 0.25, "share"),
    }
    assert figures == {"changed": 3.0, "first_divergence_median": 2.0}


def test_a_part_of_the_prompts_gives_intervals():
    quantities, _ = generation_match([compare([1, 2], [1, 3])] * 4 + [compare([1, 2], [1, 2])] * 12, 64, 0.01)
    share = quantities["share"]
    assert 0.0 <= share.low < share.value == 0.875 < share.high <= 1.0
    assert share.low >= 14 / 64


def test_nothing_changed_has_no_first_divergence():
    quantities, figures = generation_match([compare([1], [1])] * 3, 3, 0.01)
    assert figures == {"changed": 0.0}
    assert quantities["same"].value == 1.0
