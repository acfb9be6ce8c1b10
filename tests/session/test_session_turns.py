"""A format and its reference that are never in memory together: what is loaded when, and that nothing else changes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_models import SENTENCE

from pytest_quant import models as models_module
from pytest_quant.engines import loading, memory
from pytest_quant.engines.source import ModelSource
from pytest_quant.gates.gate import Gate
from pytest_quant.models import Models
from pytest_quant.progress import Quiet
from pytest_quant.room import NoRoom
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

WINDOWS = 40
PERPLEXITY = Gate("perplexity_delta")
LIMITED = Gate("perplexity_delta", (("max", 1e6),))
AGREEMENT = Gate("token_agreement")
KL = Gate("kl_divergence")
RATIO = Gate("memory_budget", (("max_ratio", 1.0),), (("of", "weights"), ("batch_size", 1), ("context", 64)))

pytestmark = pytest.mark.usefixtures("libraries")


class Run:
    """Sessions over one cache on a device of which the free memory is told, with what each loaded and held."""

    def __init__(self, model: Path, folder: Path, monkeypatch: Any) -> None:
        self.folder = folder
        self.spec = ModelSpec(ModelSource(str(model)), reference="fp32")
        self.loaded: list[str] = []
        self.held: list[set[str]] = []
        self.capacity: int | None = None
        self._monkeypatch = monkeypatch
        self._models: Models | None = None
        (folder / "corpus.txt").write_text((SENTENCE * 20)[: 16 * WINDOWS + 5])
        monkeypatch.setattr(memory, "free_bytes", self._free)
        load = loading.load

        def noted(source: Any, format: Any, *rest: Any, **more: Any) -> Any:
            found = load(source, format, *rest, **more)
            self.loaded.append(format.name)
            assert self._models is not None
            self.held.append({name for _, name in self._models._held} | {format.name})
            return found

        monkeypatch.setattr(models_module.loading, "load", noted)

    def _free(self, device: Any) -> int | None:
        if self.capacity is None or self._models is None:
            return None
        return self.capacity - sum(self._models.held_bytes().values())

    def session(self, cache: str = "cache", **changed: Any) -> Session:
        given = {"corpus": str(self.folder / "corpus.txt"), "protocol": "gptq-16", "cache_dir": self.folder / cache}
        session = Session(Settings(**{**given, **changed}), Quiet())
        self._models = session.models
        self.loaded.clear()
        self.held.clear()
        return session

    @property
    def together(self) -> bool:
        """Whether two models were ever held at once."""
        return any(len(names) > 1 for names in self.held)


@pytest.fixture
def run(tiny_llama, tmp_path, monkeypatch) -> Run:
    return Run(tiny_llama, tmp_path, monkeypatch)


@pytest.fixture
def room_for_one(run) -> int:
    """Bytes in which the reference fits, and no format beside it."""
    session = run.session("sizes")
    reference, *formats = (session.model(run.spec, name).weight_bytes for name in ("fp32", "int8", "nf4"))
    assert min(formats) > reference * 0.1
    return int(reference * 1.02)


def same(a: Any, b: Any) -> bool:
    return (
        dict(a.quantities) == dict(b.quantities)
        and tuple(a.scores) == tuple(b.scores)
        and tuple(a.reference_scores or ()) == tuple(b.reference_scores or ())
        and a.windows == b.windows
    )


@pytest.mark.parametrize("gate", [PERPLEXITY, AGREEMENT], ids=lambda gate: gate.metric)
def test_quality_is_the_same_and_no_two_models_are_held(run, room_for_one, gate):
    wide = run.session("wide").measure(run.spec, "int8", gate)
    assert run.together
    run.capacity = room_for_one
    apart = run.session("apart").measure(run.spec, "int8", gate)
    assert same(wide, apart)
    assert run.loaded == ["int8", "fp32", "int8"]
    assert not run.together


def test_a_verdict_that_comes_early_is_that_of_a_reference_that_is_known_throughout(run, room_for_one):
    """All of the reference is known after its turn, which makes an early interval narrower, as a stored one does."""
    run.session("wide").measure(run.spec, "int8", PERPLEXITY)
    wide = run.session("wide").measure(run.spec, "int8", LIMITED)
    run.capacity = room_for_one
    apart = run.session("apart").measure(run.spec, "int8", LIMITED)
    assert same(wide, apart)
    assert apart.windows[0] < apart.windows[1]


def test_the_reference_is_loaded_once_for_all_formats_and_gates(run, room_for_one):
    run.capacity = room_for_one
    session = run.session()
    for name in ("int8", "nf4"):
        session.models.keep({(run.spec, name), (run.spec, "fp32")})  # as a run does between tests
        for gate in (LIMITED, AGREEMENT, PERPLEXITY):
            session.measure(run.spec, name, gate)
    assert Counter(run.loaded) == {"fp32": 1, "int8": 2, "nf4": 1}
    assert not run.together


def test_a_later_run_does_not_load_the_reference(run, room_for_one):
    run.capacity = room_for_one
    first = run.session().measure(run.spec, "int8", LIMITED)
    later = run.session().measure(run.spec, "int8", LIMITED)
    assert run.loaded == ["int8"]
    assert same(first, later)


def test_a_map_that_could_offload_takes_turns_first(run, room_for_one):
    """The reference fits alone: offloaded beside the format it would be slow for nothing."""
    from dataclasses import replace

    from pytest_quant.placement import parse

    run.spec = replace(run.spec, placement=parse("auto"))
    run.capacity = room_for_one
    session = run.session()
    session.measure(run.spec, "int8", PERPLEXITY)
    assert run.loaded == ["int8", "fp32", "int8"]
    assert not run.together


def test_the_divergence_is_a_lower_bound_and_says_so(run, room_for_one):
    wide = run.session("wide").measure(run.spec, "int8", KL)
    run.capacity = room_for_one
    apart = run.session("apart").measure(run.spec, "int8", KL)
    assert wide.main == "mean"
    assert "lower bound" in apart.caveat
    assert "lower bound" not in wide.caveat
    assert 0 < apart.quantities[apart.main].value <= wide.quantities["mean"].value + 1e-6
    assert not run.together


def test_memory_that_runs_out_while_the_second_is_loaded_leads_to_turns(run, monkeypatch):
    """Nothing predicts it: the library's loader fails."""
    wide = run.session("wide").measure(run.spec, "int8", PERPLEXITY)
    session = run.session("apart")
    load = models_module.loading.load

    def scarce(source: Any, format: Any, *rest: Any, **more: Any) -> Any:
        if session.models._held:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return load(source, format, *rest, **more)

    monkeypatch.setattr(models_module.loading, "load", scarce)
    assert same(wide, session.measure(run.spec, "int8", PERPLEXITY))
    assert run.loaded == ["int8", "fp32", "int8"]


def test_memory_that_runs_out_while_both_work_leads_to_turns(run, monkeypatch):
    from pytest_quant.engines.transformers import TransformersModel

    wide = run.session("wide").measure(run.spec, "int8", PERPLEXITY)
    session = run.session("apart")
    top = TransformersModel.top

    def scarce(model: Any, *asked: Any) -> Any:
        if len(session.models._held) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return top(model, *asked)

    monkeypatch.setattr(TransformersModel, "top", scarce)
    assert same(wide, session.measure(run.spec, "int8", PERPLEXITY))
    assert run.loaded == ["int8", "fp32", "fp32", "int8"]


def test_a_reference_that_does_not_fit_alone_is_refused_once_and_the_format_is_kept(run, room_for_one, monkeypatch):
    session = run.session()
    smallest = min(session.model(run.spec, name).weight_bytes for name in ("int8", "nf4"))
    session = run.session()
    run.capacity = int(smallest * 1.1)
    format_name = "nf4"
    for gate in (PERPLEXITY, AGREEMENT):
        with pytest.raises(NoRoom, match="in fp32; found: "):
            session.measure(run.spec, format_name, gate)
    assert run.loaded == [format_name, format_name]


def test_a_ratio_of_bytes_needs_one_at_a_time(run, room_for_one):
    wide = run.session("wide").measure(run.spec, "int8", RATIO)
    run.capacity = room_for_one
    apart = run.session("apart").measure(run.spec, "int8", RATIO)
    assert dict(wide.quantities) == dict(apart.quantities)
    assert wide.proof["weight_bytes"] == apart.proof["weight_bytes"]
    assert run.loaded == ["int8", "fp32"]
    assert not run.together


def test_continuations_take_one_turn_for_all_formats(run, room_for_one):
    gate = Gate("generation_match", (), (("limit", 6), ("max_new_tokens", 4)))
    session = run.session("wide")
    wide = [session.measure(run.spec, name, gate) for name in ("int8", "nf4")]
    run.capacity = room_for_one
    session = run.session("apart")
    apart = []
    for name in ("int8", "nf4"):
        session.models.keep({(run.spec, name), (run.spec, "fp32")})
        apart.append(session.measure(run.spec, name, gate))
    assert all(same(a, b) and dict(a.detail) == dict(b.detail) for a, b in zip(wide, apart, strict=True))
    assert Counter(run.loaded)["fp32"] == 1
    assert not run.together
    assert all(each.proof["reference_difference"] > 0 for each in apart)


def test_items_of_a_task_take_turns(run, room_for_one, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    documents = [{"text": f"The quick brown {n}", "a": " fox", "b": " dog", "label": n % 2} for n in range(12)]
    (tasks / "docs.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (tasks / "choose.yaml").write_text(
        f"""task: choose_turns
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tasks / "docs.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{[a, b]}}}}"
doc_to_target: label
metric_list:
  - metric: acc
"""
    )
    gate = Gate("task_accuracy", (), (("task", "choose_turns"), ("include_path", str(tasks))))
    wide = run.session("wide").measure(run.spec, "int8", gate)
    run.capacity = room_for_one
    session = run.session("apart")
    apart = session.measure(run.spec, "int8", gate)
    assert same(wide, apart)
    assert run.loaded == ["int8", "fp32", "int8"]
    session.models.keep(())
    session.measure(run.spec, "nf4", gate)
    assert run.loaded == ["int8", "fp32", "int8", "nf4"]
    assert not run.together
