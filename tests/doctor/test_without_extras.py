"""The plugin alone, as ``pip install pytest-quant`` brings it: what needs more says what to install."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from pytest_quant.cli import main
from pytest_quant.engines import probe, shape
from pytest_quant.engines.loading import open_tokens
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import Unsupported
from pytest_quant.hardware import Device

BROUGHT = ("torch", "transformers", "accelerate", "safetensors")
INSTALL = "pip install 'pytest-quant[transformers]'"


@pytest.fixture
def bare(monkeypatch):
    """As if nothing were installed that the extra ``transformers`` brings."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("pytest_quant.formats.backend.version", version)
    for name in BROUGHT:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("open_it", [lambda: shape.read("a/model"), lambda: open_tokens(ModelSource("a/model"))])
def test_what_reads_a_model_says_what_to_install(open_it):
    with pytest.raises(Unsupported) as refused:
        open_it()
    assert refused.value.found == "torch not installed, transformers not installed"
    assert refused.value.needed == INSTALL
    assert "a/model" in refused.value.asked


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    "arguments", [["plan", "a/model", "--device", "L4"], ["quantize", "a/model", "--format", "gptq"]]
)
def test_a_command_that_reads_a_model_ends_with_one_line(arguments, capsys):
    assert main(arguments) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("pytest-quant: asked: ")
    assert line.endswith(INSTALL)


@pytest.mark.usefixtures("bare")
def test_a_bandwidth_that_only_torch_could_measure_is_not_known():
    device = Device("cpu", "amd", "AMD EPYC, 2 cores", "x86_64", memory_bytes=1 << 34)
    known = probe.measure(device, probe.BEYOND_CACHES, ("fp32",))
    assert (known.bandwidth, known.bandwidth_source) == (None, "not known")
    assert "fp32" not in known.operations
