"""The lesson's table, all 36 cells, and the six in which it is wrong; and how both are printed."""

from __future__ import annotations

import pytest

from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix import differences, load
from pytest_quant.report.matrix import render_differences, render_matrix

SIX = [
    ("H100 SXM5", "NVIDIA H100 80GB HBM3", (9, 0)),
    ("A100", "NVIDIA A100-SXM4-80GB", (8, 0)),
    ("A10G", "NVIDIA A10G", (8, 6)),
    ("L40S", "NVIDIA L40S", (8, 9)),
    ("RTX 4090", "NVIDIA GeForce RTX 4090", (8, 9)),
    ("RTX 3090", "NVIDIA GeForce RTX 3090", (8, 6)),
]
DEVICES = [
    (label, Device("cuda", "nvidia", name, "sm_{}{}".format(*version), compute_capability=version))
    for label, name, version in SIX
]
LESSON = {
    "fp32": "TC TC TC TC TC TC",
    "fp16": "TC TC TC TC TC TC",
    "bf16": "TC TC TC TC TC no",
    "fp8": "TC no no no no no",
    "fp8_e5m2": "TC no no no no no",
    "int8": "TC TC TC TC TC TC",
    "int4": "TC TC no TC TC no",
}
WRONG = [
    ("H100 SXM5", "int4", "dequantized", "native"),
    ("A10G", "int4", "native", "dequantized"),
    ("L40S", "fp8", "native", "dequantized"),
    ("RTX 4090", "fp8", "native", "dequantized"),
    ("RTX 3090", "bf16", "native", "dequantized"),
    ("RTX 3090", "int4", "native", "dequantized"),
]


@pytest.mark.parametrize("numeric", LESSON)
@pytest.mark.parametrize("column", range(6), ids=[label for label, _, _ in SIX])
def test_cell(numeric: str, column: int) -> None:
    label, device = DEVICES[column]
    support = load("lesson").units(numeric, device)
    assert support.status == {"TC": "native", "no": "dequantized"}[LESSON[numeric].split()[column]]
    assert support.source == f"the lesson's table, column {label}"
    assert "not in the lesson" not in support.reason


def test_exactly_six_cells_differ() -> None:
    found = differences(load(), load("lesson"), DEVICES)
    assert [(d.label, d.numeric, d.first.status, d.second.status) for d in found] == WRONG
    for difference in found:
        assert "SASS" in difference.first.source
        assert "the lesson's table" in difference.second.source


def test_a_matrix_does_not_differ_from_itself() -> None:
    assert differences(load(), load(), DEVICES) == []


def test_what_the_lesson_does_not_list_is_answered_by_the_corrected_table_and_says_so() -> None:
    lesson = load("lesson")
    unlisted = Device("cuda", "nvidia", "NVIDIA L4", "sm_89", compute_capability=(8, 9))
    support = lesson.units("fp8", unlisted)
    assert support.status == "native"
    assert support.reason.startswith("not in the lesson's table")
    assert lesson.units("tf32", DEVICES[0][1]).reason.startswith("not in the lesson's table")


@pytest.mark.parametrize(
    "name, version",
    [
        ("NVIDIA H100 PCIe", (9, 0)),
        ("NVIDIA A10", (8, 6)),
        ("NVIDIA L40", (8, 9)),
        ("NVIDIA GeForce RTX 4090 D", (8, 9)),
        ("NVIDIA GeForce RTX 3090 Ti", (8, 6)),
    ],
)
def test_a_neighbouring_name_is_not_the_lessons_gpu(name: str, version: tuple[int, int]) -> None:
    device = Device("cuda", "nvidia", name, "sm", compute_capability=version)
    assert load("lesson").units("int4", device).reason.startswith("not in the lesson's table")


def test_the_lessons_backends_are_the_corrected_ones() -> None:
    device = DEVICES[0][1]
    assert load("lesson").backend("bitsandbytes", device, "int8") == load().backend("bitsandbytes", device, "int8")


def test_rendered_grid() -> None:
    text = render_matrix(load(), DEVICES)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Support matrix: corrected"
    header = next(line for line in lines if "H100 SXM5" in line)
    assert all(label in header for label, _ in DEVICES)
    row = next(line for line in lines if line.startswith("int4"))
    assert row.split() == ["int4", "dequant", *["native"] * 5]


def test_rendered_grid_breaks_into_blocks() -> None:
    text = render_matrix(load(), [(f"{label} number two", device) for label, device in DEVICES])
    assert max(map(len, text.splitlines())) <= 80
    assert sum(line.startswith("int4") for line in text.splitlines()) == 2


def test_rendered_single_device_has_every_reason_source_and_need() -> None:
    text = render_matrix(load(), DEVICES[1:2])
    assert "NVIDIA A100-SXM4-80GB" in text
    assert "fp8: dequantized" in text
    assert "needed: an NVIDIA GPU of compute capability 8.9 or newer" in text
    assert "source: SASS for sm_80" in text
    assert "bitsandbytes int8: native" in text
    assert "bitsandbytes>=0.46.1" in text
    assert max(map(len, text.splitlines())) <= 80


def test_rendered_without_devices() -> None:
    assert "no device" in render_matrix(load(), [])


def test_rendered_differences() -> None:
    found = differences(load(), load("lesson"), DEVICES)
    text = render_differences(found, "corrected", "lesson")
    assert text.splitlines()[0] == "corrected against lesson: 6 cells differ"
    assert text.count("source: ") == 12
    assert "L40S, fp8 [sm_89]" in text
    assert render_differences([], "a", "b") == "a and b agree on every cell\n"
