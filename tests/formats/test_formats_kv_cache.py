"""KV cache formats: their names, what they store, and that a cache which does not store it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pytest_quant.engines import loading
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.transformers import TransformersModel
from pytest_quant.errors import ProofFailed, Unsupported, UsageError
from pytest_quant.formats import kv_cache, registry
from pytest_quant.formats.backends import quanto
from pytest_quant.formats.proof import Proof
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import detect
from pytest_quant.models import check

OFFERED = [
    "kv-int4-g32",
    "kv-int2-g32",
    "kv-int8-g32",
    "kv-int8-g16",
    "kv-int4-g16@quanto",
    "kv-int4-g16@hqq",
    "kv-fp8",
]


def load(folder, name):
    format = registry.get(name)
    return loading.load(ModelSource(str(folder)), format, registry.backend(format), "float32", detect())


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 1024,
    }
    return LlamaForCausalLM(LlamaConfig(**{**config, **changes})).eval()


def engine(model, name):
    return TransformersModel(model, None, detect(), Proof("none", 1.0, 32.0, 0, {}, {}), name and registry.get(name))


def tokens(length, vocabulary=64, rows=1):
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length))


# Names


@pytest.mark.parametrize(
    "name, bits, kind, group, library",
    [
        ("fp16+kv-int4", 4, "int", 64, "quanto"),
        ("nf4+kv-int8", 8, "int", 64, "hqq"),
        ("fp32+kv-int2", 2, "int", 64, "quanto"),
        ("fp32+kv-int8@hqq", 8, "int", 64, "hqq"),
        ("int8+kv-int4@hqq", 4, "int", 64, "hqq"),
        ("fp32+kv-int1", 1, "int", 64, "hqq"),
        ("int4@hqq+kv-int4-g32@quanto", 4, "int", 32, "quanto"),
        ("bf16+kv-fp8", 8, "float", None, "transformers"),
    ],
)
def test_a_suffix_of_any_format_names_its_cache(name, bits, kind, group, library):
    format = registry.get(name)
    base = registry.get(name.partition("+")[0])
    assert (format.name, format.base) == (name, base.name)
    assert (format.weights, format.parameters, format.backend) == (base.weights, base.parameters, base.backend)
    assert registry.backend(format) is registry.backend(base)
    stored = format.kv_cache.stored
    assert (stored.num_bits, stored.type, stored.group_size, format.kv_cache.library) == (bits, kind, group, library)
    assert format.quantized
    assert base.kv_cache is None


NONE = """kv kv- kv-int5 kv-int3 kv-int3@hqq kv-int8@quanto kv-int4@ kv-int4@fp8 kv-fp8@hqq int4 kv-int4+kv-int4
KV-INT4 kv-int4-g"""


@pytest.mark.parametrize("suffix", ["", "kv-int4 ", *NONE.split()])
def test_a_suffix_that_names_none_says_which_there_are(suffix):
    with pytest.raises(
        UsageError, match=r"there are kv-int8, kv-int4, kv-int2, kv-int1, kv-fp8, kv-int4@hqq, kv-int2@hqq"
    ):
        registry.get(f"fp16+{suffix}")


def test_groups_of_another_size_are_refused():
    with pytest.raises(UsageError, match="groups of 48 values; there are those of 16, 32, 64, 128"):
        registry.get("fp16+kv-int4-g48")
    with pytest.raises(UsageError, match="no groups; write kv-fp8"):
        registry.get("fp16+kv-fp8-g32")


def test_a_cache_of_an_unknown_format_names_the_formats():
    with pytest.raises(UsageError, match=r"unknown format 'nf5\+kv-int4'; .*the formats are .*nf4"):
        registry.get("nf5+kv-int4")


def test_the_identity_names_all_that_decides_what_is_read():
    described = registry.describe(registry.get("nf4+kv-int4"))
    assert described.pop("kv_cache") == {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": 64,
        "library": "quanto",
        "residual_length": 128,
        "first_step": 16,
        "step": 128,
    }
    plain = registry.describe(registry.get("nf4"))
    assert {**described, "name": "nf4"} == plain
    names = ["nf4", "nf4+kv-int4", "nf4+kv-int2", "nf4+kv-int4@hqq", "nf4+kv-int4-g32", "fp4+kv-int4", "nf4+kv-fp8"]
    assert len({str({**registry.describe(registry.get(name)), "name": ""}) for name in names}) == len(names)


def test_alternatives_of_the_base_keep_the_cache_and_the_cache_has_its_own():
    base = replace(registry.get("nf4"), instead=("fp4",))
    assert kv_cache.with_cache(base, "kv-int4").instead == ("fp4+kv-int4", "nf4+kv-int4@hqq")
    assert kv_cache.with_cache(base, "kv-int2-g32@hqq").instead == ("fp4+kv-int2-g32@hqq", "nf4+kv-int2-g32@quanto")
    assert kv_cache.with_cache(base, "kv-int8").instead == ("fp4+kv-int8",)


# What is stored


@pytest.mark.parametrize("suffix", OFFERED)
def test_each_format_proves_itself_and_takes_the_bytes_that_its_arithmetic_says(libraries, suffix):
    model = engine(llama(), f"fp32+{suffix}")
    stored = registry.get(f"fp32+{suffix}").kv_cache.stored
    shown = model.proof.figures()["kv_cache"]
    assert (shown["num_bits"], shown["type"], shown.get("group_size")) == (
        stored.num_bits,
        stored.type,
        stored.group_size,
    )
    assert shown["layers"] == 2
    scales = 64.0 / stored.group_size if stored.group_size else 0.0
    assert shown["bits_per_value"] == pytest.approx(stored.num_bits + scales, abs=0.01)
    per_token = 2 * 2 * 2 * 64  # keys and values, layers, heads, values of a head
    for length in (1, 100, 127, 128, 300):
        residual = 0 if suffix == "kv-fp8" else min(127, length - 1)
        quantized = (length - residual) * per_token
        expected = quantized * (stored.num_bits + scales) / 8 + residual * per_token * 4
        scalars = 4 * 4 if suffix == "kv-fp8" else 0
        assert model.kv_cache_bytes(tokens(length)) == expected + scalars, length
        assert model.kv_cache_bytes(tokens(length, rows=2)) == 2 * expected + scalars, length


@pytest.mark.parametrize("base", ["bf16", "fp16", "nf4", "int8"])
@pytest.mark.parametrize("suffix, bits", [("kv-int4-g32", 4), ("kv-int8-g32", 8), ("kv-fp8", 8)])
def test_each_base_has_its_cache(tiny_llama, libraries, base, suffix, bits):
    model = load(tiny_llama, f"{base}+{suffix}")
    scales = 0 if suffix == "kv-fp8" else 2 * (32 if base in ("nf4", "int8") else 16) / 32
    assert model.proof.kv_cache["bits_per_value"] == pytest.approx(bits + scales, abs=0.05)
    assert np.isfinite(model.token_nll(tokens(200))).all()


def test_without_a_format_the_cache_is_the_plain_one(libraries):
    model = engine(llama(), None)
    assert model.proof.figures().get("kv_cache") is None
    assert model.kv_cache_bytes(tokens(300)) == 300 * 2 * 2 * 2 * 64 * 4


def test_no_cache_takes_more_than_the_fullest_with_so_many_tokens(libraries):
    model = engine(llama(num_hidden_layers=1), "fp32+kv-int4")
    sequence = torch.tensor(tokens(300))
    cache = model._cached.new(model.model.config)
    with torch.inference_mode():
        model.model(sequence[:, :40], past_key_values=cache)
        for length in range(41, 300):
            model.model(sequence[:, length - 1 : length], past_key_values=cache)
            assert footprint(cache).total <= model.kv_cache_bytes(tokens(length)), length


# What is read


@pytest.mark.parametrize("make", ["tiny_llama", "tiny_gpt2", "softcapped"])
def test_steps_through_a_plain_cache_give_what_one_forward_gives(request, libraries, monkeypatch, make):
    """So that whatever differs with a format comes of the format."""
    from transformers import DynamicCache

    if make == "softcapped":
        whole, stepped = (engine(llama(), name) for name in (None, "fp32+kv-int4"))
        whole._head = stepped._head = None
    else:
        whole, stepped = (load(request.getfixturevalue(make), name) for name in ("fp32", "fp32+kv-int4-g32"))
    monkeypatch.setattr(kv_cache.KVCache, "new", lambda self, config: DynamicCache(config=config))
    shown = tokens(300, 64, rows=2)
    assert np.abs(stepped.token_nll(shown) - whole.token_nll(shown)).max() < 2e-5
    assert np.abs(stepped.probe_logits(shown[0]) - whole.probe_logits(shown[0])).max() < 2e-4


@pytest.mark.parametrize("suffix", ["kv-int4", "kv-int2", "kv-int1-g16", "kv-fp8", "kv-int8"])
def test_steps_give_what_feeding_one_token_at_a_time_gives(libraries, suffix):
    """After the prompt. HQQ's search for scales ends by the mean error of all that it is given, and FP8 rounds: what
    differs in the last digit may be stored one step off."""
    model = engine(llama(num_hidden_layers=1), f"fp32+{suffix}")
    shown = tokens(310)
    inputs = torch.tensor(shown[:, :-1])
    cache = model._cached.new(model.model.config)
    with torch.inference_mode():
        parts = [model.model(inputs[:, : kv_cache.FIRST], past_key_values=cache).logits]
        for at in range(kv_cache.FIRST, inputs.shape[1]):
            parts.append(model.model(inputs[:, at : at + 1], past_key_values=cache).logits)
        expected = torch.nn.functional.cross_entropy(
            torch.cat(parts, 1)[0], torch.tensor(shown[0, 1:]), reduction="none"
        )
    found = model.token_nll(shown)[0]
    plain = engine(model.model, None).token_nll(shown)[0]
    tolerance = {"kv-fp8": 0.1, "kv-int8": 0.1}.get(suffix, 1e-3) * np.abs(found - plain).max()
    assert np.abs(found - expected.numpy()).max() < tolerance
    assert np.array_equal(found[: kv_cache.FIRST], plain[: kv_cache.FIRST])
    assert (found[kv_cache.FIRST :] != plain[kv_cache.FIRST :]).mean() > 0.9, "all later tokens read the cache"


def test_fewer_bits_are_farther_from_the_reference(libraries):
    shown = tokens(300)
    plain = engine(llama(), None).token_nll(shown)
    distance = [
        np.abs(engine(llama(), f"fp32+kv-int{bits}-g16").token_nll(shown) - plain).mean() for bits in (8, 4, 2, 1)
    ]
    assert distance == sorted(distance)
    assert 0 < distance[0] * 4 < distance[1]
    assert distance[1] * 2 < distance[2]


def test_quantos_windows_are_scored_together_and_all_others_alone(libraries):
    model = engine(llama(), "fp32+kv-int4")
    shown = tokens(200, rows=3)
    together = model.token_nll(shown)
    assert all(np.array_equal(together[row], model.token_nll(shown[row : row + 1])[0]) for row in range(3))
    large = replace(detect(), kind="cuda", memory_bytes=80 << 30)
    for suffix, at_once in (("kv-int4", 8), ("kv-int4@hqq", 1), ("kv-int8", 1), ("kv-fp8", 1)):
        model = engine(llama(), f"fp32+{suffix}")
        model.device = large
        assert model.windows_at_once(512) == at_once, suffix


def test_the_same_bits_again(libraries):
    for suffix in OFFERED:
        model = engine(llama(), f"fp32+{suffix}")
        assert np.array_equal(model.token_nll(tokens(200)), model.token_nll(tokens(200))), suffix


def test_decoding_goes_through_the_cache(tiny_llama, libraries, monkeypatch):
    from transformers.cache_utils import QuantoQuantizedLayer

    from pytest_quant.engines.timing import Runner

    model = load(tiny_llama, "fp32+kv-int4-g32")
    fed = []
    update = QuantoQuantizedLayer.update
    monkeypatch.setattr(
        QuantoQuantizedLayer,
        "update",
        lambda self, keys, *rest, **more: fed.append(keys.shape[-2]) or update(self, keys, *rest, **more),
    )
    runner = Runner(model)
    runner.start(tokens(20), 3)
    assert len(runner.steps(3)) == 3
    assert fed == [20, 20, 1, 1, 1, 1, 1, 1]
    fed.clear()
    assert runner.prefill(tokens(20)) > 0
    assert fed == [20, 20]
    fed.clear()
    assert model.generate("The quick", max_new_tokens=4)
    assert fed == [9, 9, 1, 1, 1, 1, 1, 1]
    fed.clear()
    model.probe_logits(tokens(32)[0])
    assert fed == [16, 16, 16, 16], "the probe before speed is compared reads the cache"
    fed.clear()
    load(tiny_llama, "fp32").token_nll(tokens(40))
    assert fed == []


# Faults


def not_quantized(layer, tensor, axis):
    return tensor


def as_eight_bits(layer, tensor, axis):
    from hqq.core.quantize import Quantizer

    return Quantizer.quantize(tensor, nbits=8, group_size=64, axis=1, device="cpu")


def of_other_groups(quantize):
    def wrapped(layer, tensor, axis):
        layer.q_group_size = 32
        return quantize(layer, tensor, axis)

    return wrapped


def of_fewer_tokens(quantize):
    return lambda layer, tensor, axis: quantize(layer, tensor[..., :-1, :].contiguous(), axis)


@pytest.fixture
def layers():
    from transformers import cache_utils

    return cache_utils


def refused(name="fp32+kv-int4"):
    with pytest.raises(ProofFailed) as failure:
        engine(llama(), name)
    return str(failure.value)


def test_a_cache_that_does_not_quantize_is_refused(libraries, layers, monkeypatch):
    monkeypatch.setattr(layers.QuantoQuantizedLayer, "_quantize", not_quantized)
    monkeypatch.setattr(layers.QuantoQuantizedLayer, "_dequantize", lambda self, kept: kept)
    assert refused() == "not in fp32+kv-int4: the keys of layer 0 are a Tensor, not quantized"


def test_a_cache_that_is_an_ordinary_one_is_refused(libraries, layers, monkeypatch):
    monkeypatch.setattr(layers.QuantoQuantizedLayer, "update", layers.DynamicLayer.update)
    monkeypatch.setattr(layers.QuantoQuantizedLayer, "get_seq_length", layers.DynamicLayer.get_seq_length)
    assert refused() == "not in fp32+kv-int4: the keys of layer 0 are a NoneType, not quantized"


def test_values_alone_left_wide_are_refused(libraries, layers, monkeypatch):
    quantize = layers.HQQQuantizedLayer._quantize
    dequantize = layers.HQQQuantizedLayer._dequantize
    calls = []

    def keys_only(self, tensor, axis):
        calls.append(tensor)
        return quantize(self, tensor, axis) if len(calls) % 2 else (tensor, {})

    monkeypatch.setattr(layers.HQQQuantizedLayer, "_quantize", keys_only)
    monkeypatch.setattr(
        layers.HQQQuantizedLayer, "_dequantize", lambda self, kept: dequantize(self, kept) if kept[1] else kept[0]
    )
    assert "the values of layer 0 are a tuple, not quantized" in refused("fp32+kv-int8")


def test_other_bits_than_asked_are_refused(libraries, layers, monkeypatch):
    monkeypatch.setattr(layers.HQQQuantizedLayer, "_quantize", as_eight_bits)
    assert "in the keys of layer 0 num_bits is 8, asked for 4" in refused("fp32+kv-int4@hqq")


def test_bits_that_are_not_packed_are_refused(libraries, layers, monkeypatch):
    from hqq.core.quantize import Quantizer

    quantize = Quantizer.quantize.__func__
    monkeypatch.setattr(Quantizer, "quantize", classmethod(lambda cls, *a, **k: quantize(cls, *a, bitpack=False, **k)))
    assert "num_bits is 32, asked for 4" in refused("fp32+kv-int4@hqq")


@pytest.mark.parametrize("name, of", [("kv-int4", "QuantoQuantizedLayer"), ("kv-int4@hqq", "HQQQuantizedLayer")])
def test_other_groups_than_asked_are_refused(libraries, layers, monkeypatch, name, of):
    monkeypatch.setattr(getattr(layers, of), "_quantize", of_other_groups(getattr(layers, of)._quantize))
    assert "in the keys of layer 0 group_size is 32, asked for 64" in refused(f"fp32+{name}")


def test_groups_across_heads_and_tokens_are_refused(libraries, monkeypatch):
    """What HQQ does by default."""
    monkeypatch.setattr(kv_cache, "_AXES", {"hqq": 0})
    assert "in the keys of layer 0 group_size is " in refused("fp32+kv-int4@hqq")


def test_another_residual_length_is_refused(libraries, layers, monkeypatch):
    create = layers.QuantoQuantizedLayer.__init__

    def longer(self, **arguments):
        create(self, **{**arguments, "residual_length": 1000})

    monkeypatch.setattr(layers.QuantoQuantizedLayer, "__init__", longer)
    assert refused().endswith(
        "of 160 tokens the keys of layer 0 hold 16 quantized and 144 as they came, of which there should be 16"
    )


def test_a_cache_that_returns_what_it_was_given_is_refused(libraries, layers, monkeypatch):
    """It stores as it should, but nobody reads that."""
    update = layers.QuantoQuantizedLayer.update

    def beside(self, keys, values, *rest, **more):
        update(self, keys, values, *rest, **more)
        self.whole = [
            torch.cat([old, new], -2)
            for old, new in zip(getattr(self, "whole", (keys[..., :0, :],) * 2), (keys, values), strict=True)
        ]
        return tuple(self.whole)

    monkeypatch.setattr(layers.QuantoQuantizedLayer, "update", beside)
    assert "answers with the KV cache of fp32+kv-int4 exactly as without" in refused()


def test_an_error_of_the_library_is_no_skip(libraries, layers, monkeypatch):
    def broken(self, tensor, axis):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(layers.QuantoQuantizedLayer, "_quantize", broken)
    assert refused() == "the model cannot be run with the KV cache of fp32+kv-int4: RuntimeError: no kernel"


# Skips


def skipped(model, name):
    with pytest.raises(Unsupported) as skip:
        engine(model, name)
    return skip.value


def test_heads_that_groups_do_not_divide_are_skipped_with_the_groups_that_would(tiny_llama, libraries):
    with pytest.raises(Unsupported) as skip:
        load(tiny_llama, "fp32+kv-int4")
    assert skip.value.asked == "the KV cache of fp32+kv-int4"
    assert skip.value.found == "LlamaForCausalLM with heads of 32 values, not divided by groups of 64"
    assert skip.value.needed == "groups of 16 or 32, such as kv-int4-g32"


def test_hqq_is_skipped_where_it_would_fail_at_odd_lengths(libraries):
    skip = skipped(llama(num_key_value_heads=1), "fp32+kv-int4@hqq")
    assert "LlamaForCausalLM with 1 groups in a token's keys" in skip.found
    assert "or kv-int4@quanto" in skip.needed
    model = llama(num_key_value_heads=1)
    cache = registry.get("fp32+kv-int4@hqq").kv_cache.new(model.config)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        model(torch.arange(1, 16)[None], past_key_values=cache)
    assert engine(llama(num_key_value_heads=1), "fp32+kv-int4").token_nll(tokens(31)).size == 30


def test_sliding_windows_are_skipped(libraries):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        sliding_window=32,
    )
    for name in ("fp32+kv-int4", "fp32+kv-fp8"):
        skip = skipped(MistralForCausalLM(config).eval(), name)
        assert "MistralForCausalLM, which transformers quantizes no cache for: " in skip.found
        assert "sliding_attention" in skip.found


def test_state_space_models_are_skipped(libraries):
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, state_size=4)).eval()
    for name in ("fp32+kv-int4", "fp32+kv-fp8"):
        assert "MambaForCausalLM" in skipped(model, name).found


@pytest.mark.parametrize(
    "name, package", [("kv-int4", "optimum-quanto"), ("kv-int4@hqq", "hqq"), ("kv-fp8", "transformers")]
)
def test_a_missing_library_is_a_skip_that_names_it(monkeypatch, name, package):
    from pytest_quant.formats import backend
    from pytest_quant.hardware import matrix
    from pytest_quant.spec import ModelSpec

    installed = backend.installed
    monkeypatch.setattr(backend, "installed", lambda known: None if known == package else installed(known))
    with pytest.raises(Unsupported) as skip:
        check(ModelSpec(ModelSource("anywhere")), registry.get(f"fp32+{name}"), detect(), matrix.load())
    assert f"{package} not installed" in skip.value.found
    assert "pip install" in skip.value.needed


def test_quanto_without_a_compiler_is_a_skip(monkeypatch, tmp_path):
    format, cpu = registry.get("fp32+kv-int4"), replace(detect(), kind="cpu")
    gpu = replace(detect(), kind="cuda")
    assert kv_cache.trouble(format, cpu) is None

    class Elsewhere:
        def locate_file(self, path):
            return tmp_path / path

    monkeypatch.setattr(quanto, "distribution", lambda name: Elsewhere())
    monkeypatch.setattr(quanto.shutil, "which", lambda name, path=None: None)
    assert "no c++" in kv_cache.trouble(format, cpu).found
    assert "no nvcc" in kv_cache.trouble(format, gpu).found
    assert kv_cache.trouble(registry.get("fp32+kv-int8"), cpu) is None
    assert kv_cache.trouble(registry.get("fp32"), cpu) is None
    made = tmp_path / "optimum/quanto/library/extensions/cpp/build/quanto_cpp.so"
    made.parent.mkdir(parents=True)
    made.touch()
    assert kv_cache.trouble(format, cpu) is None, "it was compiled before"


def test_windows_that_end_with_the_first_step_are_refused():
    cached = registry.get("fp32+kv-int4").kv_cache
    with pytest.raises(UsageError, match="windows of 17 tokens read nothing from a KV cache"):
        cached.check_length(17)
    cached.check_length(18)


def test_importing_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, pytest_quant.formats.kv_cache, pytest_quant.formats.registry as r; r.get('nf4+kv-int4')"
    code += "; assert not {'torch', 'transformers', 'optimum', 'hqq'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
