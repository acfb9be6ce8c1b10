"""A user's own file: laid over the corrected matrix, or refused with the file, the place and what is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_quant.errors import UsageError
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix import NUMERICS, load

A10G = Device("cuda", "nvidia", "NVIDIA A10G", "sm_86", compute_capability=(8, 6))
PASCAL = Device("cuda", "nvidia", "Tesla P100", "sm_60", compute_capability=(6, 0))


def write(path: Path, text: str) -> str:
    file = path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_own_rows_are_laid_over_the_corrected_ones_cell_by_cell(tmp_path: Path) -> None:
    matrix = load(
        write(
            tmp_path,
            """
            schema = 1
            [needed.cuda]
            int4 = "better luck"
            [[units]]
            kind = "cuda"
            compute_capability = ">=6.0,<7.0"
            source = "our own test"
            fp16 = "native: measured by us"
            int8 = { status = "dequantized: dp4a", source = "the Pascal tuning guide", needed = "a T4" }
            int4 = "dequantized"
            [[backend]]
            backend = "ourlib"
            capability = ["int8", "ours"]
            kind = ["cuda", "cpu"]
            status = "native: works"
            packages = "ourlib>=3"
            """,
        )
    )
    assert matrix.name == "mine"
    fp16 = matrix.units("fp16", PASCAL)
    assert (fp16.status, fp16.reason, fp16.source, fp16.needed) == ("native", "measured by us", "our own test", "")
    int8 = matrix.units("int8", PASCAL)
    assert (int8.status, int8.reason, int8.source) == ("dequantized", "dp4a", "the Pascal tuning guide")
    assert int8.needed == "a T4"
    assert matrix.units("int4", PASCAL).needed == "better luck"
    assert matrix.units("bf16", PASCAL).status == "unknown"
    corrected = load()
    for numeric in NUMERICS:
        assert matrix.units(numeric, A10G) == corrected.units(numeric, A10G)
    assert matrix.backend("ourlib", PASCAL, "ours").packages == ("ourlib>=3",)
    assert matrix.backend("bitsandbytes", A10G, "int8") == corrected.backend("bitsandbytes", A10G, "int8")
    ours = Format("ours", QuantizationArgs(8, "int"), "ourlib", "int8", input_activations=QuantizationArgs(8, "int"))
    assert matrix.support(ours, A10G).status == "native"
    assert corrected.support(ours, A10G).status == "unsupported"


def test_an_own_row_wins_over_a_corrected_one(tmp_path: Path) -> None:
    file = write(
        tmp_path, 'schema = 1\nname = "x"\n[[units]]\nkind = "*"\nvendor = "NVIDIA"\nint8 = "unsupported: no"\n'
    )
    support = load(file).units("int8", A10G)
    assert (support.status, support.reason, support.source) == ("unsupported", "no", "mine.toml")
    assert load(file).name == "x"


def test_an_empty_file_but_for_its_schema_is_the_corrected_matrix(tmp_path: Path) -> None:
    matrix = load(write(tmp_path, "schema = 1\n"))
    assert matrix.units("fp8", A10G) == load().units("fp8", A10G)


UNITS = 'schema = 1\n[[units]]\nkind = "cuda"\nint8 = "native"\n[[units]]\n'
BACKEND = "schema = 1\n[[backend]]\n"


@pytest.mark.parametrize(
    "text, place, allowed",
    [
        ("schema = = 1", "is not valid TOML", "line 1"),
        ("", '"schema"', "the integer 1"),
        ("schema = true", '"schema"', "the integer 1"),
        ('schema = "1"', '"schema"', "the integer 1"),
        ("schema = 2", '"schema"', "upgrade pytest-quant"),
        ("schema = 0", '"schema"', "allowed: 1"),
        ("schema = 1\nname = 3", '"name"', "a text"),
        ("schema = 1\nunit = []", '"unit"', "allowed: schema, name"),
        ("schema = 1\n[units]\nkind = 'cuda'", '"units"', "[[units]]"),
        ("schema = 1\nunits = [1]", '"units"', "[[units]]"),
        (UNITS + 'int8 = "native"', '[[units]] row 2, key "kind"', "cuda, rocm, xpu, mps, cpu"),
        (UNITS + 'kind = "gpu"\nint8 = "native"', '[[units]] row 2, key "kind"', "cuda, rocm, xpu, mps, cpu"),
        (UNITS + 'kind = []\nint8 = "native"', '[[units]] row 2, key "kind"', "a text or a list of texts"),
        (UNITS + 'kind = [1]\nint8 = "native"', '[[units]] row 2, key "kind"', "a text or a list of texts"),
        (UNITS + 'kind = "cuda"', "[[units]] row 2", "fp32, tf32"),
        (UNITS + 'kind = "cuda"\nint3 = "native"', '[[units]] row 2, key "int3"', "int8, int4"),
        (UNITS + 'kind = "cuda"\nint8 = "natve"', '[[units]] row 2, key "int8"', "native, dequantized, unsupported"),
        (UNITS + 'kind = "cuda"\nint8 = 1', '[[units]] row 2, key "int8"', "STATUS: reason"),
        (UNITS + 'kind = "cuda"\nint8 = {reason = "x"}', 'row 2, int8, key "status"', "native, dequantized"),
        (UNITS + 'kind = "cuda"\nint8 = {status = 1}', 'row 2, int8, key "status"', "native, dequantized"),
        (UNITS + 'kind = "cuda"\nint8 = {status = "native", why = "x"}', 'row 2, int8, key "why"', "reason, source"),
        (
            UNITS + 'kind = "cuda"\ncompute_capability = 8.6\nint8 = "native"',
            '[[units]] row 2, key "compute_capability"',
            "a text",
        ),
        (
            UNITS + 'kind = "cuda"\ncompute_capability = "8"\nint8 = "native"',
            '[[units]] row 2, key "compute_capability"',
            '">=6.0,<7.5"',
        ),
        (
            UNITS + 'kind = "rocm"\ncompute_capability = "9.0"\nint8 = "native"',
            '[[units]] row 2, key "compute_capability"',
            "architecture",
        ),
        (UNITS + 'kind = "cuda"\nsource = ""\nint8 = "native"', '[[units]] row 2, key "source"', "a text"),
        ("schema = 1\n[needed.gpu]\nint8 = 'x'", "[needed.gpu]", "cuda, rocm"),
        ("schema = 1\n[needed.cuda]\nint3 = 'x'", '[needed.cuda], key "int3"', "int8, int4"),
        ("schema = 1\n[needed.cuda]\nint8 = 3", '[needed.cuda], key "int8"', "a text"),
        ("schema = 1\nneeded = 3", '"needed"', "[needed.KIND]"),
        (BACKEND + 'kind = "cuda"', '[[backend]] row 1, key "backend"', "is missing"),
        (BACKEND + 'backend = "x"\nkind = "cuda"', '[[backend]] row 1, key "capability"', "is missing"),
        (
            BACKEND + 'backend = "x"\ncapability = "int8"\nkind = "cuda"\nstatus = "runs"',
            '[[backend]] row 1, key "status"',
            "native, dequantized",
        ),
        (
            BACKEND + 'backend = "x"\ncapability = "int8"\nkind = "cuda"\nstatus = "native"\npackages = {x = 1}',
            '[[backend]] row 1, key "packages"',
            "a list of texts",
        ),
        (BACKEND + 'int8 = "native"', '[[backend]] row 1, key "int8"', "capability, status"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_place(tmp_path: Path, text: str, place: str, allowed: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(file)
    assert place in message
    assert allowed in message


def test_a_missing_file_names_the_matrices_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'nowhere\.toml: cannot be read.*"corrected", "lesson"'):
        load(str(tmp_path / "nowhere.toml"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(str(tmp_path))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"schema = 1\n\xff\xfe")
    with pytest.raises(UsageError, match=r"mine\.toml: is not UTF-8 text"):
        load(str(file))


def test_nothing_heavy_is_imported_and_toml_only_when_used() -> None:
    code = (
        "import sys; import pytest_quant.hardware.matrix as m; "
        "assert not {'tomllib', 'tomli'} & set(sys.modules); m.load('lesson'); "
        "assert not {'numpy', 'torch', 'transformers', 'pynvml', 'pytest'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
