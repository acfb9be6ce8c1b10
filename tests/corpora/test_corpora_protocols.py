"""Which windows a protocol cuts, in which order they are drawn, and what decides their identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora_encoder import FakeEncoder, positions
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.corpora.corpus import Conversation, Corpus
from pytest_quant.corpora.protocols import Protocol, Windows, draw, parse, stream
from pytest_quant.errors import UsageError

DRAWN_8 = [7, 1, 3, 5, 2, 6, 0, 4]
"""Eight windows by sha256 of "pytest-quant:0:<index>", as sha256sum says; committed baselines depend on it."""


def corpus(tokens: int) -> Corpus:
    """A text of that many tokens of the fake encoder, which are 100, 101, ..."""
    return Corpus("some.txt", (positions(tokens),))


def windows(tokens: int, name: str, **more) -> Windows:
    return draw(corpus(tokens), parse(name), FakeEncoder(), **more)


def by_text(found: Windows) -> list:
    """The only piece of each window, in the text's order."""
    assert all(len(window.pieces) == 1 for window in found.drawn)
    return [window.pieces[0] for window in sorted(found.drawn, key=lambda window: window.index)]


def scored_positions(found: Windows) -> list[int]:
    """Positions in the stream that are predicted, in the stream's order."""
    return sorted(int(token) - 100 for piece in by_text(found) for token in piece.tokens[piece.scored_from :])


# names


def test_names_of_protocols():
    assert parse("gptq-2048") == Protocol("gptq", 2048, 2048)
    assert parse("hf-strided-1024-512") == Protocol("hf-strided", 1024, 512)
    assert parse("hf-strided-2-1") == Protocol("hf-strided", 2, 1)
    assert parse("llamacpp-512") == Protocol("llamacpp", 512, 512)
    assert parse("llamacpp-4") == Protocol("llamacpp", 4, 4)
    assert parse("lm-eval-word-1024") == Protocol("lm-eval-word", 1024, 1024)
    assert parse("lm-eval-word") == Protocol("lm-eval-word", None, None)


NAMES = ["gptq-2", "hf-strided-64-64", "llamacpp-512", "lm-eval-word", "lm-eval-word-2048"]


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_says_its_name(name):
    assert parse(name).name == name
    assert parse(name).by_document is name.startswith("lm-eval")


def test_a_number_has_one_name():
    assert parse("gptq-0064").name == "gptq-64"
    assert parse("hf-strided-064-032").name == "hf-strided-64-32"


UNKNOWN = ["", "gptq", "gptq-", "gptq-x", "gptq--5", "gptq-1.5", "gptq-64 ", "gptq-64\n", "GPTQ-64", "gptq-64-32"]
UNKNOWN += ["a-gptq-64", "hf-strided-64", "hf-strided-64-", "hf-strided-64-32-16", "llamacpp", "llamacpp-512-256"]
UNKNOWN += ["lm-eval", "lm-eval-word-", "lm-eval-word-64-32", "lm-eval-byte"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_say_the_forms(name):
    with pytest.raises(UsageError) as caught:
        parse(name)
    assert repr(name) in str(caught.value)
    for form in ("gptq-L", "hf-strided-L-S", "llamacpp-L", "lm-eval-word-L"):
        assert form in str(caught.value)


IMPOSSIBLE = ["gptq-0", "gptq-1", "hf-strided-1-1", "hf-strided-64-0", "hf-strided-64-65", "llamacpp-1"]
IMPOSSIBLE += ["lm-eval-word-0", "lm-eval-word-1"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_windows_are_refused(name):
    with pytest.raises(UsageError, match="at least 2 tokens, and a stride of 1 to the window's length"):
        parse(name)


@pytest.mark.parametrize("name", ["llamacpp-2", "llamacpp-3", "llamacpp-511"])
def test_half_of_a_window_must_be_something(name):
    with pytest.raises(UsageError, match="even length of at least 4"):
        parse(name)


# gptq-L


def test_disjoint_windows_by_hand():
    found = windows(11, "gptq-4")
    assert [list(piece.tokens) for piece in by_text(found)] == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert [(piece.scored_from, piece.scored) for piece in by_text(found)] == [(1, 3), (1, 3)]
    assert sorted((window.index, window.scored, window.weight) for window in found.drawn) == [(0, 3, 3), (1, 3, 3)]
    assert found.unit == "token"


@given(tokens=st.integers(2, 400), length=st.integers(2, 50))
def test_gptq_scores_all_but_the_first_of_each_window_and_drops_the_tail(tokens, length):
    if tokens < length:
        with pytest.raises(UsageError):
            windows(tokens, f"gptq-{length}")
        return
    found = windows(tokens, f"gptq-{length}")
    kept = tokens - tokens % length
    assert scored_positions(found) == [position for position in range(kept) if position % length != 0]
    assert sorted(int(t) - 100 for piece in by_text(found) for t in piece.tokens) == list(range(kept))
    assert {len(piece.tokens) for piece in by_text(found)} == {length}
    assert {window.scored for window in found.drawn} == {window.weight for window in found.drawn} == {length - 1}
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
    found = by_text(windows(9, "hf-strided-4-2"))
    assert [[int(t) - 100 for t in piece.tokens] for piece in found] == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8],
    ]
    assert [[int(t) - 100 for t in piece.tokens[piece.scored_from :]] for piece in found] == [
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
    spans = [(int(p.tokens[0]) - 100, int(p.tokens[-1]) - 99, p.scored) for p in by_text(found)]
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
    for piece in by_text(windows(tokens, f"hf-strided-{length}-{stride}")):
        assert 1 <= piece.scored_from < len(piece.tokens) <= length
        assert piece.scored == len(piece.tokens) - piece.scored_from


def test_a_text_shorter_than_one_strided_window_is_one_window():
    (only,) = by_text(windows(5, "hf-strided-64-32"))
    assert (len(only.tokens), only.scored_from) == (5, 1)


# llamacpp-L


def by_llama_cpp(tokens: list[int], length: int, bos: int | None) -> list[tuple[list[int], int]]:
    """The loop of llama.cpp's perplexity.cpp: what is put in, and the first position that is predicted."""
    found = []
    for chunk in range(len(tokens) // length):
        part = tokens[chunk * length : (chunk + 1) * length]
        if bos is not None:
            part = [bos, *part[1:]]
        first = length // 2
        predicted = [j + 1 for j in range(first, first + length - 1 - first)]
        found.append((part, predicted[0]))
        assert predicted[-1] == length - 1
    return found


@given(tokens=st.integers(4, 400), half=st.integers(2, 25), bos=st.sampled_from([None, 1]))
def test_llamacpp_is_the_loop_of_llama_cpp(tokens, half, bos):
    length = 2 * half
    encoder = FakeEncoder(bos)
    whole = [int(token) for token in encoder.stream(positions(tokens))]
    if len(whole) < length:
        with pytest.raises(UsageError, match="not enough for one window"):
            draw(corpus(tokens), parse(f"llamacpp-{length}"), encoder)
        return
    found = draw(corpus(tokens), parse(f"llamacpp-{length}"), encoder)
    cut = [([int(token) for token in piece.tokens], piece.scored_from) for piece in by_text(found)]
    assert cut == by_llama_cpp(whole, length, bos)
    assert {window.weight for window in found.drawn} == {half - 1}
    assert found.unit == "token"


def test_llamacpp_by_hand():
    found = draw(corpus(11), parse("llamacpp-6"), FakeEncoder(1))
    assert [list(piece.tokens) for piece in by_text(found)] == [
        [1, 100, 101, 102, 103, 104],
        [1, 106, 107, 108, 109, 110],
    ]
    assert [list(piece.tokens[piece.scored_from :]) for piece in by_text(found)] == [[103, 104], [109, 110]]
    assert found.identity["bos"] == "1 in the place of the first token of each window"


def test_llamacpp_without_a_bos_leaves_the_text():
    found = windows(12, "llamacpp-6")
    assert [int(piece.tokens[0]) for piece in by_text(found)] == [100, 106]
    assert found.identity["bos"] == "as the tokenizer adds it, once at the start of the stream"


def test_llamacpp_leaves_the_stream_as_it_was():
    """BOS is written into copies: the hash and the next protocol see the text."""
    identities = [draw(corpus(24), parse(name), FakeEncoder(1)).identity for name in ("gptq-8", "llamacpp-8", "gptq-8")]
    assert len({identity["tokens_sha256"] for identity in identities}) == 1


# the order


def test_the_order_is_the_one_that_baselines_were_recorded_in():
    assert [window.index for window in windows(8 * 4, "gptq-4").drawn] == DRAWN_8


def test_a_longer_text_keeps_the_order_of_the_windows_it_had():
    longer = [window.index for window in windows(40 * 4, "gptq-4").drawn]
    assert [index for index in longer if index < 8] == DRAWN_8


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_another_process_draws_the_same(seed):
    code = (
        "import json\n"
        "from corpora_encoder import FakeEncoder, positions\n"
        "from pytest_quant.corpora.corpus import Corpus\n"
        "from pytest_quant.corpora.protocols import draw, parse\n"
        "text = Corpus('some.txt', (positions(640),))\n"
        "found = draw(text, parse('hf-strided-32-16'), FakeEncoder(), max_windows=20)\n"
        "print(json.dumps([[w.index for w in found.drawn], found.identity]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)},
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
    found = draw(Corpus("some.txt", ("1 2 3 4 5",)), parse("gptq-2"), FakeEncoder())
    # sha256 of the text, and of five little-endian 64-bit integers, computed with printf and sha256sum
    assert found.identity == {
        "name": "gptq-2",
        "corpus": {
            "name": "some.txt",
            "sha256": "2deb4db564eb7bf637bbcd3cf2d964639e63825caaa233dd8d759708b272dd55",
        },
        "tokens_sha256": "ea0d7246ca8346f6137619c0aaf7410a",
        "window": 2,
        "stride": 2,
        "bos": "as the tokenizer adds it, once at the start of the stream",
        "tail": "dropped",
        "scored": "all but the first token",
        "logits_dtype": "float32",
        "windows": 2,
    }


def test_identity_of_strided_windows_in_full():
    found = draw(Corpus("some.txt", ("1 2 3 4 5",)), parse("hf-strided-4-2"), FakeEncoder(), max_windows=1)
    assert found.identity == {
        "name": "hf-strided-4-2",
        "corpus": {
            "name": "some.txt",
            "sha256": "2deb4db564eb7bf637bbcd3cf2d964639e63825caaa233dd8d759708b272dd55",
        },
        "tokens_sha256": "ea0d7246ca8346f6137619c0aaf7410a",
        "window": 4,
        "stride": 2,
        "bos": "as the tokenizer adds it, once at the start of the stream",
        "tail": "kept",
        "scored": "what the window before did not score",
        "logits_dtype": "float32",
        "windows": 2,
        "subset": {"windows": 1, "seed": 0},
    }


def test_the_same_is_the_same():
    assert windows(640, "gptq-32", max_windows=5).identity == windows(640, "gptq-32", max_windows=5).identity


def _identities() -> dict[str, dict]:
    numbers = positions(640).split()
    base = " ".join(numbers)
    cuts = {
        "base": (base, "gptq-32", {}),
        "first token": (" ".join(["7", *numbers[1:]]), "gptq-32", {}),
        "last token": (" ".join([*numbers[:-1], "7"]), "gptq-32", {}),
        "order of tokens": (" ".join([*numbers[:10], numbers[11], numbers[10], *numbers[12:]]), "gptq-32", {}),
        "one token more": (base + " 7", "gptq-32", {}),
        "a byte that is no token": (base + " ", "gptq-32", {}),
        "length": (base, "gptq-64", {}),
        "kind": (base, "hf-strided-32-32", {}),
        "another kind": (base, "llamacpp-32", {}),
        "stride": (base, "hf-strided-32-16", {}),
        "subset": (base, "gptq-32", {"max_windows": 5}),
        "another subset": (base, "gptq-32", {"max_windows": 6}),
        "chat template": (base, "gptq-32", {"chat_template": True}),
        "documents": (base, "lm-eval-word-32", {}),
        "their length": (base, "lm-eval-word-64", {}),
    }
    return {
        what: dict(draw(Corpus("some.txt", (text,)), parse(name), FakeEncoder(), **more).identity)
        for what, (text, name, more) in cuts.items()
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


@pytest.mark.parametrize("tokens, name", [(1, "gptq-4"), (3, "gptq-4"), (1, "hf-strided-4-2"), (3, "llamacpp-4")])
def test_too_short_a_text_says_what_to_do(tokens, name):
    with pytest.raises(UsageError) as caught:
        windows(tokens, name)
    message = str(caught.value)
    assert "'some.txt'" in message
    assert f"{tokens} tokens" in message
    assert name in message
    assert "use a longer text or a shorter window" in message


# chats

CHAT = Corpus(
    "chat.jsonl",
    (
        Conversation((("system", "100"), ("user", "101"), ("assistant", "102 103"))),
        Conversation((("user", "104"),)),
    ),
)


def test_conversations_are_what_the_template_writes():
    assert list(stream(CHAT, FakeEncoder(1), chat_template=True)) == [6, 100, 9, 7, 101, 9, 8, 102, 103, 9, 7, 104, 9]


def test_texts_are_messages_of_a_user_and_blank_ones_are_none():
    texts = Corpus("rows", ("100 101", "", " \n", "102"))
    assert list(stream(texts, FakeEncoder(1), chat_template=True)) == [7, 100, 101, 9, 7, 102, 9]
    assert list(stream(texts, FakeEncoder(1))) == [1, 100, 101, 102]


def test_the_template_is_part_of_the_identity():
    identity = draw(CHAT, parse("gptq-4"), FakeEncoder(1), chat_template=True).identity
    assert identity["chat_template"] is True
    assert identity["bos"] == "as the chat template writes it"
    assert "chat_template" not in windows(16, "gptq-4").identity


@pytest.mark.parametrize("name", ["gptq-4", "hf-strided-4-2", "llamacpp-4", "lm-eval-word-4"])
def test_conversations_need_the_template(name):
    with pytest.raises(UsageError, match=r"'chat\.jsonl' holds conversations.*give --quant-chat-template"):
        draw(CHAT, parse(name), FakeEncoder())


def test_lm_eval_knows_no_template():
    with pytest.raises(UsageError, match="leave out --quant-chat-template"):
        draw(corpus(5), parse("lm-eval-word-4"), FakeEncoder(), chat_template=True)
