"""On a CUDA device: the same gates, the same proof, and memory that really comes back. Ready to run where one is."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

GATES = """
import pytest

@pytest.mark.quant(formats=["bf16", "int8", "nf4", "fp4"], reference="fp16")
@pytest.mark.perplexity_delta(max_ratio=2.0)
@pytest.mark.kl_divergence(max=1.0, max_bound=1.0)
@pytest.mark.token_agreement(min=0.4)
@pytest.mark.memory_budget(max_ratio=1.01)
@pytest.mark.memory_budget(max_gb=4, of="peak")
@pytest.mark.throughput_ratio(min=0.05)
@pytest.mark.throughput_ratio(min=0.05, phase="prefill", batch_size=8)
def test_gates(quant_model):
    assert quant_model.device.kind == "cuda"
    assert "Paris" in quant_model.generate("The capital of France is")
"""


def test_the_device_is_the_one_that_torch_sees():
    from pytest_quant.hardware import detect

    device = detect()
    assert device.kind == "cuda"
    assert device.compute_capability == torch.cuda.get_device_capability(0)
    assert device.name.removeprefix("NVIDIA ") in torch.cuda.get_device_name(0)
    total = torch.cuda.get_device_properties(0).total_memory
    assert device.memory_bytes == pytest.approx(total, rel=0.05)


def test_gates_hold_and_a_second_run_differs_by_next_to_nothing(real_project):
    real_project.ini(f"quant_model = {real_project.model}", "quant_max_windows = 6")
    real_project.test(GATES)
    first = real_project.gate()
    assert first.ret == 0
    second, record = real_project.record("--quant-baseline", "--quant-missing=fail")
    assert second.ret == 0, "a run of the same code on the same device never cries wolf"
    assert {measured["format"] for measured in record["measurements"]} == {"bf16", "int8", "nf4", "fp4"}
    assert json.dumps(record, allow_nan=False)


def test_windows_in_one_batch_score_as_they_do_alone(smollm2, tmp_path):
    import numpy as np

    from pytest_quant.engines.source import ModelSource
    from pytest_quant.metrics import pairing
    from pytest_quant.progress import Quiet
    from pytest_quant.session import Session
    from pytest_quant.settings import Settings
    from pytest_quant.spec import ModelSpec

    session = Session(Settings(protocol="gptq-512", max_windows=16, cache_dir=tmp_path), Quiet())
    spec = ModelSpec(ModelSource(str(smollm2)), reference="fp16")
    windows = session.population.windows(spec.source)
    reference, nf4 = session.model(spec, "fp16").loaded, session.model(spec, "nf4").loaded
    assert reference.windows_at_once(512) == 8
    batch = pairing.next_batch(windows, 0, 8)
    together = [score for score, _ in pairing.score_beside(nf4, reference, batch, 64)]
    alone = [pairing.score_beside(nf4, reference, [window], 64)[0][0] for window in batch]
    for one, other in zip(together, alone, strict=True):
        assert np.mean(one.nll) == pytest.approx(np.mean(other.nll), abs=2e-3)
        assert np.mean(one.kl) == pytest.approx(np.mean(other.kl), abs=2e-3)
    known = [window for _, window in pairing.score_beside(nf4, reference, batch, 64)]
    stored = pairing.score_against(nf4, batch, known)
    assert all(np.array_equal(one.nll, other.nll) for one, other in zip(stored, together, strict=True))


def test_released_models_give_their_memory_back(smollm2, tmp_path):
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.progress import Quiet
    from pytest_quant.session import Session
    from pytest_quant.settings import Settings
    from pytest_quant.spec import ModelSpec

    session = Session(Settings(cache_dir=tmp_path), Quiet())
    spec = ModelSpec(ModelSource(str(smollm2)), reference="fp16")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    handle = session.model(spec, "nf4")
    held = torch.cuda.memory_allocated() - before
    assert held == pytest.approx(handle.weight_bytes, rel=0.05), "the bytes that the proof counts are the allocator's"
    session.models.keep(())
    assert torch.cuda.memory_allocated() - before < 0.02 * held
