"""lm-eval-word: documents one by one, in lm-eval's rolling windows."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from corpora_encoder import FakeEncoder, positions
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.corpora.corpus import Corpus
from pytest_quant.corpora.protocols import Windows, draw, parse
from pytest_quant.corpora.streams import words
from pytest_quant.corpora.windows import rolling
from pytest_quant.errors import UsageError


def pieces(tokens: int, length: int) -> list[tuple[list[int], list[int]]]:
    """Context and predictions of each piece of a document of tokens 0, 1, ..., after prefix -1."""
    found = rolling(np.arange(tokens, dtype=np.int64), -1, length)
    return [(p.tokens[: p.scored_from].tolist(), p.tokens[p.scored_from :].tolist()) for p in found]


def drawn(
    documents: tuple[str, ...], name: str = "lm-eval-word-4", encoder: FakeEncoder | None = None, **more
) -> Windows:
    return draw(Corpus("some.jsonl", documents), parse(name), encoder or FakeEncoder(), **more)


def by_text(found: Windows) -> list:
    return sorted(found.drawn, key=lambda window: window.index)


# pieces


def test_pieces_by_hand():
    assert pieces(3, 4) == [([-1], [0, 1, 2])]
    assert pieces(4, 4) == [([-1], [0, 1, 2, 3])]
    assert pieces(5, 4) == [([-1], [0, 1, 2, 3]), ([0, 1, 2, 3], [4])]
    assert pieces(7, 4) == [([-1], [0, 1, 2, 3]), ([2, 3], [4, 5, 6])]
    assert pieces(9, 4) == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([4, 5, 6, 7], [8])]


@given(tokens=st.integers(1, 300), length=st.integers(2, 50))
def test_every_token_is_predicted_exactly_once_and_in_order(tokens, length):
    assert [token for _, predicted in pieces(tokens, length) for token in predicted] == list(range(tokens))


@given(tokens=st.integers(1, 300), length=st.integers(2, 50))
def test_pieces_are_contiguous_and_no_longer_than_the_model_takes(tokens, length):
    """The last token of a piece is only predicted, so the model sees one less."""
    for number, (context, predicted) in enumerate(pieces(tokens, length)):
        assert context
        assert predicted
        assert len(context) + len(predicted) - 1 <= length
        if number == 0:
            assert context == [-1]
        else:
            whole = context + predicted
            assert whole == list(range(whole[0], whole[0] + length + 1))


# documents


def test_each_document_is_a_window():
    found = drawn(("100 101 102 103 104 105", "200 201"))
    first, second = by_text(found)
    assert [(piece.tokens.tolist(), piece.scored_from) for piece in first.pieces] == [
        ([2, 100, 101, 102, 103], 1),
        ([101, 102, 103, 104, 105], 3),
    ]
    assert [(piece.tokens.tolist(), piece.scored_from) for piece in second.pieces] == [([2, 200, 201], 1)]
    assert [(window.index, window.scored, window.weight) for window in (first, second)] == [(0, 6, 6), (1, 2, 2)]
    assert found.unit == "word"


def test_a_tokenizers_own_bos_is_predicted_too():
    """lm-eval encodes with special tokens, and puts its prefix before them."""
    (only,) = drawn(("100 101",), encoder=FakeEncoder(1)).drawn
    assert [piece.tokens.tolist() for piece in only.pieces] == [[1, 1, 100, 101]]
    assert (only.scored, only.weight) == (3, 2)


def test_a_text_that_begins_with_the_prefix_gets_no_second_one():
    (only,) = drawn(("<s> 100 101",), encoder=FakeEncoder(1)).drawn
    assert [piece.tokens.tolist() for piece in only.pieces] == [[1, 1, 100, 101]]


def test_words_as_lm_eval_counts_them():
    assert words("one two") == 2
    assert words("one\n \ntwo") == 2
    assert words(" one two \n") == 4
    assert words("") == 1


def test_words_are_counted_before_detokenizing_and_tokens_after():
    pages = Corpus("wikitext2", (" 1 @,@ 2 \n",), detokenized=("12 13",))
    (only,) = draw(pages, parse("lm-eval-word-8"), FakeEncoder()).drawn
    assert only.pieces[0].tokens.tolist() == [2, 12, 13]
    assert only.weight == 5


def test_the_models_own_length_is_pinned():
    found, named = drawn(("100 101 102",), "lm-eval-word", max_length=4), drawn(("100 101 102",), "lm-eval-word-4")
    assert found.identity == named.identity
    assert found.identity["name"] == "lm-eval-word-4"
    assert found.identity["window"] == 4


def test_a_length_that_is_named_is_the_one():
    assert drawn(("100",), "lm-eval-word-4", max_length=2048).identity["window"] == 4


def test_a_model_of_no_length_needs_one_in_the_name():
    with pytest.raises(UsageError, match="write it into the protocol, as lm-eval-word-2048"):
        drawn(("100",), "lm-eval-word")


def test_a_document_of_no_tokens_is_named():
    with pytest.raises(UsageError, match=r"document 2 of the corpus 'some\.jsonl' has no tokens; leave it out"):
        drawn(("100", "", "101"))


def test_identity_in_full():
    identity = dict(drawn(("100 101", "102"), max_windows=1).identity)
    hashed = [2, 2, 2, 100, 101, 1, 1, 102]
    assert identity.pop("tokens_sha256") == hashlib.sha256(np.array(hashed, dtype="<i8").tobytes()).hexdigest()[:32]
    assert identity == {
        "name": "lm-eval-word-4",
        "corpus": {"name": "some.jsonl", "sha256": hashlib.sha256(b"100 101\n\n102").hexdigest()},
        "window": 4,
        "stride": 4,
        "bos": "2 before each document, and what the tokenizer adds",
        "tail": "kept, after as much context as there is room for",
        "scored": "every token of each document",
        "unit": "words",
        "logits_dtype": "float32",
        "windows": 2,
        "subset": {"windows": 1, "seed": 0},
    }


def test_where_documents_end_is_part_of_the_identity():
    """The same text, the same tokens one after the other."""
    one, other = drawn(("100 101", "102")).identity, drawn(("100", "101\n\n102")).identity
    assert drawn(("100 101\n\n102",)).identity["corpus"] == one["corpus"]
    assert one["tokens_sha256"] != other["tokens_sha256"]


def test_documents_are_drawn_in_the_order_of_windows():
    found = drawn(tuple(positions(3) for _ in range(8)), max_windows=3)
    assert [window.index for window in found.drawn] == [7, 1, 3]
