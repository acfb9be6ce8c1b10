"""Sessions of several workers in one run: the reference scores each window once, to the same bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pytest_quant.engines.source import ModelSource
from pytest_quant.gates.gate import Gate
from pytest_quant.metrics import pairing
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

WINDOWS = 20
LOOSE = Gate("perplexity_delta", (("max_ratio", 1e9),))
PERPLEXITY, AGREEMENT, KL = (Gate(name) for name in ("perplexity_delta", "token_agreement", "kl_divergence"))

pytestmark = pytest.mark.usefixtures("libraries")


class Workers:
    def __init__(self, model: Path, folder: Path) -> None:
        self.spec = ModelSpec(ModelSource(str(model)), reference="fp32")
        self.folder, self.together = folder, folder / "together"
        self.together.mkdir()
        (folder / "corpus.txt").write_text(("The quick brown fox jumps over the lazy dog. " * 9)[: 16 * WINDOWS + 5])

    def session(self, cache: str = "cache", *, alone: bool = False) -> Session:
        corpus = str(self.folder / "corpus.txt")
        together = None if alone else self.together
        settings = Settings(corpus=corpus, protocol="gptq-16", cache_dir=self.folder / cache, together=together)
        return Session(settings, Quiet())


@pytest.fixture
def workers(tiny_llama, tmp_path) -> Workers:
    return Workers(tiny_llama, tmp_path)


@pytest.fixture
def scored(monkeypatch) -> Counter[str]:
    """Windows that the reference scored by itself."""
    found: Counter[str] = Counter()
    score = pairing.score_reference

    def counted(model, batch, top_k):
        found["reference"] += len(batch)
        return score(model, batch, top_k)

    monkeypatch.setattr(pairing, "score_reference", counted)
    return found


def test_what_another_worker_scored_meanwhile_is_not_scored_again(workers, scored):
    one, other = workers.session(), workers.session()
    assert len(other.quality.known(workers.spec)) == 0, "it began when nothing was known"
    first = one.measure(workers.spec, "bf16", PERPLEXITY)
    assert scored["reference"] == WINDOWS
    second = other.measure(workers.spec, "bf16", PERPLEXITY)
    assert scored["reference"] == WINDOWS
    assert second.scores == first.scores
    assert second.reference_scores == first.reference_scores
    assert second.quantities == first.quantities


def test_from_another_worker_or_from_the_own_memory_the_bits_are_the_same(workers, scored):
    """Of the divergence over the stored top tokens as well, which are kept in 16 bits either way."""
    bound = Gate("kl_divergence", (("max_bound", 1e9),))
    workers.session().measure(workers.spec, "bf16", PERPLEXITY)
    other = workers.session()
    there = [other.measure(workers.spec, "bf16", gate) for gate in (PERPLEXITY, AGREEMENT, bound)]
    alone = workers.session("other", alone=True)
    here = [alone.measure(workers.spec, "bf16", gate) for gate in (PERPLEXITY, AGREEMENT, bound)]
    for a, b in zip(there, here, strict=True):
        assert (a.scores, a.reference_scores, a.quantities) == (b.scores, b.reference_scores, b.quantities)
    assert scored["reference"] == 2 * WINDOWS


def test_what_the_run_itself_learned_does_not_count_as_stored_before_it(workers):
    workers.session().measure(workers.spec, "bf16", PERPLEXITY)
    late = workers.session()
    assert late.measure(workers.spec, "bf16", PERPLEXITY).reference_stored == 0
    later_run = workers.session(alone=True)
    assert later_run.measure(workers.spec, "bf16", PERPLEXITY).reference_stored == WINDOWS


def test_a_look_ahead_is_scored_at_once_and_no_further(workers, scored):
    """The lock is taken once a look: the first one is 8 windows, and a loose limit needs no second."""
    used = workers.session().measure(workers.spec, "bf16", LOOSE).windows[0]
    assert used < WINDOWS
    assert scored["reference"] == used


def test_one_process_takes_no_lock(workers, monkeypatch):
    filelock = pytest.importorskip("filelock")
    taken = []
    acquire = filelock.FileLock.acquire

    def told(self, *arguments, **named):
        taken.append(Path(self.lock_file).name)
        return acquire(self, *arguments, **named)

    monkeypatch.setattr(filelock.FileLock, "acquire", told)
    workers.session(alone=True).measure(workers.spec, "bf16", PERPLEXITY)
    assert not [name for name in taken if name.startswith(("reference-", "fingerprint"))]
    workers.session("other").measure(workers.spec, "bf16", PERPLEXITY)
    assert {name.partition("-")[0] for name in taken if not name.startswith(".")} >= {"reference", "fingerprint.lock"}


def test_the_company_is_gone_once_the_controller_says_so(workers):
    settings = Settings(workers=3, together=workers.together)
    assert settings.company == 3
    (workers.together / "alone").touch()
    assert settings.company == 1
    assert Settings(workers=3).company == 3
