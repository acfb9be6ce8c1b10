"""Which windows a protocol cuts, in which order they are drawn, and what decides their identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.corpora.protocols import Protocol, Windows, cut, parse
from pytest_quant.errors import UsageError

CORPUS = {"name": "some.txt", "sha256": "ab12"}
DRAWN_8 = [7, 1, 3, 5, 2, 6, 0, 4]
"""Eight windows by sha256 of "pytest-quant:0:<index>", as sha256sum says; committed baselines depend on it."""


def stream(tokens: int) -> np.ndarray:
    return np.arange(100, 100 + tokens, dtype=np.int64)


def windows(tokens: int, name: str, **more) -> Windows:
    return cut(stream(tokens), parse(name), corpus=CORPUS, **more)


def scored_positions(found: Windows) -> list[int]:
    """Positions in the stream that are predicted, in the stream's order."""
    return sorted(int(token) - 100 for window in found.drawn for token in window.tokens[window.scored_from :])


# names


def test_names_of_protocols():
    assert parse("gptq-2048") == Protocol("gptq-2048", 2048, 2048)
    assert parse("hf-strided-1024-512") == Protocol("hf-strided-1024-512", 1024, 512)
    assert parse("hf-strided-2-1") == Protocol("hf-strided-2-1", 2, 1)
    assert parse("hf-strided-64-64").strided is True
    assert parse("gptq-2").strided is False


UNKNOWN = ["", "gptq", "gptq-", "gptq-x", "gptq--5", "gptq-1.5", "gptq-64 ", "gptq-64\n", "GPTQ-64", "gptq-64-32"]
UNKNOWN += ["a-gptq-64", "hf-strided-64", "hf-strided-64-", "hf-strided-64-32-16", "llamacpp-512", "lm-eval-word"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_say_the_forms(name):
    with pytest.raises(UsageError) as caught:
        parse(name)
    assert repr(name) in str(caught.value)
    assert "gptq-L" in str(caught.value)
    assert "hf-strided-L-S" in str(caught.value)


@pytest.mark.parametrize("name", ["gptq-0", "gptq-1", "hf-strided-1-1", "hf-strided-64-0", "hf-strided-64-65"])
def test_impossible_windows_are_refused(name):
    with pytest.raises(UsageError, match="at least 2 tokens, and a stride of 1 to the window's length"):
        parse(name)


# gptq-L


def test_disjoint_windows_by_hand():
    found = sorted(windows(11, "gptq-4").drawn, key=lambda window: window.index)
    assert [list(window.tokens) for window in found] == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert [(window.index, window.scored_from, window.scored) for window in found] == [(0, 1, 3), (1, 1, 3)]


@given(tokens=st.integers(2, 400), length=st.integers(2, 50))
def test_gptq_scores_all_but_the_first_of_each_window_and_drops_the_tail(tokens, length):
    if tokens < length:
        with pytest.raises(UsageError):
            windows(tokens, f"gptq-{length}")
        return
    found = windows(tokens, f"gptq-{length}")
    kept = tokens - tokens % length
    assert scored_positions(found) == [position for position in range(kept) if position % length != 0]
    assert sorted(int(t) - 100 for window in found.drawn for t in window.tokens) == list(range(kept))
    assert {len(window.tokens) for window in found.drawn} == {length}
    assert {window.scored for window in found.drawn} == {length - 1}
    assert found.identity["windows"] == len(found.drawn) == tokens // length


# hf-strided-L-S


def by_the_guide(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """Begin, end and number of new tokens of each window: the loop of Hugging Face's guide."""
    found, previous = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        found.append((begin, end, end - previous))
        previous = end
        if end == tokens:
            break
    return found


def test_strided_windows_by_hand():
    found = sorted(windows(9, "hf-strided-4-2").drawn, key=lambda window: window.index)
    assert [[int(t) - 100 for t in window.tokens] for window in found] == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8],
    ]
    assert [[int(t) - 100 for t in window.tokens[window.scored_from :]] for window in found] == [
        [1, 2, 3],
        [4, 5],
        [6, 7],
        [8],
    ]


@given(tokens=st.integers(2, 300), length=st.integers(2, 40), data=st.data())
def test_strided_scores_every_token_after_the_first_exactly_once(tokens, length, data):
    stride = data.draw(st.integers(1, length - 1), label="stride")
    found = windows(tokens, f"hf-strided-{length}-{stride}")
    assert scored_positions(found) == list(range(1, tokens))


@given(tokens=st.integers(2, 300), length=st.integers(2, 40), data=st.data())
def test_strided_is_the_loop_of_the_guide(tokens, length, data):
    """Each window's span and its new tokens; the guide's shift leaves out a token that nothing stands before."""
    stride = data.draw(st.integers(1, length), label="stride")
    found = windows(tokens, f"hf-strided-{length}-{stride}")
    spans = [
        (int(w.tokens[0]) - 100, int(w.tokens[-1]) - 99, w.scored)
        for w in sorted(found.drawn, key=lambda window: window.index)
    ]
    guide = [(b, e, min(new, e - b - 1)) for b, e, new in by_the_guide(tokens, length, stride)]
    assert spans == [span for span in guide if span[2] > 0]
    assert found.identity["windows"] == len(spans)


@pytest.mark.parametrize("tokens", [63, 64, 65, 66, 128, 129, 130])
def test_without_overlap_the_first_token_of_each_window_is_context(tokens):
    found = windows(tokens, "hf-strided-64-64")
    assert scored_positions(found) == [position for position in range(tokens) if position % 64 != 0]


@given(tokens=st.integers(2, 300), length=st.integers(2, 40), data=st.data())
def test_every_window_predicts_something_from_something(tokens, length, data):
    stride = data.draw(st.integers(1, length), label="stride")
    for window in windows(tokens, f"hf-strided-{length}-{stride}").drawn:
        assert 1 <= window.scored_from < len(window.tokens) <= length
        assert window.scored == len(window.tokens) - window.scored_from


def test_a_text_shorter_than_one_strided_window_is_one_window():
    (only,) = windows(5, "hf-strided-64-32").drawn
    assert (len(only.tokens), only.scored_from) == (5, 1)


# the order


def test_the_order_is_the_one_that_baselines_were_recorded_in():
    assert [window.index for window in windows(8 * 4, "gptq-4").drawn] == DRAWN_8


def test_a_longer_text_keeps_the_order_of_the_windows_it_had():
    longer = [window.index for window in windows(40 * 4, "gptq-4").drawn]
    assert [index for index in longer if index < 8] == DRAWN_8


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_another_process_draws_the_same(seed):
    code = (
        "import json, numpy as np\n"
        "from pytest_quant.corpora.protocols import cut, parse\n"
        "found = cut(np.arange(100, 740, dtype=np.int64), parse('hf-strided-32-16'),"
        " corpus={'name': 'some.txt', 'sha256': 'ab12'}, max_windows=20)\n"
        "print(json.dumps([[w.index for w in found.drawn], found.identity]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    here = windows(640, "hf-strided-32-16", max_windows=20)
    assert json.loads(done.stdout) == [[window.index for window in here.drawn], here.identity]


def test_the_order_is_random():
    """Neither the text's order nor near it: windows from the first and the second half mix from the start."""
    drawn = [window.index for window in windows(200 * 4, "gptq-4").drawn]
    assert sorted(drawn) == list(range(200))
    assert 35 <= sum(index < 100 for index in drawn[:100]) <= 65
    assert abs(float(np.corrcoef(drawn, range(200))[0, 1])) < 0.25


@given(count=st.integers(1, 60))
def test_a_subset_is_a_prefix_of_the_drawn_order(count):
    full, subset = windows(50 * 4, "gptq-4"), windows(50 * 4, "gptq-4", max_windows=count)
    assert [w.index for w in subset.drawn] == [w.index for w in full.drawn][:count]
    assert len(subset.drawn) == min(count, 50)
    assert (subset.identity == full.identity) is (count >= 50)


@pytest.mark.parametrize("count", [0, -1])
def test_a_subset_of_nothing_is_refused(count):
    """No windows would be no measurement, and minus one would quietly be all but the last."""
    with pytest.raises((UsageError, ValueError)):
        windows(50 * 4, "gptq-4", max_windows=count)


# identity


def test_identity_in_full():
    tokens = np.array([1, 2, 3, 4, 5], dtype=np.int64)
    found = cut(tokens, parse("gptq-2"), corpus=CORPUS)
    # sha256 of five little-endian 64-bit integers, computed with printf and sha256sum
    assert found.identity == {
        "name": "gptq-2",
        "corpus": {"name": "some.txt", "sha256": "ab12"},
        "tokens_sha256": "ea0d7246ca8346f6137619c0aaf7410a",
        "window": 2,
        "stride": 2,
        "bos": "as the tokenizer adds it, once at the start of the stream",
        "tail": "dropped",
        "scored": "all but the first token",
        "logits_dtype": "float32",
        "windows": 2,
    }


def test_the_same_is_the_same():
    assert windows(640, "gptq-32", max_windows=5).identity == windows(640, "gptq-32", max_windows=5).identity


def _identities() -> dict[str, dict]:
    base = stream(640)
    first, last = base.copy(), base.copy()
    first[0] += 1
    last[-1] += 1
    swapped = base.copy()
    swapped[[10, 11]] = swapped[[11, 10]]
    cuts = {
        "base": (base, "gptq-32", CORPUS, None),
        "first token": (first, "gptq-32", CORPUS, None),
        "last token": (last, "gptq-32", CORPUS, None),
        "order of tokens": (swapped, "gptq-32", CORPUS, None),
        "one token more": (np.append(base, 7), "gptq-32", CORPUS, None),
        "a byte of the corpus": (base, "gptq-32", {**CORPUS, "sha256": "ab13"}, None),
        "length": (base, "gptq-64", CORPUS, None),
        "kind": (base, "hf-strided-32-32", CORPUS, None),
        "stride": (base, "hf-strided-32-16", CORPUS, None),
        "subset": (base, "gptq-32", CORPUS, 5),
        "another subset": (base, "gptq-32", CORPUS, 6),
    }
    return {
        what: dict(cut(s, parse(name), corpus=corpus, max_windows=n).identity)
        for what, (s, name, corpus, n) in cuts.items()
    }


def test_whatever_changes_the_question_changes_the_identity():
    identities = _identities()
    assert len({json.dumps(identity, sort_keys=True) for identity in identities.values()}) == len(identities)


@pytest.mark.parametrize("what", list(_identities()))
def test_identity_survives_json(what):
    identity = _identities()[what]
    assert json.loads(json.dumps(identity, allow_nan=False)) == identity


def test_a_subset_says_its_size_and_its_seed():
    found = windows(640, "gptq-32", max_windows=5)
    assert found.identity["subset"] == {"windows": 5, "seed": 0}
    assert found.identity["windows"] == 20
    assert "subset" not in windows(640, "gptq-32").identity


def test_the_identity_is_not_the_callers_mapping():
    corpus = dict(CORPUS)
    found = cut(stream(64), parse("gptq-32"), corpus=corpus)
    corpus["sha256"] = "changed"
    assert found.identity["corpus"] == CORPUS


@pytest.mark.parametrize("tokens, name", [(0, "gptq-4"), (3, "gptq-4"), (0, "hf-strided-4-2"), (1, "hf-strided-4-2")])
def test_too_short_a_text_says_what_to_do(tokens, name):
    with pytest.raises(UsageError) as caught:
        windows(tokens, name)
    message = str(caught.value)
    assert "'some.txt'" in message
    assert f"{tokens} tokens" in message
    assert name in message
    assert "use a longer text or a shorter window" in message
