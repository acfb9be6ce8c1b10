"""On a CUDA device: memory that really does not suffice, and comes back; NVML's word, the allocator's and predictions.
Ready to run where one is."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

WORKSPACES = 64 << 20
"""Bytes that libraries keep from their first call on."""

KV = """
import pytest

@pytest.mark.quant(formats=["fp16"], reference="fp32")
@pytest.mark.memory_budget(max_gb=1)
@pytest.mark.memory_budget(max_gb=1, of="kv_cache", batch_size=1, context=100)
@pytest.mark.memory_budget(max_gb=1, of="kv_cache", batch_size=4, context=1000)
@pytest.mark.memory_budget(max_gb=4, of="activations", context=256)
@pytest.mark.memory_budget(max_gb=4, of="peak", context=256)
def test_memory(quant_model): ...
"""


@pytest.fixture
def hog():
    """Takes the device's memory but for so many bytes, until the test ends."""
    held = []

    def take(all_but: int) -> None:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        while (size := min(free - all_but, 1 << 30)) > 0:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            free = torch.cuda.mem_get_info()[0]

    yield take, held
    held.clear()
    torch.cuda.empty_cache()


@pytest.fixture
def session(smollm2, tmp_path):
    from pytest_quant.progress import Quiet
    from pytest_quant.session import Session
    from pytest_quant.settings import Settings

    return Session(Settings(protocol="gptq-512", cache_dir=tmp_path), Quiet())


@pytest.fixture
def spec(smollm2):
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.spec import ModelSpec

    return ModelSpec(ModelSource(str(smollm2)), reference="fp16")


def test_the_kv_cache_in_fp16_is_as_predicted(real_project):
    real_project.ini(f"quant_model = {real_project.model}")
    real_project.test(KV)
    result, record = real_project.record()
    assert result.ret == 0
    found = {(one["parameters"]["of"], one["parameters"]["context"]): one for one in record["measurements"]}
    for batch, context in ((1, 100), (4, 1000)):
        measured = found["kv_cache", context]
        assert measured["value"] == measured["kv_predicted_bytes"] == 2 * 30 * 3 * 64 * 2 * batch * context
    peak = found["peak", 256]
    assert peak["value"] == peak["weight_bytes"] + peak["activation_bytes"]
    assert found["activations", 256]["value"] == pytest.approx(peak["activation_bytes"], rel=0.1)


def test_what_the_driver_says_is_more_than_the_allocator_counts(session, spec):
    from pytest_quant.hardware import process_memory

    session.model(spec, "fp16")
    told = process_memory.figures(session.device)
    assert len(told) == 1
    (held,) = told.values()
    assert held >= torch.cuda.memory_reserved(), "the context and the libraries are in it too"
    if "process_bytes" in told:
        assert held < torch.cuda.memory_reserved() + 4e9


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(session, spec, hog):
    from pytest_quant.room import NoRoom

    take, _held = hog
    take(100 << 20)
    with pytest.raises(NoRoom, match=r"MB free on .*; needed: 0\.\d+ GB for the weights"):
        session.model(spec, "fp16")


def test_out_of_memory_while_loading_is_caught_and_the_device_usable(session, spec, hog, monkeypatch):
    from pytest_quant import room
    from pytest_quant.room import NoRoom
    from pytest_quant.session import Session

    torch.cuda.synchronize()
    take, held = hog
    take(60 << 20)
    taken = torch.cuda.memory_allocated()
    with monkeypatch.context() as patched:
        patched.setattr(room, "require", lambda *arguments: None)
        for name in ("fp16", "nf4"):
            with pytest.raises(NoRoom, match="out of memory while loading it"):
                session.model(spec, name)
            assert torch.cuda.memory_allocated() <= taken + WORKSPACES, "what was half loaded is given back"
    held.clear()
    torch.cuda.empty_cache()
    again = Session(session.settings, session.progress)
    assert "Paris" in again.model(spec, "fp16").generate("The capital of France is")


def test_out_of_memory_while_measuring_is_explained_and_the_device_usable(session, spec, hog, monkeypatch):
    from pytest_quant import room
    from pytest_quant.errors import NotMeasured, Unsupported
    from pytest_quant.markers import gate

    large = gate("memory_budget", {"max_gb": 1, "of": "peak", "batch_size": 256, "context": 2048})
    small = gate("memory_budget", {"max_gb": 1, "of": "kv_cache", "context": 64})
    session.model(spec, "fp16")
    taken = torch.cuda.memory_allocated()
    take, held = hog
    take(500 << 20)
    hogged = torch.cuda.memory_allocated()
    with pytest.raises(Unsupported, match=r"at least 1\.21 GB of activations"):
        session.measure(spec, "fp16", large)
    with monkeypatch.context() as patched:
        patched.setattr(room, "require", lambda *arguments: None)
        with pytest.raises(NotMeasured, match=r"out of memory while measuring memory_budget: .*predicted: at least"):
            session.measure(spec, "fp16", large)
    assert torch.cuda.memory_allocated() <= hogged + WORKSPACES
    assert session.measure(spec, "fp16", small).value == 2 * 30 * 3 * 64 * 2 * 64
    held.clear()
    assert torch.cuda.memory_allocated() <= taken + WORKSPACES


def test_memory_that_the_allocator_keeps_counts_as_free():
    from pytest_quant.engines import memory
    from pytest_quant.hardware import detect

    device = detect()
    torch.cuda.empty_cache()
    before = memory.free_bytes(device)
    kept = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    del kept
    assert torch.cuda.memory_reserved() >= 1 << 30
    assert memory.free_bytes(device) == pytest.approx(before, abs=64 << 20)
