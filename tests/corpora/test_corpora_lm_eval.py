"""Rolling windows against lm-eval's own."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pytest_quant.corpora import wikitext
from pytest_quant.corpora.streams import words
from pytest_quant.corpora.windows import rolling

utils = pytest.importorskip("lm_eval.utils")
PAGE = ' \n = A Title = \n \n It cost 1 @,@ 500 ( or so ) ; " he said " . \n = = Part = = \n It \'s 5 @.@ 5 °  C \n'


def by_lm_eval(tokens: list[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    pairs = utils.get_rolling_token_windows(tokens, prefix, length, 1)
    return [utils.make_disjoint_window(pair) for pair in pairs]


@pytest.mark.parametrize("seed", range(200))
def test_pieces_are_lm_evals_windows(seed):
    dice = random.Random(seed)
    length = dice.randint(2, 64)
    tokens = [dice.randrange(1000) for _ in range(dice.choice([1, length, length + 1, dice.randint(1, 400)]))]
    found = rolling(np.array(tokens, dtype=np.int64), 7, length)
    ours = [(p.tokens[: p.scored_from].tolist(), p.tokens[p.scored_from :].tolist()) for p in found]
    assert ours == by_lm_eval(tokens, 7, length)


def test_the_page_is_lm_evals_and_so_are_its_words(tmp_path):
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    raw = tmp_path / "wiki.test.raw"
    raw.write_text(PAGE, encoding="utf-8")
    pages = wikitext.by_pages(str(raw))
    (page,) = pages.documents
    assert pages.detokenized == (wikitext_detokenizer({"page": page}),)
    assert pages.detokenized[0] != page
    assert process_results({"page": page}, (-1.0,))["word_perplexity"] == (-1.0, words(page))
