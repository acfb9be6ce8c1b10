"""Shapes from configs alone, held against real models of random weights and the caches that they really fill."""

from __future__ import annotations

import json

import pytest

from pytest_quant.engines.shape import read, shape_of
from pytest_quant.errors import UsageError
from pytest_quant.formats.storage import footprint
from pytest_quant.roofline.amounts import kv_bytes
from pytest_quant.roofline.shape import KVLayer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
}
MIXED = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
CONFIGS = {
    "llama": ("LlamaConfig", SMALL),
    "mistral": ("MistralConfig", {**SMALL, "sliding_window": 16}),
    "mistral-without-window": ("MistralConfig", {**SMALL, "sliding_window": None}),
    "gemma2": ("Gemma2Config", {**SMALL, "head_dim": 16, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", {**SMALL, "head_dim": 16, "sliding_window": 16, "layer_types": MIXED}),
    "gpt2": ("GPT2Config", {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4}),
    "qwen3": ("Qwen3Config", {**SMALL, "head_dim": 32}),
    "phi3": ("Phi3Config", {**SMALL, "pad_token_id": 0}),
    "mixtral": ("MixtralConfig", {**SMALL, "num_local_experts": 4}),
    "deepseek": ("DeepseekV3Config", {**SMALL, **LATENT}),
    "falcon-multi-query": (
        "FalconConfig",
        {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
}


def config(name: str):
    kind, arguments = CONFIGS[name]
    return getattr(transformers, kind)(**arguments)


@pytest.fixture(scope="module")
def built():
    held = {}

    def model(name: str):
        if name not in held:
            torch.manual_seed(0)
            held[name] = transformers.AutoModelForCausalLM.from_config(config(name)).float().eval()
        return held[name]

    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(built, name):
    shape = shape_of(config(name))
    assert shape.parameters == sum(parameter.numel() for parameter in built(name).parameters())
    assert sum(length * count for length, count in shape.rows) == shape.quantizable


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("batch", "context"), [(1, 5), (3, 15), (1, 16), (3, 17), (1, 40)])
def test_the_cache_takes_what_is_predicted(built, name, batch, context):
    """A prompt, then one token: what a long prompt leaves behind a window is gone with the next token."""
    from transformers import DynamicCache

    model, shape = built(name), shape_of(config(name))
    tokens = torch.ones((batch, context), dtype=torch.long)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(tokens[:, :-1], past_key_values=cache, use_cache=True)
        model(tokens[:, -1:], past_key_values=cache, use_cache=True)
    windows = sum(8 for layer in shape.kv if layer.window is not None)  # each notes its length in a tensor
    assert footprint(cache).total - windows == kv_bytes(shape, batch, context, 32)


def test_grouped_queries_keep_fewer_heads():
    assert shape_of(config("llama")).kv == (KVLayer(2 * 2 * 16, 64),) * 4
    assert shape_of(config("qwen3")).kv == (KVLayer(2 * 2 * 32, 4 * 32),) * 4
    assert shape_of(config("falcon-multi-query")).kv == (KVLayer(2 * 16, 64),) * 2


def test_windows_of_some_layers():
    assert [layer.window for layer in shape_of(config("gemma3")).kv] == [16, 16, 16, None]
    assert [layer.window for layer in shape_of(config("mistral")).kv] == [16] * 4
    assert [layer.window for layer in shape_of(config("mistral-without-window")).kv] == [None] * 4


def test_latents_are_kept_and_full_heads_attend():
    assert shape_of(config("deepseek")).kv == (KVLayer(16 + 8, 4 * (16 + 8 + 12) // 2),) * 4


def test_layers_that_share_a_cache_keep_nothing():
    arguments = {**SMALL, "head_dim": 16, "sliding_window": 16, "num_kv_shared_layers": 2}
    types = ["sliding_attention", "full_attention"] * 2
    shared = transformers.Gemma3nTextConfig(
        **arguments, layer_types=types, vocab_size_per_layer_input=256, activation_sparsity_pattern=None
    )
    shape = shape_of(shared)
    assert [layer.window for layer in shape.kv] == [16, None]
    assert shape.table >= 256 * 4 * 256, "per-layer embeddings are read by rows"


def test_layers_without_attention_keep_nothing_of_tokens():
    assert shape_of(transformers.MambaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2)).kv == ()
    linear = transformers.Qwen3NextConfig(**SMALL, head_dim=16, num_experts=4, num_experts_per_tok=2)
    assert shape_of(linear).kv == (KVLayer(2 * 2 * 16, 64),), "one layer of four attends"


def test_tables_and_heads():
    tied, untied = shape_of(config("gpt2")), shape_of(config("llama"))
    assert (tied.head, tied.table) == (256 * 64, 1024 * 64), "its positions are a table of rows"
    assert (untied.head, untied.table) == (256 * 64, 256 * 64)
    assert (untied.vocabulary, untied.hidden, untied.layers, untied.longest) == (256, 64, 4, 512)
    assert (tied.hidden, tied.layers, tied.longest) == (64, 2, 1024)


@pytest.mark.parametrize(
    ("name", "routed", "experts", "used"),
    [("mixtral", 4 * 4 * 3 * 64 * 128, 4, 2), ("deepseek", 3 * 8 * 3 * 64 * 32, 8, 2), ("llama", 0, 1, 1)],
)
def test_experts(name, routed, experts, used):
    shape = shape_of(config(name))
    assert (shape.routed, shape.experts, shape.experts_used) == (routed, experts, used)


def test_rows_of_a_transposed_layer_are_its_inputs():
    assert dict(shape_of(config("gpt2")).rows) == {64: 2 * (192 + 64 + 256), 256: 2 * 64}


def test_towers_are_idle():
    text = {**SMALL, "head_dim": 16}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    seeing = transformers.Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    shape, blind = shape_of(seeing), shape_of(transformers.Gemma3TextConfig(**text))
    assert shape.quantizable - shape.idle == blind.quantizable
    assert shape.idle > 0


class TestRead:
    def test_needs_no_weights(self, tmp_path):
        config("llama").save_pretrained(tmp_path)
        assert read(str(tmp_path)) == shape_of(config("llama"))

    def test_does_not_mind_that_the_checkpoint_is_quantized(self, tmp_path):
        config("llama").save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        told = {**json.loads(file.read_text()), "quantization_config": {"quant_method": "gptq", "bits": 4}}
        file.write_text(json.dumps(told))
        assert read(str(tmp_path)) == shape_of(config("llama"))

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(UsageError, match=r"give a folder with config\.json"):
            read(str(tmp_path))

    def test_no_language_model(self, tmp_path):
        transformers.ViTConfig().save_pretrained(tmp_path)
        with pytest.raises(UsageError, match="no causal language model"):
            read(str(tmp_path))
