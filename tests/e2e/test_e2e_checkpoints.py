"""Formats that are made beforehand: found, made, stale, or without a record; and calibration sets."""

from __future__ import annotations

import json
import shutil

import pytest

from pytest_quant import cli
from pytest_quant.checkpoints import record as records

CONFTEST = """
from pathlib import Path
from types import MappingProxyType

from pytest_quant.errors import UsageError
from pytest_quant.formats import Backend, Format, QuantizationArgs, Stored
from pytest_quant.hardware.matrix_rows import Support

LOG = Path(__file__).parent / "made.log"


class Halves(Backend):
    "Checkpoints in fp16, which every machine can make in no time."

    name, requires, install = "halves", (), "nothing"
    formats = ()
    makes = True

    def support(self, format, device):
        return Support("dequantized", "it is fp16", "this file")

    def calibrates(self, format):
        return True

    def open(self, asked, from_pretrained):
        import torch
        return from_pretrained(asked.checkpoint, dtype=torch.float16).float().half()

    def stored(self, module):
        return Stored(module.weight.dtype.itemsize * 8, "float")

    def make(self, asked, samples, folder, tell):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        if (LOG.parent / "broken").exists():
            raise RuntimeError("the library broke")
        LOG.write_text((LOG.read_text() if LOG.exists() else "") + f"{len(samples)} x {len(samples[0])}" + chr(10))
        AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(asked.model).save_pretrained(folder)
        return {"method": "halving"}


def pytest_quant_formats():
    return [(Format("half", QuantizationArgs(16, "float"), "halves", "fp16", from_checkpoint=True), Halves())]
"""
TEST = """
import pytest

@pytest.mark.quant(formats=["half"])
@pytest.mark.perplexity_delta(max_ratio=1.5)
def test_half(quant_model):
    assert quant_model.proof.bits_per_weight == 16
"""


@pytest.fixture
def halves(project, tmp_path):
    """A project with a model of its own, and a format of its own that is made beforehand."""
    model = tmp_path / "base"
    shutil.copytree(project.model, model)
    project.model = model
    project.ini(
        f"quant_model = {model}",
        "quant_calibration_samples = 4",
        "quant_calibration_tokens = 32",
        "quant_calibration = corpus.txt",
    )
    project.conftest(CONFTEST)
    project.test(TEST)
    return project


def made(project):
    log = project.path / "made.log"
    return log.read_text().splitlines() if log.exists() else []


def cached(tmp_path_factory):
    import os
    from pathlib import Path

    return sorted((Path(os.environ["XDG_CACHE_HOME"]) / "pytest-quant" / "checkpoints").glob("*/config.json"))


def change_base(project, by=0.01):
    """Train the base model a little further, as a team does."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(project.model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += by
    model.save_pretrained(project.model)


def test_without_a_checkpoint_it_is_skipped_with_what_to_do(halves):
    result = halves.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*asked: base in half; found: no checkpoint of it; needed: quant(checkpoints=*--quant-quantize, "
            "or pytest-quant quantize *base --format half*"
        ]
    )
    assert made(halves) == []


def test_it_is_made_once_and_found_again(halves, tmp_path_factory):
    result, record = halves.record("--quant-quantize")
    result.assert_outcomes(passed=1)
    assert made(halves) == ["4 x 32"]
    (measured,) = record["measurements"]
    assert measured["proof"]["recipe"] == (
        "halving, calibrated on 4 x 32 tokens of corpus.txt, which is the very corpus that it is judged on: its "
        "quality is flattered"
    )
    result.stdout.fnmatch_lines(["half: *calibrated on 4 x 32 tokens of corpus.txt, which is the very corpus*"])
    halves.run().assert_outcomes(passed=1)
    assert made(halves) == ["4 x 32"]
    (folder,) = cached(tmp_path_factory)
    kept = json.loads((folder.parent / records.FILE).read_text())
    assert kept["base_name"] == "base"
    assert kept["calibration"]["corpora"][0]["corpus"] == "corpus.txt"


def test_one_that_was_calibrated_on_another_text_is_not_flattered(halves):
    (halves.path / "other.txt").write_text("Something else entirely. " * 30)
    result = halves.run("--quant-quantize", "--quant-calibration=other.txt")
    result.stdout.fnmatch_lines(["half: halving, calibrated on 4 x 32 tokens of other.txt"])


def test_another_calibration_set_makes_another(halves):
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    halves.run("--quant-quantize", "--quant-calibration-samples=3").assert_outcomes(passed=1)
    assert made(halves) == ["4 x 32", "3 x 32"]


def test_a_changed_base_is_quantized_again(halves):
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    change_base(halves)
    result = halves.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no checkpoint of it (that in * is of another state of the model)*"])
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    assert made(halves) == ["4 x 32", "4 x 32"]


@pytest.mark.parametrize("how", ["ini", "command line", "marker"])
def test_a_named_checkpoint_whose_base_has_changed_fails_as_stale(halves, tmp_path_factory, how):
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    shutil.copytree(cached(tmp_path_factory)[0].parent, halves.path / "shipped")
    arguments = []
    if how == "ini":
        (halves.path / "pytest.ini").open("a").write("quant_checkpoints = half=shipped\n")
    elif how == "command line":
        arguments = ["--quant-checkpoints=half=shipped"]
    else:
        halves.test(TEST.replace('formats=["half"]', 'formats=["half"], checkpoints={"half": "shipped"}'))
    halves.run(*arguments).assert_outcomes(passed=1)
    change_base(halves)
    result = halves.run(*arguments)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*stale: the half checkpoint *shipped was made on * from base (sha256:*quantize it again*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*passed*")


def test_a_checkpoint_without_a_record_runs_and_is_named_so(halves, tmp_path_factory):
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    shutil.copytree(cached(tmp_path_factory)[0].parent, halves.path / "found")
    (halves.path / "found" / records.FILE).unlink()
    change_base(halves)
    result, record = halves.record("--quant-checkpoints=half=found")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["half: not known: the checkpoint carries no record of its base model*"])
    assert record["measurements"][0]["proof"]["checkpoint"].endswith("found")


def test_a_damaged_record_is_an_error_that_names_it(halves, tmp_path_factory):
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    shutil.copytree(cached(tmp_path_factory)[0].parent, halves.path / "shipped")
    (halves.path / "shipped" / records.FILE).write_text("{")
    result = halves.run("--quant-checkpoints=half=shipped")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*shipped/{records.FILE}: is no JSON*"])


def test_a_quantizer_that_fails_leaves_nothing_and_does_not_pass(halves, tmp_path_factory):
    (halves.path / "broken").touch()
    result = halves.run("--quant-quantize")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*halves could not make base into half: the library broke*"])
    assert cached(tmp_path_factory) == []


def test_the_plan_knows_that_there_is_no_checkpoint(halves):
    result = halves.run("--quant-plan")
    result.stdout.fnmatch_lines(
        ["skip  test_quant.py::test_half?half?  half: asked: base in half; found: no checkpoint*"]
    )
    result = halves.run("--quant-plan", "--quant-quantize")
    result.stdout.fnmatch_lines(["run   test_quant.py::test_half?half?  half: dequantized*"])


@pytest.mark.parametrize(
    "argument, said",
    [
        ("--quant-calibration=0.5*corpus.txt", "add up to 1"),
        ("--quant-calibration-samples=none", "must be a whole number"),
        ("--quant-checkpoints=half", "write FORMAT=PLACE"),
        ("--quant-checkpoints=quarter=x", "unknown format 'quarter'"),
    ],
)
def test_a_mistake_on_the_command_line_is_said_before_anything_runs(halves, argument, said):
    result = halves.run(argument)
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*{said}*"])


@pytest.mark.parametrize(
    "argument, said",
    [
        ('checkpoints=["half"]', "must name a place for each format"),
        ('checkpoints={"half": 3}', "must name a place for each format"),
        ('checkpoints={"quarter": "x"}', "unknown format 'quarter'"),
        ('quantize="yes"', "must be a bool"),
    ],
)
def test_a_mistake_in_the_marker_names_the_test(halves, argument, said):
    halves.test(TEST.replace('formats=["half"]', f'formats=["half"], {argument}'))
    result = halves.run()
    assert result.ret != 0
    result.stdout.fnmatch_lines([f"*test_half*{said}*"])


def test_the_marker_may_ask_for_it_to_be_made(halves):
    halves.test(TEST.replace('formats=["half"]', 'formats=["half"], quantize=True'))
    halves.run().assert_outcomes(passed=1)
    assert made(halves) == ["4 x 32"]


def test_the_calibration_set_is_a_fixture(halves):
    (halves.path / "domain.txt").write_text("DOMAIN " * 100)
    halves.test(
        """
        def test_set(calibration_set):
            assert calibration_set.windows.shape == (4, 32)
            domain, generic = calibration_set.identity["corpora"]
            assert (domain["windows"], generic["windows"]) == (1, 3)
        """
    )
    halves.run("--quant-calibration=0.25*domain.txt,0.75*corpus.txt").assert_outcomes(passed=1)


def test_the_command_refuses_what_is_no_checkpoint_format(tiny_llama, libraries, capsys):
    assert cli.main(["quantize", str(tiny_llama), "--format", "nf4"]) == 2
    assert "quantized while the model is loaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--format", "quarter"], "unknown format"),
        (["--format", "gptq", "--set", "group_size"], "write NAME=VALUE"),
        (["--format", "gptq", "--samples", "0"], "--samples must be 1 or more"),
        (["--format", "gptq", "--dtype", "nf4"], "is a quantized format"),
        (["--format", "gptq", "--set", "method=awq"], "the method is the format's"),
        (["--format", "gptq+kv-int4"], "quantize gptq, and test it as gptq+kv-int4"),
    ],
)
def test_the_command_says_what_is_wrong(tiny_llama, libraries, capsys, arguments, said):
    assert cli.main(["quantize", str(tiny_llama), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_of_a_format_that_takes_none_is_refused(project):
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["nf4"], checkpoints={"nf4": "somewhere"})
        @pytest.mark.memory_budget(max_ratio=0.9)
        def test_nf4(quant_model): ...
        """
    )
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*a checkpoint is named for nf4, which is quantized while the base model is loaded*"])


def test_two_checkpoints_of_one_format_have_a_baseline_each(halves, tmp_path_factory):
    """The second is of other weights: under one entry it would be a regression of the first."""
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    shutil.copytree(cached(tmp_path_factory)[0].parent, halves.path / "one")
    shutil.copytree(halves.path / "one", halves.path / "two")
    halves.model = halves.path / "two"
    change_base(halves, by=0.5)
    bodies = [
        TEST.replace('formats=["half"]', f'formats=["half"], checkpoints={{"half": "{name}"}}').replace(
            "test_half", f"test_{name}"
        )
        for name in ("one", "two")
    ]
    halves.test("\n".join(bodies))
    for _ in range(2):
        result = halves.gate()
        result.assert_outcomes(passed=2)
    assert len({entry["value"] for entry in halves.entries}) == 2


def test_a_checkpoint_that_was_made_by_another_backend_is_refused(halves, tmp_path_factory):
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    shutil.copytree(cached(tmp_path_factory)[0].parent, halves.path / "shipped")
    file = halves.path / "shipped" / records.FILE
    data = json.loads(file.read_text())
    data["format"] = {"name": "gptq", "backend": "gptqmodel"}
    file.write_text(json.dumps(data))
    result = halves.run("--quant-checkpoints=half=shipped")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*shipped was made as gptq by gptqmodel, not as half*"])


def test_a_stale_checkpoint_in_the_plan_is_a_line(halves, tmp_path_factory):
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    shutil.copytree(cached(tmp_path_factory)[0].parent, halves.path / "shipped")
    change_base(halves)
    result = halves.run("--quant-plan", "--quant-checkpoints=half=shipped")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["skip *half: stale: the half checkpoint*"])


def test_a_damaged_checkpoint_is_named(halves, tmp_path_factory):
    halves.run("--quant-quantize").assert_outcomes(passed=1)
    weights = cached(tmp_path_factory)[0].parent / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = halves.run("--quant-quantize")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*the checkpoint '{weights.parent}' cannot be loaded as half*again*"])


def test_a_calibration_file_is_meant_from_the_rootdir(halves, monkeypatch):
    below = halves.path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    halves.pytester.runpytest_inprocess(
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(halves.path),
        "-c",
        str(halves.path / "pytest.ini"),
        "--quant-quantize",
        str(halves.path),
    ).assert_outcomes(passed=1)
