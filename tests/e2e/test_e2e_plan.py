"""--quant-plan says what would run and what would be skipped, here or on hardware that is not here."""

from __future__ import annotations

import pytest

TESTS = """
import pytest

@pytest.mark.quant(formats=["bf16", "int8", "nf4", "fp8"], reference="fp16")
@pytest.mark.memory_budget(max_gb=1)
def test_it(quant_model):
    raise AssertionError("a plan runs nothing")

@pytest.mark.quant(formats=["bf16"], require_native=True)
@pytest.mark.memory_budget(max_gb=1)
def test_native(quant_model): ...

def test_plain(): raise AssertionError("nor this")
"""
SIX = {
    "NVIDIA H100 80GB HBM3": "sm_90",
    "NVIDIA A100-SXM4-80GB": "sm_80",
    "NVIDIA A10G": "sm_86",
    "NVIDIA L40S": "sm_89",
    "NVIDIA GeForce RTX 4090": "sm_89",
    "NVIDIA GeForce RTX 3090": "sm_86",
}


@pytest.mark.parametrize("name, architecture", SIX.items())
def test_for_the_six_gpus(project, name, architecture):
    project.test(TESTS)
    result = project.run("--quant-plan", f"--quant-device={name}")
    assert result.ret == 0
    result.assert_outcomes()
    units = architecture in ("sm_89", "sm_90")
    fp8 = "run   *fp8: native, weights *" if units else "skip  *fp8: asked: fp8 (torchao); found: *; needed: *8.9*"
    result.stdout.fnmatch_lines(
        [
            f"{name} [[]{architecture}[]]: *GB, *GB/s",
            "run   test_quant.py::test_it[[]bf16[]]  bf16: native, weights *decode at best * ms a token (bandwidth)",
            "run   test_quant.py::test_it[[]int8[]]  int8: native, weights *",
            "run   test_quant.py::test_it[[]nf4[]]  nf4: dequantized, weights *",
        ],
        consecutive=False,
    )
    result.stdout.fnmatch_lines([fp8.replace("*", "test_quant.py::test_it[[]fp8[]]  ", 1)])
    result.stdout.fnmatch_lines(["run   test_quant.py::test_native[[]bf16[]]  bf16: native, *"])
    assert project.baselines == {}


OTHERS = """
import pytest

FORMATS = ["w8a8", "int4", "nvfp4", "int4@quanto", "gptq", "w8a8@compressed-tensors", "fp8@finegrained-fp8"]

@pytest.mark.quant(formats=FORMATS, reference="fp16")
@pytest.mark.memory_budget(max_gb=1)
def test_it(quant_model): ...
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "NVIDIA H100 80GB HBM3",
            "w8a8: native|int4: dequantized|nvfp4: asked: nvfp4 (torchao); found: NVIDIA H100*10.0|"
            "int4@quanto: dequantized|gptq: dequantized|w8a8@compressed-tensors: dequantized|"
            "fp8@finegrained-fp8: native",
        ),
        (
            "V100",
            "w8a8: asked: *7.5|int4: asked: *8.0|nvfp4: asked: *10.0|int4@quanto: dequantized|gptq: dequantized|"
            "w8a8@compressed-tensors: asked: *7.5|fp8@finegrained-fp8: asked: *silently loads the model in bf16",
        ),
        (
            "MI300X",
            "w8a8: native|int4: asked: *it is not known that int4 runs here*|nvfp4: asked: *10.0|"
            "int4@quanto: dequantized|gptq: dequantized|w8a8@compressed-tensors: dequantized|"
            "fp8@finegrained-fp8: asked: *it is not known",
        ),
    ],
)
def test_formats_of_other_libraries_whatever_is_installed_here(project, monkeypatch, name, said):
    from importlib.metadata import PackageNotFoundError

    def nothing(distribution):
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr("pytest_quant.formats.backend.version", nothing)
    project.test(OTHERS)
    result = project.run("--quant-plan", f"--quant-device={name}")
    assert result.ret == 0
    lines = [
        f"{'skip' if ': asked: ' in words else 'run '}  test_quant.py::test_it[[]{words.partition(':')[0]}[]]  {words}*"
        for words in said.split("|")
    ]
    result.stdout.fnmatch_lines(lines)


def test_a_t4_has_no_bf16_units(project):
    project.test(TESTS)
    result = project.run("--quant-plan", "--quant-device=Tesla T4")
    result.stdout.fnmatch_lines(
        ["run   *test_it[[]bf16[]]  bf16: dequantized*", "skip  *test_native[[]bf16[]]  bf16: asked*"]
    )


def test_the_lessons_matrix_may_be_asked(project):
    project.test(TESTS)
    arguments = ["--quant-plan", "--quant-device=NVIDIA GeForce RTX 3090", "--quant-matrix=lesson"]
    result = project.run(*arguments)
    result.stdout.fnmatch_lines(["skip  *test_native[[]bf16[]]  bf16: asked*"])


def test_a_users_matrix_may_be_asked(project):
    (project.path / "mine.toml").write_text(
        'schema = 1\nname = "mine"\n\n[[units]]\nkind = "cuda"\ncompute_capability = "8.0"\n'
        'source = "our own measurement"\nbf16 = "dequantized: broken on our boards"\n'
    )
    project.test(TESTS)
    result = project.run("--quant-plan", "--quant-device=A100", "--quant-matrix=mine.toml")
    result.stdout.fnmatch_lines(["skip  *test_native[[]bf16[]]  bf16: asked*broken on our boards*"])


def test_for_this_machine(project):
    project.test(TESTS)
    result = project.run("--quant-plan")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["run   *test_it[[]nf4[]]  nf4: dequantized*", "skip  *test_it[[]fp8[]]*"])


def test_for_a_device_that_nobody_knows(project):
    project.test(TESTS)
    result = project.run("--quant-plan", "--quant-device=RTX 9999")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quant-device: no specification of 'RTX 9999'; known are *NVIDIA H200*"])


def test_the_command_prints_the_matrix(capsys):
    from pytest_quant.cli import main

    assert main(["matrix", "--device", "A100", "--device", "L40S"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[1:] for line in printed.splitlines() if line.startswith("fp8 ")] == [["dequant", "native"]]
    assert main(["matrix", "--diff", "lesson"]) == 0
    assert "6 cells differ" in capsys.readouterr().out
    assert main(["matrix", "--device", "here"]) == 0
    assert main(["matrix", "--device", "RTX 9999"]) == 2
    assert "RTX 9999" in capsys.readouterr().err


GATED = """
import pytest

@pytest.mark.quant(formats=["nf4", "gptq"], reference="fp16")
@pytest.mark.throughput_ratio(min=1.5, batch_size=4, prompt_tokens=100, new_tokens=50)
@pytest.mark.memory_budget(max_gb=1, of="kv_cache", context=120)
def test_it(quant_model): ...
"""


def test_the_load_is_what_the_gates_ask_for(project):
    from pytest_quant.engines.shape import read
    from pytest_quant.roofline.amounts import kv_bytes

    project.test(GATED)
    result = project.run("--quant-plan", "--quant-device=A100")
    shown = kv_bytes(read(str(project.model)), 4, 150)
    assert shown == 4 * 150 * 2 * 2 * 32 * 2  # two layers, keys and values, one head of 32 numbers, 2 bytes
    result.stdout.fnmatch_lines(
        [
            f"run   *test_it[[]nf4[]]  nf4: dequantized, weights * kB, KV cache {shown / 1e3:.4g} kB, "
            "decode at best * ms a step of 4 sequences (bandwidth)"
        ]
    )


def test_the_plan_and_the_command_predict_the_same(project, capsys):
    from pytest_quant.cli import main
    from pytest_quant.engines.shape import read
    from pytest_quant.formats import registry
    from pytest_quant.roofline.amounts import weight_bytes

    project.test(TESTS)
    result = project.run("--quant-plan", "--quant-device=H100")
    for name in ("bf16", "int8", "nf4"):
        weights = weight_bytes(read(str(project.model)), registry.get(name), 16)
        result.stdout.fnmatch_lines([f"run   *  {name}: *, weights {weights / 1e3:.4g} kB, *"])
    capsys.readouterr()
    assert main(["plan", str(project.model), "--device", "H100", "--formats", "bf16,int8,nf4"]) == 0
    printed = capsys.readouterr().out
    assert f"{weight_bytes(read(str(project.model)), registry.get('nf4'), 16) / 1e9:.4f}" in printed


def test_weights_that_are_too_large_for_the_device(project):
    import json

    folder = project.path / "large"
    folder.mkdir()
    config = json.loads((project.model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 2**26, "hidden_size": 2**12}))
    project.ini(f"quant_model = {folder}")
    project.test(TESTS)
    result = project.run("--quant-plan", "--quant-device=A100")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["skip  *bf16: asked: large in bf16; found: 85.9 GB on NVIDIA A100-SXM4-80GB; needed: * GB for the weights"]
    )


def test_what_is_free_here_decides_as_in_a_run(project, monkeypatch):
    """Weights skip by what is free now, and not by all that is there."""
    monkeypatch.setattr("pytest_quant.engines.memory.free_bytes", lambda device: 1000)
    project.test(TESTS)
    result = project.run("--quant-plan")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["skip  *test_it[[]nf4[]]  nf4: asked: * in nf4; found: 0.001 MB free on *; needed: * MB for the weights"]
    )


def test_a_model_whose_config_is_not_here(project):
    project.ini("quant_model = org/nowhere")
    project.test(TESTS)
    result = project.run("--quant-plan", "--quant-device=A100")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["run   *[[]nf4[]]  nf4: dequantized"])
