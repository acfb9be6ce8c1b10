"""A run with replaced modules against the same from scratch, in double precision; and the model left as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from pytest_quant.engines import candidates, packed
from pytest_quant.engines.replay import Replay, swapped
from pytest_quant.engines.source import ModelSource
from pytest_quant.formats.rounding import Rounding, rounded

TOKENS = np.random.default_rng(0).integers(0, 256, 33)
HOW = Rounding("int2", "channel")
NEAR = 2e-5
"""Nats by which a token may be off: the model runs in FP32, and its NLL is about 10."""


def handle(folder: Any, name: str = "fp32") -> Any:
    from pytest_quant.engines.loading import load
    from pytest_quant.formats import registry
    from pytest_quant.formats.registry import backend
    from pytest_quant.formats.support import support
    from pytest_quant.hardware import detect, matrix
    from pytest_quant.model import ModelHandle

    format, device = registry.get(name), detect()
    dtype = {"bf16": "bfloat16"}.get(name, "float32")
    loaded = load(ModelSource(str(folder)), format, backend(format), dtype, device)
    return ModelHandle(loaded, format, support(format, device, matrix.load("corrected")), "tiny")


@pytest.fixture
def llama(tiny_llama):
    return handle(tiny_llama)


@pytest.fixture
def gpt(tiny_gpt2):
    return handle(tiny_gpt2)


@pytest.fixture(params=["llama", "gpt"])
def reference(request):
    return request.getfixturevalue(request.param)


def expected(model: Any, name: str, scored_from: int) -> tuple[np.ndarray, np.ndarray]:
    """By the plain formula in double precision, from a copy of which one weight is rounded."""
    import torch

    changed = copy.deepcopy(model)
    module = changed.get_submodule(name)
    turned = type(module).__name__ == "Conv1D"
    weight = module.weight.detach()
    new = rounded((weight.T if turned else weight).contiguous(), HOW.fitted(weight.shape[0 if turned else -1]))
    module.weight = torch.nn.Parameter(new.T if turned else new, requires_grad=False)
    log_p, log_q = (_log_probabilities(one, scored_from) for one in (model, changed))
    place = (np.arange(len(log_p)), TOKENS[scored_from:])
    return log_p[place] - log_q[place], (np.exp(log_p) * (log_p - log_q)).sum(1)


def _log_probabilities(model: Any, scored_from: int) -> np.ndarray:
    import torch

    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = wide(torch.tensor(TOKENS[None, :-1])).logits[0, scored_from - 1 :]
    return logits.log_softmax(-1).numpy()


@pytest.mark.parametrize("scored_from", [1, 17])
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "plain"])
def test_every_layer_is_what_a_whole_run_says(reference, scored_from, pack):
    found = candidates.of_rounding(reference, HOW)
    assert {layer.kind for layer in found.layers} == {"attention", "mlp", "embedding", "head"}
    with Replay(reference.loaded, pack=pack) as replay:
        assert replay.reused
        replay.record(TOKENS, scored_from)
        changes = {layer.name: replay.change({layer.name: found.stand_ins[layer.name]}) for layer in found.layers}
        assert replay.reused
    for name, change in changes.items():
        nats, kl = expected(reference.model, name, scored_from)
        assert change.nats == pytest.approx(nats, abs=NEAR)
        assert change.kl == pytest.approx(kl, abs=NEAR)
        assert change.kl.mean() == pytest.approx(kl.mean(), abs=2e-6)
    assert max(change.kl.mean() for change in changes.values()) > 1e-4
    assert not reference.loaded.changed


def test_several_modules_at_once_are_a_run_of_all_of_them(llama):
    found = candidates.of_rounding(llama, HOW)
    some = {layer.name: found.stand_ins[layer.name] for layer in found.layers if layer.kind == "mlp"}
    with Replay(llama.loaded) as replay, Replay(llama.loaded, reuse=False) as anew:
        for one in (replay, anew):
            one.record(TOKENS, 1)
        assert not anew.reused
        ours, theirs = replay.change(some), anew.change(some)
    assert ours.nats == pytest.approx(theirs.nats, abs=1e-12)
    assert not llama.loaded.changed


def test_the_first_blocks_are_not_run_again(llama):
    found, calls = candidates.of_rounding(llama, HOW), []
    for depth, block in enumerate(llama.model.model.layers):
        block.self_attn.register_forward_hook(lambda *_, depth=depth: calls.append(depth))
    with Replay(llama.loaded) as replay:
        replay.record(TOKENS, 1)
        for name, ran in (("model.layers.1.mlp.up_proj", [1]), ("lm_head", []), ("model.embed_tokens", [0, 1])):
            calls.clear()
            replay.change({name: found.stand_ins[name]})
            assert calls == ran


def test_the_reference_answers_for_itself(llama):
    with Replay(llama.loaded) as replay:
        replay.record(TOKENS, 1)
        assert replay.nll() == pytest.approx(llama.loaded.token_nll(TOKENS[None])[0], abs=NEAR)
        same = replay.change({"model.layers.0.mlp.up_proj": llama.model.model.layers[0].mlp.up_proj})
    assert np.abs(same.nats).max() < NEAR
    assert np.abs(same.kl).max() < NEAR


def test_blocks_that_need_each_other_are_run_whole(llama):
    """The last block reads what the first left behind, as layers that share keys do."""
    first, last = llama.model.model.layers
    left: list[Any] = []
    first_forward, last_forward = first.forward, last.forward

    def leave(states: Any, *rest: Any, **named: Any) -> Any:
        left[:] = [first.mlp.up_proj.weight.mean() + len(left)]
        return first_forward(states, *rest, **named)

    def read(states: Any, *rest: Any, **named: Any) -> Any:
        return last_forward(states * (1.0 + left.pop()), *rest, **named)

    first.forward, last.forward = leave, read
    found = candidates.of_rounding(llama, HOW)
    name = "model.layers.1.mlp.up_proj"
    with Replay(llama.loaded) as replay:
        assert not replay.reused
        replay.record(TOKENS, 1)
        assert replay.change({name: found.stand_ins[name]}).kl.mean() > 0
    assert first.forward is leave


def test_an_interrupt_leaves_the_model_as_it_was(llama):
    class Interrupting:
        def __call__(self, states: Any) -> Any:
            raise KeyboardInterrupt

    before = llama.loaded.probe_logits(TOKENS)

    def interrupted() -> None:
        with Replay(llama.loaded) as replay:
            replay.record(TOKENS, 1)
            replay.change({"model.layers.1.mlp.up_proj": Interrupting()})

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not llama.loaded.changed
    assert (llama.loaded.probe_logits(TOKENS) == before).all()
    assert not any("forward" in vars(module) for module in llama.model.modules())


def test_a_name_that_is_not_there_changes_nothing(llama):
    known = llama.model.model.layers[0].mlp.up_proj
    with (
        pytest.raises((AttributeError, KeyError)),
        swapped(llama.model, {"model.layers.0.mlp.up_proj": object(), "model.layers.0.mlp.no_proj": object()}),
    ):
        pass
    assert llama.model.model.layers[0].mlp.up_proj is known


def test_models_in_bf16_are_compared_by_their_own_logits(tiny_llama):
    import torch

    narrow = handle(tiny_llama, "bf16")
    found, name = candidates.of_rounding(narrow, HOW), "model.layers.0.mlp.up_proj"
    with Replay(narrow.loaded) as replay:
        replay.record(TOKENS, 1)
        change = replay.change({name: found.stand_ins[name]})
    with torch.no_grad():
        inputs = torch.tensor(TOKENS[None, :-1])
        log_p = narrow.model(inputs).logits[0].double().log_softmax(-1)
        with swapped(narrow.model, {name: found.stand_ins[name]}):
            log_q = narrow.model(inputs).logits[0].double().log_softmax(-1)
    assert change.kl == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).numpy(), abs=NEAR)
    assert not narrow.loaded.changed


def test_logits_that_are_capped_are_taken_whole(llama, monkeypatch):
    import torch

    monkeypatch.setattr(llama.loaded, "_head", None)
    found, name = candidates.of_rounding(llama, HOW), "model.layers.0.mlp.up_proj"
    with Replay(llama.loaded) as replay:
        replay.record(TOKENS, 1)
        change = replay.change({name: found.stand_ins[name]})
    nats, kl = expected(llama.model, name, 1)
    assert change.kl == pytest.approx(kl, abs=NEAR)
    assert change.nats == pytest.approx(nats, abs=NEAR)
    assert isinstance(llama.model.lm_head, torch.nn.Linear)


def test_a_layer_that_gives_nan_says_so(llama):
    import torch

    width = llama.model.model.layers[0].mlp.up_proj.out_features

    class Broken:
        def __call__(self, states: Any) -> Any:
            return torch.full((*states.shape[:-1], width), torch.nan)

    with Replay(llama.loaded) as replay:
        replay.record(TOKENS, 1)
        change = replay.change({"model.layers.0.mlp.up_proj": Broken()})
    assert np.isnan(change.nats).all()
    assert np.isnan(change.kl).all()


def test_a_layer_far_off_is_still_right(llama):
    """Where the sums with the reference's own level overflow, all logits are compared."""
    found, name = candidates.of_rounding(llama, HOW), "model.norm"
    norm = copy.deepcopy(llama.model.model.norm)
    norm.weight.data *= 1e4
    assert name not in found.stand_ins
    with Replay(llama.loaded) as replay:
        replay.record(TOKENS, 1)
        change = replay.change({name: norm})
    assert np.isfinite(change.nats).all()
    assert change.kl.mean() > 100


def test_formats_stand_in_by_name(tiny_llama, llama):
    quantized = handle(tiny_llama, "nf4")
    found = candidates.of_format(llama, quantized)
    assert len(found) == 14
    assert found.left_out == ()
    assert all(layer.bytes_saved > 2 * layer.weights for layer in found.layers)
    assert found.stand_ins["model.layers.0.mlp.up_proj"] is quantized.model.model.layers[0].mlp.up_proj
    whole = candidates.chosen(found, "block", ())
    assert [layer.name for layer in whole.layers] == ["model.layers.0", "model.layers.1"]
    assert [len(layer.modules) for layer in whole.layers] == [7, 7]
    assert len(candidates.chosen(found, "layer", ["down_proj"])) == 2
    assert len(candidates.chosen(found, "layer", ["*.layers.1.mlp.*"])) == 3
    with Replay(llama.loaded) as replay:
        replay.record(TOKENS, 1)
        both = replay.change({name: found.stand_ins[name] for layer in whole.layers for name in layer.modules})
    nll, _, compared = quantized.loaded.against(llama.loaded, TOKENS[None], 1, 1)
    assert both.nats == pytest.approx(compared.nll - nll, abs=2e-5)
    assert both.kl == pytest.approx(compared.kl, abs=2e-5)


def test_a_module_that_computes_in_another_type_is_cast(tiny_llama, llama):
    narrow = handle(tiny_llama, "bf16")
    found = candidates.of_format(llama, narrow)
    name = "model.layers.0.mlp.up_proj"
    with Replay(llama.loaded) as replay:
        replay.record(TOKENS, 1)
        change = replay.change({name: found.stand_ins[name]})
    assert 0 < change.kl.mean() < 1e-3
    assert found.stand_ins[name].weight is narrow.model.model.layers[0].mlp.up_proj.weight
    back = candidates.put_back(llama, narrow, [name])
    with swapped(narrow.model, back):
        assert narrow.loaded.probe_logits(TOKENS).shape == (33, 256)
    assert not narrow.loaded.changed


def test_a_rounding_leaves_the_reference_alone(gpt):
    before = {name: value.clone() for name, value in gpt.model.state_dict().items()}
    found = candidates.of_rounding(gpt, HOW)
    for name in found.stand_ins:
        assert not (found.stand_ins[name].weight == gpt.model.get_submodule(name).weight).all()
    assert all((value == before[name]).all() for name, value in gpt.model.state_dict().items())
    assert not gpt.loaded.changed


def test_packed_layers_are_unpacked_again(llama):
    linear = llama.model.model.layers[0].mlp.up_proj
    before = llama.loaded.probe_logits(TOKENS)
    with packed.packed(llama.model, llama.device):
        assert ("forward" in vars(linear)) == packed.can_pack(llama.device, 1)
        assert llama.loaded.probe_logits(TOKENS) == pytest.approx(before, abs=1e-4)
    assert "forward" not in vars(linear)
    assert (llama.loaded.probe_logits(TOKENS) == before).all()


def test_no_packing_where_memory_is_short(llama, monkeypatch):
    monkeypatch.setattr(packed, "free_bytes", lambda device: 1000)
    assert not packed.can_pack(llama.device, 334)
    monkeypatch.setattr(packed, "free_bytes", lambda device: None)
    assert not packed.can_pack(llama.device, 1)
