"""The first gates of a team that ships SmolLM2-135M: is it still good, fast and small enough?"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.quant(formats=["int8", "nf4"], reference="fp32")


@pytest.mark.perplexity_delta(max_ratio=1.40)
@pytest.mark.memory_budget(max_ratio=0.45)
@pytest.mark.memory_budget(max_gb=0.05, of="kv_cache", context=1024)
def test_good_and_small(quant_model):
    assert "Paris" in quant_model.generate("The capital of France is")


@pytest.mark.kl_divergence(max_bound=0.5)
@pytest.mark.token_agreement(min=0.6)
def test_close_to_the_reference(quant_model):
    """Token by token, against what the store holds of the unquantized model."""


@pytest.mark.throughput_ratio(min=0.25, phase="decode")
@pytest.mark.throughput_ratio(min=0.25, phase="prefill", prompt_tokens=128)
@pytest.mark.cost_ratio(max=4.0, price=0.10)
def test_fast_and_cheap(quant_model):
    """Beside each speed stands what the hardware allows; the price is that of an hour of the machine."""
    assert quant_model.proof.quantized_weight_share == 1.0


@pytest.mark.quant(formats=["bf16", "int8-weight-only", "fp8"], reference="fp32")
@pytest.mark.memory_budget(max_ratio=0.6)
def test_the_next_formats(quant_model):
    """A format that cannot run here is skipped, with what was asked, what was found and what would be needed."""


def test_by_hand(quant_measure):
    """The same measurements as assertions of one's own; a limit lets them stop early."""
    assert quant_measure.memory_budget("nf4") < quant_measure.memory_budget("int8")
    assert quant_measure.perplexity_delta("int8", max=1.0) < 1.0
    assert quant_measure.perplexity_delta("nf4", max=10.0) < 10.0
