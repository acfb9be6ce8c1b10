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


def test_released_models_give_their_memory_back(smollm2, tmp_path):
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.progress import Quiet
    from pytest_quant.session import Session, Settings
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
