"""Tokens of real tokenizers."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_quant.corpora import texts
from pytest_quant.corpora.corpus import Conversation, Corpus
from pytest_quant.corpora.protocols import draw, parse, stream
from pytest_quant.engines.quiet import quiet
from pytest_quant.engines.tokens import Tokens
from pytest_quant.errors import NotMeasured, UsageError

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return Tokens(tokenizer)


def with_bos(byte_tokenizer, *, template: str = "<bos> $A", bos: str | None = "<bos>", eos: str | None = None):
    """The tokenizer of bytes, which puts ``template`` around a text."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer.from_str(byte_tokenizer.backend_tokenizer.to_str())
    made.add_special_tokens([AddedToken("<bos>", special=True), AddedToken("<eos>", special=True)])
    special = [(token, made.token_to_id(token)) for token in ("<bos>", "<eos>")]
    made.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos)


# streams


def test_a_stream_is_what_the_tokenizer_gives(tokens, tokenizer):
    text = texts.load("python-docs").documents[3]
    assert tokens.stream(text).dtype == np.int64
    assert tokens.stream(text).tolist() == tokens.bare(text).tolist() == tokenizer(text)["input_ids"]


def test_special_tokens(byte_tokenizer):
    made = Tokens(with_bos(byte_tokenizer))
    assert made.bare("ab").tolist() == byte_tokenizer("ab")["input_ids"]
    assert made.stream("ab").tolist() == [256, *made.bare("ab").tolist()]


def test_a_text_longer_than_the_model_takes_is_whole_and_quiet(byte_tokenizer, caplog, capsys):
    made = with_bos(byte_tokenizer)
    made.model_max_length = 4
    assert len(Tokens(made).stream("a" * 100)) == 101
    assert "longer than" not in caplog.text + "".join(capsys.readouterr())


@pytest.mark.parametrize("encode", ["stream", "bare"])
def test_no_tokens(tokens, encode):
    with pytest.raises(NotMeasured, match="no tokens"):
        getattr(tokens, encode)("")


# BOS and prefix


def test_the_real_tokenizer_has_a_bos_and_adds_none(tokens, tokenizer):
    assert tokenizer.bos_token_id == 1
    assert tokens.bos is None
    assert (tokens.prefix, tokens.prefix_text) == (1, "<|im_start|>")


def test_a_bos_is_one_where_the_tokenizer_adds_it(byte_tokenizer):
    assert Tokens(with_bos(byte_tokenizer)).bos == 256
    assert Tokens(with_bos(byte_tokenizer, template="<bos> $A <eos>")).bos == 256
    assert Tokens(with_bos(byte_tokenizer, template="$A <eos>")).bos is None
    assert Tokens(with_bos(byte_tokenizer, template="$A")).bos is None
    assert Tokens(with_bos(byte_tokenizer, bos=None)).bos is None


def test_a_text_may_begin_with_what_is_also_the_bos(byte_tokenizer):
    assert Tokens(with_bos(byte_tokenizer, template="$A", bos="a")).bos is None


def test_the_prefix_is_bos_else_eos(byte_tokenizer):
    assert Tokens(with_bos(byte_tokenizer, eos="<eos>")).prefix == 256
    found = Tokens(with_bos(byte_tokenizer, bos=None, eos="<eos>"))
    assert (found.prefix, found.prefix_text) == (257, "<eos>")


def test_the_prefix_may_be_token_0(byte_tokenizer):
    first = byte_tokenizer.convert_ids_to_tokens(0)
    assert Tokens(byte_tokenizer).prefix == byte_tokenizer.eos_token_id == 0
    assert Tokens(with_bos(byte_tokenizer, bos=first, eos="<eos>")).prefix == 0


def test_no_prefix(byte_tokenizer):
    with pytest.raises(UsageError, match="neither a BOS nor an EOS token"):
        _ = Tokens(with_bos(byte_tokenizer, bos=None)).prefix


# chats


def test_the_template_of_the_real_tokenizer(tokens):
    assert tokens.chat([{"role": "system", "content": "Hi"}, *HELLO]) == (
        "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    )


def test_template_marks_are_single_tokens(tokens):
    assert tokens.bare(tokens.chat(HELLO)).tolist().count(1) == 2


def test_no_template(byte_tokenizer):
    with pytest.raises(UsageError, match="has no chat template; leave out --quant-chat-template"):
        Tokens(byte_tokenizer).chat(HELLO)


def test_a_template_that_refuses(byte_tokenizer):
    made = with_bos(byte_tokenizer)
    made.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UsageError, match="refuses messages of user: roles must alternate"):
        Tokens(made).chat(HELLO)


def test_a_stream_of_conversations(tokens):
    chats = Corpus("chat.jsonl", (Conversation((("user", "One"),)), Conversation((("system", "S"), ("user", "Two")))))
    joined = "".join(tokens.chat(chat.for_template()) for chat in chats.documents)
    assert stream(chats, tokens, chat_template=True).tolist() == tokens.bare(joined).tolist()


# protocols


@pytest.mark.parametrize("name", ["gptq-512", "hf-strided-512-256", "llamacpp-512"])
def test_windows_of_the_real_tokenizer(tokens, name):
    corpus = Corpus("part", texts.load("python-docs").documents[:12])
    whole = tokens.stream(corpus.text)
    found = draw(corpus, parse(name), tokens)
    for window in found.drawn:
        (piece,) = window.pieces
        start = window.index * (parse(name).stride or 0)
        assert np.array_equal(piece.tokens, whole[start : start + 512])
    assert found.identity["windows"] == len(found.drawn) > 3


def test_llamacpp_with_a_bos(byte_tokenizer):
    made = Tokens(with_bos(byte_tokenizer))
    for window in draw(Corpus("part", ("abcdefgh" * 3,)), parse("llamacpp-8"), made).drawn:
        assert window.pieces[0].tokens[0] == 256
        assert (window.pieces[0].tokens[1:] != 256).all()


def test_documents_of_the_real_tokenizer(tokens):
    corpus = Corpus("part", texts.load("python-docs").documents[:6])
    found = draw(corpus, parse("lm-eval-word-64"), tokens)
    for window in found.drawn:
        scored = np.concatenate([piece.tokens[piece.scored_from :] for piece in window.pieces])
        assert np.array_equal(scored, tokens.stream(corpus.documents[window.index]))
        assert window.pieces[0].tokens[0] == tokens.prefix


# quiet


@pytest.mark.parametrize("bars", [True, False])
def test_quiet_is_restored(bars):
    from transformers.utils import logging

    before, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        logging.set_verbosity_info()
        with quiet():
            assert not logging.is_progress_bar_enabled()
            assert logging.get_verbosity() == logging.ERROR
        with pytest.raises(ZeroDivisionError), quiet():
            _ = 1 / 0
        assert logging.is_progress_bar_enabled() is bars
        assert logging.get_verbosity() == logging.INFO
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
        logging.set_verbosity(level)
