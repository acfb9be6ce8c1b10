"""How an example's output is found in what was printed."""

from __future__ import annotations

import pytest
from docs_blocks import blocks, commands, not_printed

PRINTED = [
    "on AMD EPYC",
    "",
    "nf4  perplexity      1.306x [1.187, 1.438] 8/16  max 1.5x  passed",
    "2 measurements recorded",
]


def test_blocks_are_found_with_their_kind_and_line():
    found = blocks("# Title\n\n```python vllm\nx = 1\n```\n\n````text\n```sh\n```\n````\n")
    assert [(block.kind, block.text, block.line) for block in found] == [
        ("python vllm", "x = 1\n", 3),
        ("text", "```sh\n```\n", 7),
    ]


def test_commands_have_their_lines():
    found = list(commands("$ one --a  # comment\n$ two\nline\n  another\n"))
    assert found == [("one --a", []), ("two", ["line", "  another"])]


@pytest.mark.parametrize(
    "shown",
    [
        ["nf4 perplexity 1.306x [1.187, 1.438] 8/16 max 1.5x passed"],
        ["on ...", "...", "2 measurements ..."],
        ["nf4  perplexity  1.31x [1.19, 1.44] 8/16  max 1.5x  passed", "", "2 measurements recorded"],
    ],
)
def test_what_was_printed_is_found(shown):
    assert not_printed(shown, PRINTED, tolerance=0.05) == []


@pytest.mark.parametrize(
    "shown",
    [
        "nf4  perplexity      1.306x [1.187, 1.438] 8/16  max 1.5x  failed",
        "nf4  perplexity      1.906x [1.187, 1.438] 8/16  max 1.5x  passed",
        "nf4  perplexity      1.306x [1.187, 1.438] 16/16  max 1.5x  passed",
        "3 measurements ...",
        "on AMD EPYC, of course",
    ],
)
def test_what_was_not_printed_is_missed(shown):
    assert not_printed([shown], PRINTED, tolerance=0.05) == [shown]


def test_lines_stand_in_their_order():
    assert not_printed(["2 measurements recorded", "on AMD EPYC"], PRINTED) == ["on AMD EPYC"]


def test_without_a_tolerance_numbers_are_exact():
    assert not_printed(["nf4 perplexity 1.31x [1.187, 1.438] 8/16 max 1.5x passed"], PRINTED) != []
