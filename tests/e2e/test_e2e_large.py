"""``device_map`` from marker, option and ini; what is refused where weights are offloaded."""

from __future__ import annotations

import json

OFFLOADED = """
import pytest

@pytest.mark.quant(formats=["bf16"], device_map={"": "cpu", "model.layers.1": "disk"})
@pytest.mark.GATE
def test_it(): pass
"""


def test_quality_of_an_offloaded_model_is_that_of_a_whole_one(project):
    project.test(OFFLOADED.replace("GATE", "perplexity_delta(max=1.0)"))
    result, record = project.record()
    result.assert_outcomes(passed=1)
    project.test(
        'import pytest\n@pytest.mark.quant(formats=["bf16"])\n@pytest.mark.perplexity_delta(max=1)\ndef test_it(): pass'
    )
    result, whole = project.record()
    result.assert_outcomes(passed=1)
    ((ours,), (theirs,)) = (found["measurements"] for found in (record, whole))
    assert ours["format_value"] == theirs["format_value"]
    assert ours["identity"] == theirs["identity"]
    assert ours["proof"]["offloaded_bytes"] > 0
    assert "offloaded_bytes" not in theirs["proof"]


def test_speed_and_peaks_of_an_offloaded_model_are_refused(project):
    for gate in ("throughput_ratio(min=0.1)", 'memory_budget(max_gb=1, of="peak")', "cost_ratio(max=9, price=1)"):
        project.test(OFFLOADED.replace("GATE", gate))
        result = project.run("-rs")
        result.assert_outcomes(skipped=1)
        text = " ".join(result.stdout.str().split())
        assert "1 of 2 layers offloaded to disk" in text
        assert "needed: more memory or fewer bits, or a device_map without offload" in text


def test_weights_are_counted_wherever_they_are(project):
    project.test(OFFLOADED.replace("GATE", "memory_budget(max_gb=1)"))
    result, record = project.record()
    result.assert_outcomes(passed=1)
    (found,) = record["measurements"]
    assert found["on_device_bytes"] + found["offloaded_bytes"] == found["format_value"]
    assert found["identity"]["device_map"] == {"": "cpu", "model.layers.1": "disk"}


def test_a_map_of_the_run(project):
    project.test(
        'import pytest\n@pytest.mark.quant(formats=["bf16"])\n@pytest.mark.memory_budget(max_gb=1)\ndef test_it(): pass'
    )
    for arguments in (["--quant-device-map=auto"], ['--quant-device-map={"": "cpu", "lm_head": "disk"}'], []):
        result, record = project.record(*arguments)
        result.assert_outcomes(passed=1)
        wanted = arguments[0].partition("=")[2] if arguments else None
        told = record["measurements"][0]["identity"].get("device_map")
        assert told == (json.loads(wanted) if wanted and wanted.startswith("{") else wanted)
    project.ini(f"quant_model = {project.model}", "quant_device_map = balanced")
    _, record = project.record()
    assert record["measurements"][0]["identity"]["device_map"] == "balanced"


def test_maps_that_cannot_be(project):
    project.test(
        "import pytest\n@pytest.mark.quant(formats=['bf16'], device_map={'': 0})\ndef test_it(quant_model): pass"
    )
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*names the device 0, but the run sees none*"])
    project.test(
        "import pytest\n@pytest.mark.quant(formats=['bf16'], max_memory={0: '1GB'})\ndef test_it(quant_model): pass"
    )
    result = project.run()
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*quant(max_memory=...) goes with a device_map*"])
    result = project.run("--quant-device-map=somewhere")
    assert result.ret != 0
    said = result.stderr.str() + result.stdout.str()
    assert "--quant-device-map: device_map: 'somewhere' is no place" in said


def test_a_reference_that_does_not_fit_beside_the_format_takes_a_turn(project, monkeypatch):
    from pytest_quant import models
    from pytest_quant.engines import memory

    holding: list[models.Models] = []
    load, most = models.loading.load, []
    make = models.Models.__init__

    def noted(self, *arguments):
        make(self, *arguments)
        holding.append(self)

    def counted(source, format, *rest):
        most.append((format.name, len(holding[-1]._held)))
        return load(source, format, *rest)

    monkeypatch.setattr(models.Models, "__init__", noted)
    monkeypatch.setattr(models.loading, "load", counted)
    size = 427392  # of the tiny Llama in FP32
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(size * 1.02) - sum(holding[-1].held_bytes().values()))
    project.test(
        """
import pytest

@pytest.mark.quant(formats=["int8", "nf4"])
@pytest.mark.perplexity_delta(max=100.0)
@pytest.mark.token_agreement(min=0.01)
@pytest.mark.memory_budget(max_ratio=1.0)
def test_it(quant_model):
    assert quant_model.generate("The", 2)
"""
    )
    result, record = project.record()
    result.assert_outcomes(passed=2)
    assert [found["verdict"] for found in record["measurements"]] == ["passed"] * 6
    assert {held for _, held in most} == {0}
