"""What a run knows of a reference, and what it scores: models, stores and gates together, without pytest."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_quant import environment
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.transformers import TransformersModel
from pytest_quant.errors import NotMeasured, StoreWarning, Unsupported, UsageError
from pytest_quant.gates.gate import Gate
from pytest_quant.progress import Quiet
from pytest_quant.reference import DamagedError, Store, StoreError
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

SENTENCE = "The quick brown fox jumps over the lazy dog. "
WINDOWS = 20
PERPLEXITY = Gate("perplexity_delta")
AGREEMENT = Gate("token_agreement")
KL = Gate("kl_divergence")
BOUND = Gate("kl_divergence", (("max_bound", 1e9),))

pytestmark = pytest.mark.usefixtures("libraries")


@pytest.fixture(scope="module")
def kept_models() -> dict[Any, Any]:
    """Loaded once for all sessions of this file: loading is most of the time."""
    return {}


class Run:
    """Sessions over one cache, and the windows that each model scored, by its format."""

    def __init__(self, model: Path, folder: Path, kept: dict[Any, Any]) -> None:
        self.folder = folder
        self.spec = ModelSpec(ModelSource(str(model)), reference="fp32")
        self.scored: Counter[str] = Counter()
        self._kept = kept
        self._names: dict[int, str] = {}
        (folder / "corpus.txt").write_text((SENTENCE * 9)[: 16 * WINDOWS + 5])

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def settings(self, **changed: Any) -> Settings:
        given = {"corpus": str(self.folder / "corpus.txt"), "protocol": "gptq-16", "cache_dir": self.cache}
        return Settings(**{**given, **changed})

    def session(self, *, without: tuple[str, ...] = (), **changed: Any) -> Session:
        session = Session(self.settings(**changed), Quiet())
        load = session.models.get

        def get(spec: ModelSpec, name: str) -> Any:
            if name in without:
                raise Unsupported(name, "a device that is too small", "a larger one")
            if (spec, name) not in self._kept:
                self._kept[spec, name] = load(spec, name)
            handle = self._kept[spec, name]
            self._names[id(handle.loaded)] = name
            return handle

        session.models.get = get
        return session

    def count(self, engine: Any, rows: int) -> None:
        if id(engine) in self._names:  # else it is being loaded
            self.scored[self._names[id(engine)]] += rows

    def stored(self, where: str = "runs/*/references") -> list[Path]:
        return sorted(self.cache.glob(f"{where}/*.safetensors"))


@pytest.fixture
def run(tiny_llama, tmp_path, monkeypatch, kept_models) -> Run:
    made = Run(tiny_llama, tmp_path, kept_models)
    predict = TransformersModel.predict

    def counted(engine: Any, tokens: Any, scored_from: int = 1) -> Any:
        made.count(engine, len(tokens))
        return predict(engine, tokens, scored_from)

    monkeypatch.setattr(TransformersModel, "predict", counted)
    return made


def whole(session: Session, run: Run, format_name: str, gate: Gate) -> Any:
    """The pair of a gate, all windows scored."""
    pair = session.quality.pair(run.spec, format_name, gate)
    while len(pair.scores) < session.quality.total(run.spec):
        session.quality.extend(run.spec, format_name, pair)
    return pair


def alike(a: Any, b: Any, names: tuple[str, ...] = ("nll", "reference_nll", "agree", "bound")) -> bool:
    return len(a.scores) == len(b.scores) and all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a.scores, b.scores, strict=True)
        for name in names
    )


def same_numbers(a: Any, b: Any) -> bool:
    return {name: q.value for name, q in a.quantities.items()} == {name: q.value for name, q in b.quantities.items()}


def test_all_windows_are_scored_once_and_the_evidence_is_complete(run):
    session = run.session()
    pair = whole(session, run, "int8", PERPLEXITY)
    evidence = session.quality.evidence(run.spec, "int8", pair)
    assert session.quality.total(run.spec) == len(pair.scores) == WINDOWS
    assert evidence.complete
    assert not evidence.has_kl
    assert evidence.reference_mean == pytest.approx(np.mean(evidence.reference_nll), rel=1e-9)
    assert run.scored == {"fp32": WINDOWS, "int8": WINDOWS}


def test_the_evidence_does_not_know_the_references_mean_before_the_end(run):
    session = run.session()
    pair = session.quality.pair(run.spec, "int8", PERPLEXITY)
    for _ in range(3):
        session.quality.extend(run.spec, "int8", pair)
    evidence = session.quality.evidence(run.spec, "int8", pair)
    assert (len(evidence.scores), evidence.total, evidence.reference_mean) == (3, WINDOWS, None)


def test_a_second_format_does_not_run_the_reference_again(run):
    session = run.session()
    first, second = (whole(session, run, name, PERPLEXITY) for name in ("int8", "nf4"))
    assert run.scored == {"fp32": WINDOWS, "int8": WINDOWS, "nf4": WINDOWS}
    assert alike(first, second, ("reference_nll",))
    assert not alike(first, second, ("nll",))


def test_a_second_format_runs_the_reference_only_where_the_first_stopped(run):
    session = run.session()
    pair = session.quality.pair(run.spec, "int8", PERPLEXITY)
    for _ in range(5):
        session.quality.extend(run.spec, "int8", pair)
    whole(session, run, "nf4", PERPLEXITY)
    assert run.scored == {"fp32": WINDOWS, "int8": 5, "nf4": WINDOWS}


def test_a_later_run_does_not_run_the_reference_again(run):
    session = run.session()
    first = session.measure(run.spec, "int8", PERPLEXITY)
    assert first.windows == (WINDOWS, WINDOWS)
    assert first.reference_stored == 0
    run.scored.clear()
    later = run.session(without=("fp32",))
    assert later.quality.knows_reference(run.spec)
    again = later.measure(run.spec, "int8", PERPLEXITY)
    assert run.scored == {"int8": WINDOWS}
    assert same_numbers(first, again)
    assert again.reference_stored == WINDOWS


def test_the_windows_of_a_divergence_serve_perplexity_and_agreement(run):
    session = run.session()
    diverged = session.measure(run.spec, "nf4", KL)
    run.scored.clear()
    others = [session.measure(run.spec, "nf4", gate) for gate in (PERPLEXITY, AGREEMENT, BOUND)]
    assert run.scored == {}
    assert (diverged.main, others[2].main) == ("mean", "bound")
    assert diverged.quantities["bound"] == others[2].quantities["bound"]
    assert 0.0 < diverged.quantities["bound"].value <= diverged.value * 1.01 + 1e-5


def test_what_is_expected_decides_that_both_models_are_run_from_the_start(run):
    session = run.session()
    session.expect(run.spec, "nf4", KL)
    session.measure(run.spec, "nf4", PERPLEXITY)
    run.scored.clear()
    session.measure(run.spec, "nf4", KL)
    assert run.scored == {}


def test_what_is_not_expected_takes_a_second_look_at_the_windows(run):
    session = run.session()
    session.expect(run.spec, "nf4", BOUND)
    session.expect(run.spec, "int8", KL)
    pair = whole(session, run, "nf4", PERPLEXITY)
    assert not pair.beside
    assert session.quality.pair(run.spec, "nf4", KL).beside
    assert session.quality.pair(run.spec, "nf4", PERPLEXITY).beside, "and serves every question from then on"


def test_both_ways_to_score_say_the_same(run):
    session = run.session()
    apart = whole(session, run, "nf4", PERPLEXITY)
    beside = whole(session, run, "nf4", KL)
    assert alike(apart, beside)


def test_a_format_is_never_measured_against_itself(run):
    session = run.session()
    with pytest.raises(UsageError, match="fp32 is the reference itself"):
        session.measure(run.spec, "fp32", PERPLEXITY)


@pytest.mark.parametrize("gate", [PERPLEXITY, AGREEMENT, KL, BOUND], ids=lambda gate: gate.metric)
def test_a_reference_that_was_stored_on_purpose_need_not_be_loaded(run, gate):
    run.session().quality.build_reference(run.spec)
    run.scored.clear()
    session = run.session(without=("fp32",), full=True)
    session.expect(run.spec, "int8", gate)
    measured = session.measure(run.spec, "int8", gate)
    assert measured.windows == (WINDOWS, WINDOWS)
    assert measured.reference_stored == WINDOWS
    assert run.scored == {"int8": WINDOWS}
    assert bool(measured.lower_bounds) == (gate.metric == "kl_divergence")


def test_a_reference_that_was_built_here_stands_for_one_where_a_bound_is_enough(run):
    run.session().quality.build_reference(run.spec)
    run.scored.clear()
    assert run.session().measure(run.spec, "int8", PERPLEXITY).reference_stored == WINDOWS
    assert run.scored == {"int8": WINDOWS}
    assert run.session().measure(run.spec, "int8", KL).main == "mean", "both models fit, so both are run"
    assert run.scored == {"int8": 2 * WINDOWS, "fp32": WINDOWS}


def test_an_imported_reference_always_stands_for_the_model(run):
    path = run.session().quality.build_reference(run.spec)
    other = run.folder / "elsewhere"
    Store(other).import_(path)
    run.scored.clear()
    assert run.session(cache_dir=other).measure(run.spec, "int8", KL).main == "bound"
    assert run.scored == {"int8": WINDOWS}


@pytest.mark.parametrize("who", ["fp32", "int8"])
def test_a_model_that_somebody_changed_is_not_measured_and_nothing_is_kept_of_it(run, who):
    session = Session(run.settings(), Quiet())
    hook = session.model(run.spec, who).model.register_forward_hook(lambda *_: None)
    with pytest.raises(NotMeasured, match=f"the test's body changed the {who} model"):
        session.measure(run.spec, "int8", PERPLEXITY)
    assert run.stored() == []
    hook.remove()
    assert session.measure(run.spec, "int8", PERPLEXITY).windows == (WINDOWS, WINDOWS)


def test_what_a_changed_model_answered_is_forgotten(run):
    session = Session(run.settings(), Quiet())
    session.measure(run.spec, "int8", PERPLEXITY)
    pair = session.quality.pair(run.spec, "int8", PERPLEXITY)
    session.model(run.spec, "int8").model.train()
    assert session.drop_changed() == ["int8"]
    assert session.quality.pair(run.spec, "int8", PERPLEXITY) is not pair
    assert session.measure(run.spec, "int8", PERPLEXITY).windows == (WINDOWS, WINDOWS)


def test_a_reference_that_is_neither_stored_nor_to_be_had_is_a_skip(run):
    for gate in (PERPLEXITY, KL):
        with pytest.raises(Unsupported, match="too small"):
            run.session(without=("fp32",)).measure(run.spec, "int8", gate)


def test_what_was_learned_by_the_way_gives_a_bound_where_the_reference_cannot_be_loaded(run):
    run.session().measure(run.spec, "int8", PERPLEXITY)
    measured = run.session(without=("fp32",)).measure(run.spec, "int8", KL)
    assert measured.main == "bound"
    assert "lower bound" in measured.caveat


def test_a_build_believes_nothing_that_is_stored(run):
    run.session().measure(run.spec, "int8", PERPLEXITY)
    run.scored.clear()
    for _ in range(2):
        path = run.session().quality.build_reference(run.spec)
        assert path == run.stored("references")[0]
    assert run.scored == {"fp32": 2 * WINDOWS}


def test_a_build_of_fewer_windows_keeps_the_longer(run):
    run.session().build_reference(run.spec)
    with pytest.raises(StoreError, match=f"holds {WINDOWS} windows, more than the 9 that were built now"):
        run.session(max_windows=9).build_reference(run.spec)


def test_an_incomplete_stored_reference_is_extended(run):
    run.session(max_windows=9).quality.build_reference(run.spec)
    run.scored.clear()
    session = run.session()
    assert not session.quality.knows_reference(run.spec)
    pair = whole(session, run, "int8", PERPLEXITY)
    assert run.scored == {"fp32": WINDOWS - 9, "int8": WINDOWS}
    session.quality.save(run.spec)
    fresh = run.session(cache_dir=run.folder / "other")
    assert alike(pair, whole(fresh, run, "int8", PERPLEXITY))
    assert not run.session().quality.knows_reference(run.spec), "what another stack may have begun is not continued"


def test_a_longer_stored_reference_serves_fewer_windows(run):
    run.session().quality.build_reference(run.spec)
    session = run.session(without=("fp32",), max_windows=9)
    measured = session.measure(run.spec, "int8", PERPLEXITY)
    assert measured.windows == (9, 9)
    fresh = run.session(max_windows=9, cache_dir=run.folder / "other").measure(run.spec, "int8", PERPLEXITY)
    assert same_numbers(measured, fresh)


def test_a_damaged_store_of_ones_own_is_told_and_built_anew(run):
    first = run.session().measure(run.spec, "int8", PERPLEXITY)
    (path,) = run.stored()
    path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    with pytest.warns(StoreWarning, match="the stored reference is not used"):
        again = run.session().measure(run.spec, "int8", PERPLEXITY)
    assert same_numbers(first, again)
    assert run.scored["fp32"] == 2 * WINDOWS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.session(without=("fp32",)).quality.knows_reference(run.spec)


def test_a_damaged_store_that_was_kept_on_purpose_is_an_error(run):
    path = run.session().quality.build_reference(run.spec)
    path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    with pytest.raises(DamagedError, match="is damaged"):
        run.session().measure(run.spec, "int8", PERPLEXITY)


@pytest.mark.parametrize("where", ["references", "runs/*/references"], ids=["on purpose", "ones own"])
def test_a_store_of_another_protocol_is_never_used(run, where):
    """A file under another's name says so itself."""
    session = run.session(protocol="gptq-8")
    session.measure(run.spec, "int8", PERPLEXITY)
    session.quality.build_reference(run.spec)
    (other,) = run.stored(where)
    key = run.session().quality.known(run.spec)._key
    shutil.move(other, other.with_name(f"{key.digest}.safetensors"))
    if where == "references":
        with pytest.raises(DamagedError, match="it was renamed"):
            run.session().quality.known(run.spec)
    else:
        with pytest.warns(StoreWarning, match="it was renamed"):
            assert len(run.session().quality.known(run.spec)) == 0


def test_a_disk_that_refuses_is_only_a_warning(run, monkeypatch):
    def refuse(store: Store, reference: Any, anew: bool = False) -> Path:
        raise StoreError(f"{store.folder}: No space left on device (ENOSPC).")

    monkeypatch.setattr(Store, "write", refuse)
    session = run.session()
    with pytest.warns(StoreWarning, match="the reference was not stored: .*ENOSPC") as told:
        measured = session.measure(run.spec, "int8", PERPLEXITY)
    assert measured.windows == (WINDOWS, WINDOWS)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.measure(run.spec, "nf4", PERPLEXITY)
    with pytest.raises(StoreError, match="ENOSPC"):
        session.quality.build_reference(run.spec)


def test_a_reference_of_no_number_is_not_stored(run, monkeypatch):
    top = TransformersModel.top

    def broken(engine: Any, *arguments: Any) -> Any:
        nll, kept = top(engine, *arguments)
        return nll * np.float32("nan"), kept

    monkeypatch.setattr(TransformersModel, "top", broken)
    session = run.session()
    with pytest.raises(NotMeasured, match="the fp32 reference gave no finite perplexity"):
        session.measure(run.spec, "int8", PERPLEXITY)
    assert run.stored() == []


def test_the_floor_of_a_stored_reference_is_near_nothing(run):
    session = run.session()
    session.quality.build_reference(run.spec)
    assert 0.0 <= session.quality.floor(run.spec) < 1e-5


def test_what_another_stack_learned_is_not_used(run, monkeypatch):
    run.session().measure(run.spec, "int8", PERPLEXITY)
    run.scored.clear()
    monkeypatch.setattr(environment, "packages", lambda: {"torch": "0.0.1", "transformers": "5.0.0"})
    session = run.session()
    assert not session.quality.knows_reference(run.spec)
    session.measure(run.spec, "int8", PERPLEXITY)
    assert run.scored["fp32"] == WINDOWS
    assert len(run.stored()) == 2


def test_what_was_stored_on_purpose_counts_whatever_stack_built_it(run, monkeypatch):
    run.session().quality.build_reference(run.spec)
    monkeypatch.setattr(environment, "packages", lambda: {"torch": "0.0.1", "transformers": "5.0.0"})
    assert run.session(without=("fp32",)).quality.knows_reference(run.spec)


def test_the_reference_now_is_not_what_was_stored(run):
    run.session().quality.build_reference(run.spec)
    run.scored.clear()
    session = run.session()
    found = session.reference_now(run.spec, 5)
    assert run.scored == {"fp32": 5}
    stored = session.quality.known(run.spec).windows(0, 5)
    assert found == pytest.approx([float(window.nll.mean(dtype=float)) for window in stored], rel=1e-6)
    assert len(session.reference_now(run.spec, 99)) == WINDOWS


def test_tokens_beyond_the_models_vocabulary_are_refused(run, tiny_llama, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "small-vocabulary"
    shutil.copytree(tiny_llama, folder)
    config = LlamaConfig.from_pretrained(tiny_llama)
    config.vocab_size = 100
    LlamaForCausalLM(config).save_pretrained(folder)
    spec = ModelSpec(ModelSource(str(folder)), reference="fp32")
    for gate in (PERPLEXITY, KL):
        with pytest.raises(UsageError, match=r"gives token \d+, but the model knows 100"):
            run.session().measure(spec, "int8", gate)
    with pytest.raises(UsageError, match="but the model knows 100"):
        run.session().quality.build_reference(spec)


def test_windows_that_are_too_long_for_the_model_are_refused(run):
    (run.folder / "corpus.txt").write_text(SENTENCE * 40)
    with pytest.raises(UsageError, match="do not fit the model's 512 positions"):
        run.session(protocol="gptq-600").measure(run.spec, "int8", PERPLEXITY)


@pytest.fixture
def scarce(run, monkeypatch) -> list[int]:
    """Eight windows fit by what is reckoned, three by what is there; the batches that were tried."""
    import torch

    predict, tried = TransformersModel.predict, []

    def limited(engine: Any, tokens: Any, scored_from: int = 1) -> Any:
        tried.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return predict(engine, tokens, scored_from)

    monkeypatch.setattr(TransformersModel, "windows_at_once", lambda engine, length: 8)
    monkeypatch.setattr(TransformersModel, "predict", limited)
    return tried


def test_where_memory_does_not_suffice_for_eight_windows_two_are_scored_at_once(run, scarce):
    session = run.session()
    pair = whole(session, run, "nf4", PERPLEXITY)
    assert scarce[:3] == [8, 4, 2]
    assert set(scarce[3:]) == {2}
    assert run.scored == {"fp32": WINDOWS, "nf4": WINDOWS}
    alone = whole(run.session(cache_dir=run.folder / "other"), run, "nf4", PERPLEXITY)
    assert alike(pair, alone)


def test_a_divergence_is_scored_in_smaller_batches_too(run, scarce):
    session = run.session()
    pair = whole(session, run, "nf4", KL)
    assert scarce[:3] == [8, 4, 2]
    assert run.scored == {"fp32": WINDOWS, "nf4": WINDOWS}
    assert session.quality.evidence(run.spec, "nf4", pair).has_kl


def test_windows_have_no_company_where_activations_are_quantized(run, scarce):
    session = run.session()
    whole(session, run, "int8", KL)
    assert set(scarce) == {1}


def test_a_build_goes_on_in_smaller_batches_where_memory_does_not_suffice(run, scarce):
    run.session().quality.build_reference(run.spec)
    assert run.scored == {"fp32": WINDOWS}


def test_the_reference_now_is_scored_in_smaller_batches_where_memory_does_not_suffice(run, scarce):
    assert len(run.session().reference_now(run.spec, 6)) == 6


def test_memory_that_does_not_suffice_for_one_window_is_no_measurement(run, monkeypatch):
    import torch

    def never(engine: Any, tokens: Any, scored_from: int = 1) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    session = run.session()
    session.model(run.spec, "nf4"), session.model(run.spec, "fp32")
    monkeypatch.setattr(TransformersModel, "windows_at_once", lambda engine, length: 8)
    monkeypatch.setattr(TransformersModel, "predict", never)
    with pytest.raises(NotMeasured, match="out of memory while measuring perplexity_delta"):
        session.measure(run.spec, "nf4", PERPLEXITY)


def test_an_error_that_is_not_of_memory_is_not_tried_again(run, monkeypatch):
    tried = []

    def broken(engine: Any, tokens: Any, scored_from: int = 1) -> Any:
        tried.append(len(tokens))
        raise RuntimeError("a kernel that is not there")

    session = run.session()
    session.model(run.spec, "nf4"), session.model(run.spec, "fp32")
    monkeypatch.setattr(TransformersModel, "windows_at_once", lambda engine, length: 8)
    monkeypatch.setattr(TransformersModel, "predict", broken)
    with pytest.raises(RuntimeError, match="a kernel that is not there"):
        session.measure(run.spec, "nf4", PERPLEXITY)
    assert tried == [8]


def test_a_clear_limit_is_decided_before_the_end_unless_all_is_asked_for(run):
    gate = Gate("perplexity_delta", (("max_ratio", 1e6),))
    early = run.session().measure(run.spec, "int8", gate)
    assert early.windows[0] < WINDOWS
    assert early.quantities["ratio"].high <= 1e6
    full = run.session(full=True).measure(run.spec, "int8", gate)
    assert full.windows == (WINDOWS, WINDOWS)
    assert full.quantities["ratio"].is_exact


def test_words_are_counted_where_the_protocol_counts_them(run):
    session = run.session(protocol="lm-eval-word-16")
    pair = whole(session, run, "nf4", KL)
    evidence = session.quality.evidence(run.spec, "nf4", pair)
    assert evidence.unit == "word"
    assert all(score.weight < score.scored for score in pair.scores)
    words = sum(score.weight for score in pair.scores)
    assert evidence.reference_mean == pytest.approx(
        sum(float(s.reference_nll.sum(dtype=float)) for s in pair.scores) / words, rel=1e-9
    )


def test_a_pair_whose_reference_is_run_anew_does_not_say_that_it_was_stored(run):
    run.session().measure(run.spec, "int8", PERPLEXITY)
    run.scored.clear()
    measured = run.session().measure(run.spec, "int8", KL)
    assert run.scored["fp32"] == WINDOWS
    assert measured.reference_stored == 0
