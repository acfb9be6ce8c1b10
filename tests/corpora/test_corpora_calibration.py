"""Calibration sets: full windows, seeded, in the proportion that was asked for, and known by their hash."""

from __future__ import annotations

import json

import numpy as np
import pytest
from corpora_encoder import ByteEncoder

from pytest_quant.corpora.calibration import Mix, draw, parse
from pytest_quant.errors import UsageError


@pytest.fixture
def corpora(tmp_path):
    """A generic text of many documents in small letters, a domain text in capitals."""
    generic, domain = tmp_path / "generic.jsonl", tmp_path / "domain.txt"
    generic.write_text("\n".join(json.dumps({"text": f"document {n} " + "abc " * 10}) for n in range(60)))
    domain.write_text("DOMAIN WORDS ONLY " * 80)
    return str(generic), str(domain)


def draw_mix(text, **more):
    return draw(parse(text), ByteEncoder(), **{"samples": 8, "length": 32, **more})


def decoded(window):
    return bytes(int(token) for token in window).decode("latin-1")


@pytest.mark.parametrize(
    "text, parts",
    [
        ("python-docs", [("python-docs", 1)]),
        ("0.5*a.jsonl,0.5*b.txt", [("a.jsonl", 0.5), ("b.txt", 0.5)]),
        (" .25 * a.jsonl , 0.75*b.txt", [("a.jsonl", 0.25), ("b.txt", 0.75)]),
        ("1*a.txt", [("a.txt", 1)]),
    ],
)
def test_a_mix_is_read(text, parts):
    assert [(name, float(share)) for name, share in parse(text).parts] == parts


def test_a_mix_reads_its_own_words():
    for text in ("python-docs", "0.3*a.jsonl,0.7*b.txt"):
        assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "names no corpus"),
        ("a.txt,b.txt", "each corpus needs a share"),
        ("0.5*a.txt,b.txt", "each corpus needs a share"),
        ("0.5*a.txt,0.6*b.txt", "add up to 1"),
        ("0*a.txt,1*b.txt", "above 0"),
        ("0.5*a.txt,0.5*a.txt", "twice"),
        ("0.5*a.txt", "add up to 1"),
    ],
)
def test_a_mix_that_makes_no_sense_says_so(text, said):
    with pytest.raises(UsageError, match=said):
        parse(text)


def test_windows_are_full_and_of_one_length(corpora):
    drawn = draw_mix(corpora[0])
    assert drawn.windows.shape == (8, 32)
    assert drawn.windows.dtype == np.int64
    assert all("abc" in decoded(window) for window in drawn.windows)


def test_documents_stand_one_behind_the_other_with_a_sign_between(corpora):
    windows = draw_mix(corpora[0], samples=20).windows
    assert (windows == ByteEncoder().prefix).any()


def test_the_proportion_is_kept_and_the_corpora_are_shuffled(corpora):
    drawn = draw_mix(f"0.75*{corpora[0]},0.25*{corpora[1]}", samples=16)
    capitals = ["DOMAIN" in decoded(window) or "WORDS" in decoded(window) for window in drawn.windows]
    assert sum(capitals) == 4
    assert capitals != sorted(capitals)
    assert [(part["share"], part["windows"]) for part in drawn.identity["corpora"]] == [(0.75, 12), (0.25, 4)]


@pytest.mark.parametrize("samples, expected", [(3, [2, 1]), (5, [3, 2]), (8, [5, 3])])
def test_what_does_not_divide_goes_to_the_largest_remainder(corpora, samples, expected):
    drawn = draw_mix(f"0.6*{corpora[0]},0.4*{corpora[1]}", samples=samples)
    assert [part["windows"] for part in drawn.identity["corpora"]] == expected


def test_the_seed_decides_and_is_in_the_identity(corpora):
    first, again, other = draw_mix(corpora[0]), draw_mix(corpora[0]), draw_mix(corpora[0], seed=1)
    assert (first.windows == again.windows).all()
    assert first.identity == again.identity
    assert (first.windows != other.windows).any()
    assert first.identity["sha256"] != other.identity["sha256"]
    assert (first.identity["seed"], other.identity["seed"]) == (0, 1)


def test_one_byte_of_a_corpus_changes_the_identity(corpora, tmp_path):
    before = draw_mix(corpora[1]).identity
    (tmp_path / "domain.txt").write_text("DOMAIN WORDS ONLY " * 79 + "DOMAIN WORDS ONLX ")
    after = draw_mix(corpora[1]).identity
    assert before["corpora"][0]["sha256"] != after["corpora"][0]["sha256"]


def test_one_long_text_gives_windows_from_everywhere(tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("".join(f"{n:04d}" for n in range(2000)))
    starts = sorted(int(decoded(window).strip("\x00")[4:8]) for window in draw_mix(str(text), samples=10).windows)
    assert starts[0] < 700
    assert starts[-1] > 1300


def test_a_corpus_that_is_too_short_says_what_it_has(corpora):
    with pytest.raises(UsageError, match=r"has 45 windows of 32 tokens, 100 are asked for"):
        draw_mix(corpora[1], samples=100)


def test_a_share_of_no_sample_is_refused(corpora):
    with pytest.raises(UsageError, match=r"0\.01 of 8 samples is no sample of .*domain\.txt"):
        draw_mix(f"0.99*{corpora[0]},0.01*{corpora[1]}")


def test_conversations_need_the_chat_template(tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "hello " * 100}]}) + "\n")
    with pytest.raises(UsageError, match="chat template"):
        draw_mix(str(file))
    drawn = draw_mix(str(file), samples=2, chat_template=True)
    assert drawn.identity["chat_template"] is True
    assert Mix((("a", parse("a").parts[0][1]),)) == parse("a")
