"""Which formats a first test is written for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_quant.errors import Unsupported
from pytest_quant.init.choosing import CANDIDATES, choose, reference_for


def runs(*names: str):
    def check(name: str) -> None:
        if name not in names:
            raise Unsupported(name, "no library", f"pip install {name}")

    return check


def test_one_of_eight_bits_and_one_of_four():
    assert choose((), (), runs("int8", "int8-weight-only", "nf4", "int4")).formats == ("int8", "nf4")
    assert choose((), (), runs("fp8", "int8", "int4-unpacked")).formats == ("fp8", "int4-unpacked")


def test_a_width_that_does_not_run_is_told_with_all_its_reasons():
    found = choose((), (), runs("int4"))
    assert found.formats == ("int4",)
    assert [name for name, _ in found.left_out] == list(CANDIDATES[0])
    assert "pip install int8" in dict(found.left_out)["int8"]


def test_the_projects_own_formats_go_first_and_named_ones_before_them():
    assert choose((), ("int8", "awq", "nf4"), runs("int8", "nf4")).formats == ("int8", "nf4")
    assert [name for name, _ in choose((), ("int8", "awq"), runs("int8")).left_out] == ["awq"]
    assert choose(("fp4",), ("int8",), runs("fp4", "int8")).formats == ("fp4",)


def test_a_named_format_that_does_not_run_is_an_error():
    with pytest.raises(Unsupported, match="needed: pip install awq"):
        choose(("int8", "awq"), (), runs("int8"))


def test_where_nothing_runs_every_reason_is_told():
    with pytest.raises(Unsupported, match=r"fp8: .*int8: .*nf4: .*pytest-quant doctor"):
        choose((), (), runs())


def test_the_reference_is_what_the_device_computes_well():
    cpu, gpu = SimpleNamespace(kind="cpu"), SimpleNamespace(kind="cuda")
    assert [reference_for(cpu, name) for name in ("fp16", "bf16", "fp32")] == ["fp32", "bf16", "fp32"]
    assert [reference_for(gpu, name) for name in ("fp16", "bf16")] == ["fp16", "bf16"]
