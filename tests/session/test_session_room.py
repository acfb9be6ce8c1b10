"""Whether memory suffices: what is predicted, never more than is taken, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pytest_quant import models as models_module
from pytest_quant import room
from pytest_quant.engines import memory
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import QuantError, Unsupported
from pytest_quant.gates.gate import Gate
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix import load
from pytest_quant.markers import gate
from pytest_quant.models import Models
from pytest_quant.progress import Quiet
from pytest_quant.roofline.shape import KVLayer, ModelShape
from pytest_quant.room import Need, NoRoom, Work
from pytest_quant.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("libraries")

HERE = Device("cpu", "amd", "Zen 4", "x86_64", features=frozenset({"avx2"}), memory_bytes=24 * 10**9)
SHAPE = ModelShape(1000, 10, kv=(KVLayer(128, 64), KVLayer(128, 64, window=10)), hidden=64)


@pytest.fixture
def free(monkeypatch) -> list[int | None]:
    """What is free, to be changed."""
    told: list[int | None] = [10**9]
    monkeypatch.setattr(memory, "free_bytes", lambda device: told[0])
    return told


# what a gate's forward is


@pytest.mark.parametrize(
    ("asked", "work"),
    [
        (gate("memory_budget", {"max_gb": 1}), None),
        (gate("memory_budget", {"max_gb": 1, "of": "kv_cache", "batch_size": 3, "context": 40}), Work(3, 40, True)),
        (gate("memory_budget", {"max_gb": 1, "of": "peak", "context": 40}), Work(1, 40, False)),
        (gate("memory_budget", {"max_gb": 1, "of": "activations", "batch_size": 2}), Work(2, 512, False)),
        (gate("throughput_ratio", {"min": 1, "batch_size": 4, "prompt_tokens": 100}), Work(4, 100, True, 132)),
        (gate("perplexity_delta", {"max": 1}), None),
    ],
)
def test_the_forward_of_a_gate(asked, work):
    assert room.work(asked) == work


def test_a_forward_keeps_what_its_layers_keep_and_holds_hidden_states_twice():
    need = room.least(Work(3, 40, True), SHAPE, 16, None)
    assert need.kv_cache == 3 * (40 + 10) * 128 * 2
    assert need.activations == 2 * 3 * 39 * 64 * 2
    assert need.total == need.kv_cache + need.activations
    assert room.least(Work(3, 40, False), SHAPE, 32, None).kv_cache is None
    assert room.least(Work(3, 40, False), SHAPE, 32, None).activations == 2 * 3 * 39 * 64 * 4


def test_a_kv_cache_format_is_fed_in_steps_and_always_kept():
    need = room.least(Work(3, 40, False), SHAPE, 16, 4)
    assert (need.kv_cache, need.activations) == (3 * (40 + 10) * 128 // 2, None)


def test_what_a_shape_does_not_tell_is_not_needed():
    need = room.least(Work(3, 40, True), ModelShape.of_parameters(1e9), 16, None)
    assert (need.kv_cache, need.activations, need.total) == (None, None, 0)


# the words


def test_what_is_needed_and_what_is_there_are_said_with_their_sum(free):
    need = Need(None, 2 * 10**9, 5 * 10**8, "batch 8, context 4,096")
    with pytest.raises(NoRoom) as told:
        room.require("memory_budget of m in nf4", need, HERE, {"m in fp16": 270 * 10**6})
    assert str(told.value) == (
        "asked: memory_budget of m in nf4; found: 1 GB free on Zen 4, beside m in fp16 (0.27 GB) of this run; needed: "
        "2 GB of KV cache + at least 0.5 GB of activations = 2.5 GB (batch 8, context 4,096)"
    )


@pytest.mark.parametrize("count", [10**9, int(1.015 * 10**9)])
def test_what_fits_or_misses_by_a_percent_is_tried(free, count):
    room.require("m", Need(weights=count), HERE, {})
    with pytest.raises(NoRoom):
        room.require("m", Need(weights=int(1.03 * 10**9)), HERE, {})


def test_where_nobody_tells_what_is_free_all_is_tried(free):
    free[0] = None
    room.require("m", Need(weights=10**15), HERE, {})
    assert room.explain(HERE, {}) == "unknown free of 24 GB on Zen 4"


def test_an_explanation_has_all_figures(free):
    need = Need(None, 23 * 10**9, None, "batch 1,000, context 512")
    assert room.explain(HERE, {"m in nf4": 170 * 10**6}, need) == (
        "1 GB free of 24 GB on Zen 4, beside m in nf4 (0.17 GB) of this run; predicted: 23 GB of KV cache "
        "(batch 1,000, context 512)"
    )


@pytest.mark.parametrize(
    ("count", "shown"),
    [(140e9, "140 GB"), (5.04e14, "504,000 GB"), (17.25e9, "17.2 GB"), (0.0105e9, "0.0105 GB"), (206_000, "0.206 MB")],
)
def test_gigabytes(count, shown):
    assert room.gigabytes(count) == shown


# a real model, small


class Run:
    """Models of one source."""

    def __init__(self, source: str) -> None:
        self.spec = ModelSpec(ModelSource(source), reference="fp32")
        self.models = Models(HERE, load(), Quiet(), lambda spec, format: None)


@pytest.fixture
def run(tiny_llama) -> Run:
    return Run(str(tiny_llama))


def test_predictions_are_below_what_is_taken(run):
    for name in ("fp32", "bf16", "nf4"):
        handle = run.models.get(run.spec, name)
        for batch, context in ((1, 100), (4, 300)):
            tokens = np.ones((batch, context), dtype=np.int64)
            need = room.needed(handle, Work(batch, context, True))
            assert need is not None
            assert need.kv_cache == handle.loaded.kv_cache_bytes(tokens)
            assert need.activations is not None
            taken = memory.peak_above_start(HERE, lambda: handle.loaded.token_nll(tokens))  # noqa: B023
            assert 0 < need.activations < taken


def test_positions_that_do_not_suffice_are_not_a_question_of_memory(run):
    handle = run.models.get(run.spec, "fp32")
    assert room.needed(handle, Work(1, 513, True)) is None


def test_a_model_that_nobody_can_tell_the_shape_of(run, monkeypatch):
    def refuse(config: Any, trust_remote_code: bool) -> ModelShape:
        raise KeyError("an architecture of its own")

    handle = run.models.get(run.spec, "fp32")
    monkeypatch.setattr("pytest_quant.engines.shape.shape_of", refuse)
    assert room.needed(handle, Work(1, 100, True)) is None


def test_models_that_are_held_are_named(run, free):
    run.models.get(run.spec, "fp32")
    free[0] = 1000
    with pytest.raises(NoRoom, match=r"beside tiny-llama in fp32 \(0\.\d+ MB\) of this run; needed: 0\.\d+ MB for the"):
        run.models.get(run.spec, "nf4")


def test_a_model_that_found_no_room_is_tried_again_when_another_was_given_back(run, free, monkeypatch):
    run.models.get(run.spec, "fp32")
    free[0] = 1000
    with pytest.raises(NoRoom):
        run.models.get(run.spec, "nf4")
    free[0] = 10**9
    with pytest.raises(NoRoom):  # nothing was given back yet
        run.models.get(run.spec, "nf4")
    run.models.keep(())
    assert run.models.get(run.spec, "nf4").proof.format == "nf4"


def test_a_model_that_does_not_fit_alone_is_not_tried_again(run, free, monkeypatch):
    free[0] = 1000
    with pytest.raises(NoRoom):
        run.models.get(run.spec, "nf4")
    free[0] = 10**9
    with pytest.raises(NoRoom):
        run.models.get(run.spec, "nf4")


def test_a_refusal_does_not_keep_the_frames_that_it_went_through(run, free):
    free[0] = 1000
    with pytest.raises(NoRoom) as first:
        run.models.get(run.spec, "nf4")
    (kept,) = run.models._refused.values()
    assert kept.__traceback__ is None
    assert kept.__context__ is None
    assert str(kept) == str(first.value)
    assert isinstance(kept, NoRoom)
    assert kept.needed == first.value.needed


def test_a_folder_with_a_config_alone_is_predicted(tiny_llama, tmp_path, free):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    free[0] = 1000
    with pytest.raises(NoRoom, match="for the weights"):
        Run(str(tmp_path)).models.get(ModelSpec(ModelSource(str(tmp_path)), reference="fp32"), "nf4")


@pytest.fixture
def cached(tiny_llama, tmp_path, monkeypatch) -> Path:
    """A hub model of which the files lie in the hub's local cache."""
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    for file in tiny_llama.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    from huggingface_hub import file_download

    asked = file_download.try_to_load_from_cache

    def local(repo_id: str, filename: str, **arguments: Any) -> Any:
        return asked(repo_id, filename, cache_dir=str(tmp_path / "hub"), **arguments)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", local)
    return snapshot


def test_a_hub_model_is_predicted_from_the_files_in_the_cache(cached, free):
    assert models_module._files(ModelSource("org/tiny")) == cached
    assert models_module._files(ModelSource("org/tiny", revision="0" * 40)) == cached
    assert models_module._files(ModelSource("org/other")) is None
    assert models_module._files(ModelSource("no such/name at all")) is None
    free[0] = 1000
    spec = ModelSpec(ModelSource("org/tiny"), reference="fp32")
    with pytest.raises(NoRoom, match=r"asked: org/tiny in nf4; .* for the weights \(73,728 at"):
        Run("org/tiny").models.get(spec, "nf4")


def test_a_model_that_is_nowhere_is_another_error(free):
    spec = ModelSpec(ModelSource("org/is-not-there"), reference="fp32")
    with pytest.raises(QuantError, match="cannot be loaded as nf4") as told:
        Run("org/is-not-there").models.get(spec, "nf4")
    assert not isinstance(told.value, Unsupported)


def test_hidden_states_are_in_the_type_of_the_table():
    import torch

    def model(table: Any, dtype: Any) -> Any:
        weight = SimpleNamespace(dtype=table)
        return SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight), dtype=dtype)

    assert room.hidden_bits(model(torch.bfloat16, torch.float32)) == 16
    assert room.hidden_bits(model(torch.uint8, torch.float32)) == 32


def test_a_gate_that_is_not_of_memory_has_no_forward():
    assert room.work(Gate("kl_divergence")) is None
