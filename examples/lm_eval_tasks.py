"""The tasks that quantized models are usually judged by, as gates: five of lm-eval's, five examples each, for int8 and
nf4, against the unquantized model on the same items; and the perplexity that lm-eval gives WikiText-2.

    pip install 'pytest-quant[lm-eval,bitsandbytes,corpora]'
    pytest --quant-baseline examples/lm_eval_tasks.py -k task
    pytest --quant-baseline examples/lm_eval_tasks.py -k wikitext \\
        -o quant_protocol=lm-eval-word -o quant_corpus=wikitext2 -o quant_max_windows=

The first run fetches the documents from the Hugging Face hub; later ones read them from the cache of ``datasets``. Name
a model with ``--quant-model`` and its reference with ``--quant-reference=fp16``.

Without ``--quant-baseline`` each gate stops as soon as its limits are decided. How soon that is depends on how many
items only one of the models has right, not on the drop alone. In simulation (medians over random orders, of MMLU's
14,042 items, ``max_drop=0.02``, the usual confidence shared by two limits) a format that has the same items right as
its reference takes 410; one that loses 2.5 % of items and gains as many, 1,671; 5 % and as many, 3,008; one that loses
15 % and gains 5 %, 410. The first run with ``--quant-baseline`` takes all items, for it records each one's score.
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.quant(formats=["int8", "nf4"])


@pytest.mark.task_accuracy(task="winogrande", num_fewshot=5, max_drop=0.02, min_accuracy=0.55)
def test_task_winogrande():
    """Which of two nouns a pronoun stands for; chance is 0.5."""


@pytest.mark.task_accuracy(task="hellaswag", num_fewshot=5, metric="acc_norm", max_drop=0.02, min_accuracy=0.35)
def test_task_hellaswag():
    """How a scene goes on; chance is 0.25."""


@pytest.mark.task_accuracy(task="arc_challenge", num_fewshot=5, metric="acc_norm", max_drop=0.03, min_accuracy=0.28)
def test_task_arc_challenge():
    """Questions of science that word counts do not answer; chance is 0.25."""


@pytest.mark.task_accuracy(task="arc_easy", num_fewshot=5, max_drop=0.02, min_recovery=0.97, min_accuracy=0.45)
def test_task_arc_easy():
    """Questions of science at school; chance is 0.25."""


@pytest.mark.task_accuracy(task="mmlu", num_fewshot=5, max_drop=0.02, min_accuracy=0.26)
def test_task_mmlu():
    """Exams in 57 subjects, each item counting the same; chance is 0.25."""


@pytest.mark.perplexity_delta(max_ratio=1.05)
def test_wikitext():
    """By word over whole documents, as lm-eval's ``wikitext``, where the protocol is ``lm-eval-word``."""
