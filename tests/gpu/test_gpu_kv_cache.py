"""On a CUDA device: KV cache formats prove themselves, are measured, and take the bytes that they say."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

GATES = """
import pytest

@pytest.mark.quant(formats=["fp16+kv-int4", "nf4+kv-int4", "fp16+kv-int8", "fp16+kv-fp8"], reference="fp16")
@pytest.mark.perplexity_delta(max_ratio=2.0)
@pytest.mark.memory_budget(of="kv_cache", context=512, max_ratio=0.7)
@pytest.mark.throughput_ratio(min=0.01)
def test_gates(quant_model):
    assert quant_model.proof.kv_cache["num_bits"] in (4, 8)
    assert "Paris" in quant_model.generate("The capital of France is")
"""


def test_gates_hold(real_project):
    real_project.ini(f"quant_model = {real_project.model}", "quant_max_windows = 6")
    (real_project.path / "pytest.ini").write_text(
        (real_project.path / "pytest.ini").read_text().replace("gptq-64", "gptq-256")
    )
    real_project.test(GATES)
    result, record = real_project.record()
    assert result.ret == 0
    result.assert_outcomes(passed=4)
    assert {measured["proof"]["kv_cache"]["layers"] for measured in record["measurements"]} == {30}
