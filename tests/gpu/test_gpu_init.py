"""``pytest-quant init`` on a CUDA device, against FP16: what it writes is green there. Ready to run where one is."""

from __future__ import annotations

import json

import pytest

from pytest_quant.cli import main

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


def test_formats_of_eight_and_four_bits_get_limits_that_hold(real_project, capsys):
    real_project.ini("quant_protocol = gptq-256", "quant_cache_dir = cache", "quant_reference = fp16")
    text = (real_project.path / "pytest.ini").read_text()  # no formats and no reference of the project's own
    kept = [line for line in text.splitlines() if not line.startswith(("quant_formats", "quant_reference"))]
    (real_project.path / "pytest.ini").write_text("\n".join(kept) + "\n")
    assert main(["init", str(real_project.model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == "fp16"
    formats = [each["format"] for each in found["formats"]]
    assert len(formats) == 2
    assert formats[0] in ("fp8", "int8", "int8-weight-only")
    assert formats[1] in ("nf4", "int4", "int4-unpacked")
    result = real_project.run("tests")
    assert result.ret == 0
    result.assert_outcomes(passed=2)
