"""One module at a time on the reference's own input: the faulty one is named, its successors are not, and nothing is
left on the models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pytest_quant.engines import activations
from pytest_quant.engines.activations import Compared, LocalError, standing_out
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats import registry
from pytest_quant.formats.stamp import stamp
from pytest_quant.hardware import detect, matrix
from pytest_quant.models import Models
from pytest_quant.progress import Quiet
from pytest_quant.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("libraries")
TOKENS = np.frombuffer(b"The quick brown fox jumps over the lazy dog. " * 2, dtype=np.uint8).astype(np.int64)


class Loaded:
    """A reference and the same model in a format, on one device."""

    def __init__(self, folder: Any, name: str = "nf4") -> None:
        models = Models(detect(), matrix.load("corrected"), Quiet(), lambda spec, format: None)
        spec = ModelSpec(ModelSource(str(folder)), reference="fp32")
        self.reference, self.quantized = (models.get(spec, each).loaded for each in ("fp32", name))
        self._backend = registry.backend(registry.get(name))

    def compare(self, tokens: Any = TOKENS) -> Compared:
        return activations.compare(self.reference, self.quantized, tokens, self.is_quantized)

    def is_quantized(self, module: Any) -> bool:
        stored = self._backend.stored(module)
        return stored is not None and stored.num_bits < 16

    @property
    def unchanged(self) -> bool:
        return not self.reference.changed and not self.quantized.changed


@pytest.fixture
def loaded(tiny_llama) -> Loaded:
    return Loaded(tiny_llama)


def of(compared: Compared) -> dict[str, LocalError]:
    return {each.name: each for each in compared.errors}


def test_every_module_with_weights_is_compared_and_no_other(loaded):
    found = of(loaded.compare())
    blocks = [f"model.layers.{block}." for block in range(2)]
    linear = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    norms = ["input_layernorm", "post_attention_layernorm"]
    assert {name for name, each in found.items() if each.quantized} == {b + name for b in blocks for name in linear}
    wide = {b + name for b in blocks for name in norms} | {"model.embed_tokens", "model.norm", "lm_head"}
    assert {name for name, each in found.items() if not each.quantized} == wide
    assert {found[name].error for name in wide} == {0.0}
    assert all(0.02 < found[name].error < 0.3 for name in found.keys() - wide)


def test_the_error_is_that_of_the_module_alone(loaded):
    """As by hand: the reference's input through both modules, for a layer far behind others that are quantized."""
    name, seen = "model.layers.1.mlp.down_proj", []
    module = loaded.reference.model.get_submodule(name)
    hook = module.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    with torch.inference_mode():
        loaded.reference.model(torch.as_tensor(TOKENS[None]))
        hook.remove()
        ((given, theirs),) = seen
        ours = loaded.quantized.model.get_submodule(name)(given)
    by_hand = float((ours - theirs).double().norm() / theirs.double().norm())
    assert of(loaded.compare())[name].error == pytest.approx(by_hand, rel=1e-5)


def test_nothing_is_left_on_the_models(loaded):
    before = stamp(loaded.reference.model), stamp(loaded.quantized.model)
    loaded.compare()
    assert (stamp(loaded.reference.model), stamp(loaded.quantized.model)) == before
    assert loaded.unchanged


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_when_it_is_interrupted(loaded, error):
    def stop(module: Any) -> None:
        raise error

    module = loaded.quantized.model.get_submodule("model.layers.1.mlp.up_proj")
    hook = module.register_forward_pre_hook(lambda module, given: stop(module))
    with pytest.raises(error):
        loaded.compare()
    hook.remove()
    assert loaded.unchanged


def test_a_module_that_takes_another_input_is_left_out(loaded):
    def refuse(module: Any, given: Any) -> None:
        raise ValueError("packed differently")

    module = loaded.quantized.model.get_submodule("model.layers.0.self_attn.k_proj")
    hook = module.register_forward_pre_hook(refuse)
    found = loaded.compare()
    hook.remove()
    assert found.apart == ("model.layers.0.self_attn.k_proj",)
    assert "model.layers.0.self_attn.k_proj" not in of(found)
    assert len(found.errors) == len(loaded.compare().errors) - 1


def test_a_fault_is_in_its_own_module_only(loaded):
    sound = of(loaded.compare())
    module = loaded.reference.model.get_submodule("model.layers.0.self_attn.v_proj")
    with torch.no_grad():
        module.weight.mul_(4.0)
    faulty = of(loaded.compare())
    name = "model.layers.0.self_attn.v_proj"
    assert faulty[name].error == pytest.approx(0.75, abs=0.05)
    # what comes later has another input now, and no larger error
    assert all(faulty[each].error < 2.0 * sound[each].error + 1e-6 for each in sound.keys() - {name})


def test_a_norm_and_the_head_that_are_not_the_references(loaded):
    model = loaded.quantized.model
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.mul_(1.5)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 1.01)
    standing = standing_out(loaded.compare())
    assert {odd.name: round(odd.error, 3) for odd in standing.odd} == {
        "model.layers.1.input_layernorm": 0.5,
        "lm_head": 0.01,
    }
    assert not any(odd.quantized for odd in standing.odd)


def test_conv1d_of_gpt2(tiny_gpt2):
    loaded = Loaded(tiny_gpt2, "nf4")
    found = of(loaded.compare())
    assert found["transformer.h.1.mlp.c_fc"].quantized
    assert 0.01 < found["transformer.h.1.mlp.c_fc"].error < 0.3
    assert not found["transformer.wpe"].quantized
    assert found["transformer.wpe"].error == 0.0
    assert loaded.unchanged


def test_a_kv_cache_format_compares_its_modules_as_they_are(tiny_llama):
    loaded = Loaded(tiny_llama, "nf4+kv-int8-g16")
    plain = Loaded(tiny_llama, "nf4")
    assert of(loaded.compare()) == of(plain.compare())


def errors(**kinds: list[float]) -> tuple[LocalError, ...]:
    """``q_proj`` and the like are quantized, norms are not."""
    return tuple(
        LocalError(f"layers.{block}.{kind}", kind.endswith("_proj"), error)
        for kind, of_kind in kinds.items()
        for block, error in enumerate(of_kind)
    )


SOUND = {"q_proj": [0.06, 0.065, 0.07, 0.075], "v_proj": [0.11, 0.13, 0.14, 0.2], "norm": [0.0, 0.0, 0.0]}


def names(standing: activations.Standing) -> list[str]:
    return [odd.name for odd in standing.odd]


def test_of_sound_modules_none_stands_out_and_the_farthest_is_named():
    standing = standing_out(Compared(errors(**SOUND), 256))
    assert names(standing) == []
    assert standing.closest.name == "layers.3.v_proj"
    assert standing.closest.times == pytest.approx(0.2 / 0.135)


def test_a_module_is_judged_among_its_kind():
    """0.25 is four times a ``q_proj``; of a ``v_proj`` it would be nothing."""
    standing = standing_out(Compared(errors(**{**SOUND, "q_proj": [0.06, 0.065, 0.07, 0.25]}), 256))
    assert names(standing) == ["layers.3.q_proj"]
    assert standing.closest is None
    assert names(standing_out(Compared(errors(**{**SOUND, "v_proj": [0.11, 0.13, 0.14, 0.25]}), 256))) == []


def test_of_a_kind_of_two_all_modules_are_the_measure():
    few = errors(q_proj=[0.1, 0.9], k_proj=[0.1, 0.1], v_proj=[0.12, 0.1])
    assert names(standing_out(Compared(few, 256))) == ["layers.1.q_proj"]


def test_what_is_not_finite_comes_first():
    found = errors(**{**SOUND, "q_proj": [0.06, 5.0, float("nan"), 0.075]})
    standing = standing_out(Compared(found, 256))
    assert names(standing) == ["layers.2.q_proj", "layers.1.q_proj"]
    assert (standing.odd[0].error, standing.odd[0].times) == (None, None)


def test_what_is_not_quantized_may_differ_by_rounding_only():
    found = errors(**{**SOUND, "norm": [0.0, 0.01, 0.0]})
    assert names(standing_out(Compared(found, 256))) == ["layers.1.norm"]
    assert names(standing_out(Compared(found, 256, rounding=0.03))) == []


def test_scales_that_were_moved_leave_nothing_to_compare():
    """As AWQ and SmoothQuant do: norms are other ones, and the layers behind them make up for it."""
    standing = standing_out(Compared(errors(q_proj=[3.0, 4.0, 9.0, 2.0], norm=[0.5, 0.6, 0.4, 0.0]), 256))
    assert (standing.moved, standing.odd, standing.closest) == (True, (), None)
