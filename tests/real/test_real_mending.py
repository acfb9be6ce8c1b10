"""From a gate that broke to one that holds: the scan names what to keep wide, its answer is pasted, the gate passes."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.real

GATE = """
import pytest

@pytest.mark.quant(formats=["{format}"], reference="fp32")
@pytest.mark.perplexity_delta(max_ratio=1.2)
def test_good(quant_model): ...
"""


def test_excluding_what_the_scan_names_mends_the_gate(real_project, capsys):
    from pytest_quant.cli import main

    settings = ("quant_protocol = gptq-256", "quant_max_windows = 24", "quant_corpus = python-docs")
    real_project.ini(f"quant_model = {real_project.model}", *settings)
    real_project.test(GATE.format(format="nf4"))
    broken = real_project.run()
    assert broken.ret == 1
    broken.stdout.fnmatch_lines(["nf4 perplexity_delta failed: * x is above the limit (at most 1.2 x)*"])
    (step,) = (line for line in broken.outlines if "next: pytest-quant scan " in line)
    words = step.split("next: pytest-quant ")[1].split()
    assert words[-2:] == ["--max-ratio", "1.2"]
    words[-1] = "1.1"  # the scan's few windows are not the gate's: a margin

    assert main([*words, "--blocks", "--windows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "and the rest keeps the budget" in printed
    real_project.conftest(printed.partition("conftest.py:\n")[2].partition("\nthe library:")[0])
    real_project.test(GATE.format(format="nf4-mixed"))
    result, record = real_project.record()
    assert result.ret == 0
    (measured,) = record["measurements"]
    assert measured["verdict"] == "passed"
    assert measured["proof"]["quantized_weight_share"] == 1.0  # of what the format does not leave wide
    assert 180e6 < measured["proof"]["weight_bytes"] < 450e6  # nf4 has 168 MB, fp32 538
