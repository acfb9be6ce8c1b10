"""Speed of the real model: the bound that stands beside it is one."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.real

SPEED = """
import pytest

@pytest.mark.quant(formats=["nf4", "int8"], reference="fp32")
@pytest.mark.throughput_ratio(min=0.05, new_tokens=8)
@pytest.mark.throughput_ratio(min=0.05, phase="prefill", prompt_tokens=256)
def test_speed(quant_model): ...
"""


def test_no_run_is_faster_than_its_bound(real_project):
    """Also where kernels compute in another type than they were asked for, as bitsandbytes' 4-bit ones may on a CPU."""
    real_project.ini(f"quant_model = {real_project.model}")
    real_project.test(SPEED)
    result, record = real_project.record()
    assert result.ret == 0
    assert len(record["measurements"]) == 4
    for speed in record["measurements"]:
        for which in ("format", "reference"):
            bound = speed["bounds"][which]
            assert 0.0 < bound["share"] < 1.1, (speed["format"], speed["parameters"], bound)
        if speed["parameters"]["phase"] == "decode":
            assert speed["bounds"]["reference"]["regime"] == "bandwidth"
            assert speed["format_inter_token_p50_ms"] <= speed["format_inter_token_p99_ms"]


def test_a_limit_that_the_hardware_cannot_keep(real_project):
    real_project.ini(f"quant_model = {real_project.model}")
    real_project.test(SPEED.replace("min=0.05, new", "min=40, new").replace('["nf4", "int8"]', '["int8"]'))
    result = real_project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*throughput_ratio(min=40) asks for more than the hardware allows: fp32 makes * tokens/s in decode, *"]
    )
