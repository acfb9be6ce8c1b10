"""Numbers of the real model against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_quant.corpora import protocols, texts
from pytest_quant.corpora.corpus import Corpus
from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.tokens import Tokens
from pytest_quant.formats import registry
from pytest_quant.formats.registry import backend
from pytest_quant.hardware import detect
from pytest_quant.metrics import divergence, pairing
from pytest_quant.metrics.evidence import Evidence
from pytest_quant.metrics.perplexity import perplexity_delta
from pytest_quant.stats.paired import weighted_mean

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def load(smollm2):
    held = {}

    def loaded(name: str) -> engine.TransformersModel:
        if name not in held:
            format = registry.get(name)
            held[name] = engine.load(ModelSource(str(smollm2)), format, backend(format), "float32", detect())
        return held[name]

    return loaded


@pytest.fixture(scope="module")
def tokens(load):
    return Tokens(load("fp32").tokenizer)


@pytest.fixture(scope="module")
def stream(tokens):
    return tokens.stream(texts.load("python-docs").text)


def perplexity(model, windows) -> float:
    nll, weights = [], []
    for window in windows.drawn:
        [found] = pairing.score_reference(model, [window], 1)
        nll.append(float(found.nll.sum(dtype=float)) / window.weight)
        weights.append(window.weight)
    return math.exp(weighted_mean(nll, weights))


def beside(format: str, model, reference, windows) -> Evidence:
    scores = [pairing.score_beside(model, reference, [window], 64)[0][0] for window in windows.drawn]
    return Evidence(format, "fp32", scores, len(windows.drawn))


@pytest.mark.parametrize("name", ["gptq-256", "hf-strided-256-96"])
def test_perplexity_equals_a_plain_loop_over_the_model(load, tokens, name):
    import torch

    model = load("fp32")
    text = texts.load("python-docs").text[:4000]
    windows = protocols.draw(Corpus("part", (text,)), protocols.parse(name), tokens)
    measured = perplexity(model, windows)

    part = torch.tensor(tokens.stream(text))
    total, count = 0.0, 0
    length, stride = (256, 256) if name.startswith("gptq") else (256, 96)
    scored_to = 1
    with torch.inference_mode():
        for begin in range(0, len(part), stride):
            end = min(begin + length, len(part))
            if name.startswith("gptq") and end - begin < length:
                break
            first = begin + 1 if name.startswith("gptq") else max(scored_to, begin + 1)
            labels = part[begin:end].clone()
            labels[: first - begin] = -100
            loss = model.model(part[begin:end][None], labels=labels[None]).loss
            total += float(loss) * (end - first)
            count += end - first
            scored_to = end
            if end == len(part):
                break
    assert measured == pytest.approx(math.exp(total / count), rel=1e-5)


def test_llamacpp_512_gives_what_llama_cpp_gives(load, tokens, stream):
    """``llama-perplexity -c 512 --chunks 16 -fa off -ctk f32 -ctv f32`` on the same weights in an F32 GGUF, python-docs
    of CPython 3.11 (llama.cpp 0c1e57098), prints 17.7379 after the first chunk and 12.9968 after the fourth."""
    if len(stream) != 113108:
        pytest.skip("the topics of another Python")
    windows = protocols.draw(texts.load("python-docs"), protocols.parse("llamacpp-512"), tokens)
    first = sorted(windows.drawn, key=lambda window: window.index)[:4]
    nll = [float(pairing.score_reference(load("fp32"), [window], 1)[0].nll.mean(dtype=float)) for window in first]
    assert [window.scored for window in first] == [255] * 4
    assert math.exp(nll[0]) == pytest.approx(17.7379, abs=1e-4)
    assert math.exp(np.mean(nll)) == pytest.approx(12.9968, abs=1e-4)


def test_divergence_equals_a_computation_on_whole_logits_in_double_precision(load, tokens):
    import torch

    text = texts.load("python-docs").text[10_000:16_000]
    windows = protocols.draw(Corpus("part", (text,)), protocols.parse("gptq-256"), tokens)
    evidence = beside("nf4", load("nf4"), load("fp32"), windows)
    divergences, agreements, changes = [], [], []
    with torch.inference_mode():
        for window in windows.drawn:
            inputs = torch.tensor(window.pieces[0].tokens)
            shown = inputs[None, :-1]  # as many as are scored: 4-bit kernels of some CPUs compute in bf16
            p, q = (torch.log_softmax(load(name).model(shown).logits[0].double(), -1) for name in ("fp32", "nf4"))
            divergences.append((p.exp() * (p - q)).sum(-1).numpy())
            agreements.append((p.argmax(-1) == q.argmax(-1)).numpy())
            label = inputs[1:, None]
            changes.append((q.gather(1, label).exp() - p.gather(1, label).exp())[:, 0].numpy())
    expected = np.concatenate(divergences)
    quantities, figures = divergence.kl_divergence(evidence, 0.01)
    assert quantities["mean"].value == pytest.approx(expected.mean(), rel=1e-4)
    for name, level in (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)):
        assert quantities[name].value == pytest.approx(np.quantile(expected, level), rel=1e-3), name
    assert figures["kl_max"] == pytest.approx(expected.max(), rel=1e-3)
    assert 0.0 < quantities["bound"].value < quantities["mean"].value
    share, _ = divergence.token_agreement(evidence, 0.01)
    assert share["share"].value == pytest.approx(np.concatenate(agreements).mean(), abs=1e-3)
    shifts = divergence.delta_p(evidence, 0.01)
    assert shifts["delta_p_mean"].value == pytest.approx(np.concatenate(changes).mean(), abs=1e-5)
    assert shifts["delta_p_rms"].value == pytest.approx(np.sqrt((np.concatenate(changes) ** 2).mean()), rel=1e-3)
    delta, _ = perplexity_delta(evidence, 0.01)
    assert delta["ln_ratio"].value == pytest.approx(np.mean(evidence.nll) - np.mean(evidence.reference_nll))


def test_lm_eval_word_gives_what_lm_eval_gives(load, smollm2, tokens):
    """The same model object scored by lm-eval's own loop over the same documents."""
    models = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    documents = tuple(text for text in texts.python_docs() if len(text) < 900)[:4]
    windows = protocols.draw(Corpus("part", documents), protocols.parse("lm-eval-word-128"), tokens)
    loaded = load("fp32")
    theirs = models.HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, max_length=128, batch_size=1)
    requests = [Instance("loglikelihood_rolling", {}, (document,), i) for i, document in enumerate(documents)]
    total = sum(theirs.loglikelihood_rolling(requests, disable_tqdm=True))
    words = sum(len(document.split()) for document in documents)
    assert sum(window.weight for window in windows.drawn) == pytest.approx(words, abs=2 * len(documents))
    ours = perplexity(loaded, windows)
    expected = math.exp(-total / sum(window.weight for window in windows.drawn))
    assert ours == pytest.approx(expected, rel=1e-4), "its log_softmax in FP32 is off by 1e-5 nats a token"


@pytest.mark.parametrize(
    "name, total",
    [("fp32", 538_060_288), ("int8", 220_177_408), ("nf4", 168_385_528), ("fp4", 168_385_528)],
)
def test_true_bytes(load, name, total):
    proof = load(name).proof
    assert proof.weight_bytes == total
    assert sum(proof.bytes_by_dtype.values()) == total
    assert proof.quantized_weight_share == 1.0


def test_scoring_again_gives_the_same_bits(load, stream):
    for name in ("fp32", "int8", "nf4"):
        window = stream[None, :256]
        assert np.array_equal(load(name).token_nll(window), load(name).token_nll(window)), name


def test_formats_are_as_far_from_the_reference_as_they_are_known_to_be(load, tokens):
    """The order of the formats on any text: int8 is close, 4 bits are farther, fp4 farther than nf4."""
    windows = protocols.draw(texts.load("python-docs"), protocols.parse("gptq-256"), tokens, max_windows=6)
    ppl = {name: perplexity(load(name), windows) for name in ("fp32", "int8", "nf4", "fp4")}
    assert ppl["fp32"] < ppl["int8"] < ppl["nf4"] < ppl["fp4"]
    assert ppl["int8"] / ppl["fp32"] < 1.05


def test_the_kv_cache_takes_what_its_shape_says(load, stream):
    config = load("fp32").model.config
    prompt = stream[None, :100]
    predicted = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 100 * 4
    assert load("fp32").kv_cache_bytes(prompt) == predicted


def test_generating(load):
    assert "Paris" in load("fp32").generate("The capital of France is")
    assert "Paris" in load("int8").generate("The capital of France is")
