"""The command ``pytest-quant plan``, as it is typed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache

import pytest
from planning_examples import LLAMA_70B_CONFIG, device

from pytest_quant import markers
from pytest_quant.cli import main
from pytest_quant.report.planning import describe


@pytest.fixture(scope="module")
def read_once():
    """The same config is read by many tests: 80 layers take seconds to build."""
    from pytest_quant.engines.shape import read

    return cache(read)


@pytest.fixture
def plan(capsys, monkeypatch, read_once):
    """Run the command; gives the exit code, what it printed and its errors."""
    monkeypatch.setattr("pytest_quant.engines.shape.read", read_once)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["plan", *words])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert all(len(line) <= 100 for line in printed.out.splitlines() if "@pytest.mark" not in line)
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def llama_70b(tmp_path_factory):
    """A folder with a config and no weights."""
    folder = tmp_path_factory.mktemp("models") / "llama-70b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_70B_CONFIG))
    return str(folder)


def rows(printed: str) -> dict[str, list[str]]:
    """The cells of the table of formats, by format."""
    table = printed.partition("Formats that can run")[2].partition("  native:")[0]
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:] if line.strip()}


def recommended(printed: str) -> str:
    found = re.search(r"^Recommended for \w+: (.+)$", printed, re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_table_of_the_lesson(plan):
    code, printed, _ = plan("--parameters", "70e9", "--device", "A100", "--bandwidth", "2TB/s")
    assert code == 0
    nominal = printed.partition("Bits alone")[2].partition("\n\n")[0].splitlines()[2:]
    assert [line.split() for line in nominal] == [
        ["FP32", "280.0", "GB", "140.0"],
        ["FP16", "140.0", "GB", "70.0"],
        ["INT8", "70.0", "GB", "35.0"],
        ["4-bit", "35.0", "GB", "17.5"],
    ]
    assert "bandwidth: as given by --bandwidth" in printed
    found = rows(printed)
    assert found["fp16"][:2] == ["native", "fp16"]
    assert found["fp16"][2:7] == ["140.0", "-", "141.0", "no", "70.0"]
    assert found["int8"][2:7] == ["70.0", "-", "71.0", "yes", "35.0"]


def test_the_opening_case_of_the_lesson(plan):
    """70B on one A100 80GB in 50 ms a token: not in FP16; in 8 bits and in 4 by the arithmetic."""
    code, printed, _ = plan("--parameters", "70B", "--device", "A100 80GB", "--max-ms", "50")
    assert code == 0
    assert recommended(printed) == "int8"
    flat = " ".join(printed.split())
    assert "140.0 GB of weights + 1.00 GB for the runtime = 141.0 GB, above the 85.9 GB of the device" in flat
    assert "70.0 GB of weights at 2.04 TB/s = 34.3 ms (bandwidth) at best" in flat
    assert "4-bit 35.0 GB 17.2" in flat
    code, printed, _ = plan("--parameters", "70B", "--device", "A100", "--max-ms", "50", "--goal", "latency")
    assert (code, recommended(printed)) == (0, "gptq")
    assert "made with calibration data; without calibration: nf4" in " ".join(printed.split())


def test_a_config_without_weights(plan, llama_70b):
    code, printed, _ = plan(llama_70b, "--device", "A100", "--max-ms", "50", "--price", "2.5")
    assert code == 0
    assert "68,976,648,192 parameters" in printed
    assert "Bits alone" not in printed
    found = rows(printed)
    assert found["fp16"][2:6] == ["138.0", "0.67", "139.7", "no"]
    assert found["int8"][:8] == ["native", "int8", "69.5", "0.67", "71.3", "yes", "34.2", "b"]
    assert found["nf4"][:2] == ["dequant", "fp16"]
    assert found["w4a16"][:2] == ["unpacked", "fp16"]
    assert recommended(printed) == "int8"
    # 2.5 dollars an hour at 29.3 tokens a second
    assert "$23.7" in printed
    assert "memory is full beyond a batch of " in printed
    assert "  fp8: NVIDIA A100-SXM4-80GB [sm_80]: torchao cannot run fp8 here" in printed


@pytest.mark.parametrize("goal", ["quality", "latency", "throughput", "memory"])
def test_the_gates_that_it_prints_are_gates(plan, llama_70b, goal):
    _, printed, _ = plan(llama_70b, "--device", "A100", "--goal", goal, "--batch-size", "2")
    lines = [line.strip().removeprefix("@") for line in printed.splitlines() if "@pytest.mark" in line]
    marks = [eval(line, {"pytest": pytest}).mark for line in lines]
    marker = markers.quant(marks)
    assert marker is not None
    assert marker.formats == (recommended(printed),)
    assert marker.model == llama_70b
    gates = {gate.metric: dict(gate.limits) for gate in markers.gates(marks)}
    assert gates.keys() == {"perplexity_delta", "throughput_ratio", "memory_budget"}
    found = rows(printed)
    chosen, fp16 = found[recommended(printed)], found["fp16"]
    best = float(fp16[6]) / float(chosen[6])
    assert 1 < gates["throughput_ratio"]["min"] < best
    assert float(chosen[2]) <= gates["memory_budget"]["max_gb"] < 1.04 * float(chosen[2])


def test_an_unquantized_recommendation_has_nothing_to_compare(plan, llama_70b):
    _, printed, _ = plan(llama_70b, "--device", "MI300X")
    assert recommended(printed) == "fp16"
    assert "perplexity_delta" not in printed
    assert "memory_budget" in printed


def test_nothing_meets_it(plan):
    code, printed, _ = plan("--parameters", "70B", "--device", "A100", "--max-ms", "10")
    assert code == 1
    assert "No format meets this, not even at best\n" in printed
    assert "the fastest is nf4: 17.7 ms a step at best" in printed
    code, printed, _ = plan("--parameters", "70B", "--device", "T4", "--count", "2")
    assert code == 1
    assert "the smallest is " in printed


def test_what_cannot_be_told(plan, monkeypatch):
    nobody = replace(device("A100"), name="nobody's", bandwidth=None, bandwidth_source=None)
    monkeypatch.setattr("pytest_quant.asking.device", lambda name: nobody)
    code, printed, _ = plan("--parameters", "7B", "--device", "X", "--max-ms", "50", "--formats", "nf4")
    assert code == 2
    assert "It cannot be told what meets this" in printed
    assert "fp16, nf4: cannot be told: neither the device's bandwidth nor the rate of its units is known" in printed
    assert "unknown bandwidth" in printed
    code, printed, _ = plan(
        "--parameters", "7B", "--device", "X", "--max-ms", "50", "--formats", "nf4", "--bandwidth", "1TB/s"
    )
    assert (code, recommended(printed)) == (0, "fp16")


def test_several_devices(plan, llama_70b):
    code, printed, _ = plan(llama_70b, "--device", "H100", "--count", "4", "--price", "2", "--formats", "nf4,fp16")
    assert (code, recommended(printed)) == (0, "fp16")
    assert "on 4 of NVIDIA H100 80GB HBM3" in " ".join(printed.split())
    assert "ideal tensor parallelism" in printed
    assert rows(printed)["fp16"][2:6] == ["138.0", "0.17", "35.7", "yes"]
    assert "GB/s each" in printed
    assert "at $2 an hour for each of 4 devices" in printed
    assert "@pytest.mark" not in printed, "a run uses one device"
    assert "no gates verify them: tests of this plugin run a model on one device" in " ".join(printed.split())


def test_of_several_devices_here_one_is_meant():
    two = replace(device("A100"), count=2)
    one = str(device("A100"))
    assert describe(two) == f"one of 2 x {one}: 85.9 GB, 2,039 GB/s"
    assert describe(two, count=2) == f"2 of 2 x {one}: 85.9 GB, 2,039 GB/s each"
    assert describe(two, count=3) == f"3 of {one}: 85.9 GB, 2,039 GB/s each"
    assert describe(device("A100")) == f"{one}: 85.9 GB, 2,039 GB/s"


def test_beside_fp32_no_narrow_weights_are_recommended_for_throughput(plan):
    words = ("--parameters", "8B", "--device", "A100", "--goal", "throughput", "--batch-size", "64")
    _, printed, _ = plan(*words, "--reference", "fp32")
    assert recommended(printed) == "int8"
    assert rows(printed)["gptq"][6:10] == ["2.04", "b?", "2.04", "b?"]
    (speed,) = re.findall(r"throughput_ratio\(min=([0-9.]+)", printed)
    assert 1.0 < float(speed) < 4.0


def test_the_marker_says_all_of_the_model_that_was_said(plan, llama_70b, monkeypatch, read_once):
    name = 'odd "name"\\\u00e9'
    monkeypatch.setattr("pytest_quant.engines.shape.read", lambda *_: read_once(llama_70b))
    _, printed, _ = plan(name, "--device", "A100", "--revision", "v1.0", "--trust-remote-code")
    (line,) = [line.strip().removeprefix("@") for line in printed.splitlines() if "mark.quant(" in line]
    marker = markers.quant([eval(line, {"pytest": pytest}).mark])
    assert marker is not None
    assert (marker.model, marker.revision, marker.trust_remote_code) == (name, "v1.0", True)


def test_a_mixture_of_experts(plan, tmp_path):
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, printed, _ = plan(str(tmp_path), "--device", "H200", "--formats", "fp16")
    assert code == 0
    assert "46,702,792,704 parameters" in printed
    cells = rows(printed)["fp16"]
    assert cells[2] == "93.4", "all experts are held"
    # of 12.9 billion weights that one token needs, less the rows of the input table: 25.5 GB, and 0.27 GB of KV cache
    flat = " ".join(printed.split())
    assert "experts: bytes read are those that a batch is expected to touch" in flat
    assert "no run can be faster" not in flat
    assert float(cells[6]) == pytest.approx((2 * 12.75e9 + 0.27e9) / 4.8e12 * 1e3, rel=0.01)


def test_for_this_machine(plan, tiny_llama):
    code, printed, err = plan(str(tiny_llama), "--formats", "fp32,int8,nf4+kv-int4")
    assert code == 0
    assert err == ""
    assert "measured: best of many reads" in printed
    assert rows(printed).keys() >= {"fp32", "int8"}
    assert "512 tokens of context" in printed, "as many as its positions"
    assert "not here" not in printed


def test_formats_by_name_are_joined_by_the_reference(plan):
    _, printed, _ = plan("--parameters", "7B", "--device", "L40S", "--formats", "fp8", "--reference", "bf16")
    assert rows(printed).keys() == {"bf16", "fp8"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--parameters", "7B", "--device", "RTX 9999"),
            "no specification of the device 'RTX 9999'; known are 'here', ",
        ),
        ((), "no model: give a folder or hub id, or --parameters such as 70B"),
        (("org/model", "--parameters", "7B"), "MODEL and --parameters are both given"),
        (("--parameters", "lots"), "--parameters=lots: not a number of parameters; write 70e9, 70B or 135M"),
        (("--parameters", "7B", "--bandwidth", "2"), "Give the unit"),
        (("--parameters", "7B", "--bandwidth", "16Gbps"), "--bandwidth=16Gbps: these are bits; write bytes a second"),
        (("--parameters", "7B", "--batch-size", "0"), "--batch-size=0: not a whole number of at least 1"),
        (("--parameters", "7B", "--count", "1.5"), "--count=1.5"),
        (("--parameters", "7B", "--max-ms", "soon"), "--max-ms=soon: not a number above 0"),
        (("--parameters", "7B", "--price", "-1"), "--price=-1: not a number above 0"),
        (("--parameters", "7B", "--prompt", "100", "--context", "50"), "--prompt=100 is longer than the context of 50"),
        (("--parameters", "7B", "--formats", "int9"), "unknown format 'int9'; did you mean int8? The formats are "),
        (("--parameters", "7B", "--formats", ","), "--formats names no format"),
        (("--parameters", "7B", "--reference", "nf4"), "--reference=nf4 is a quantized format"),
        (("no/folder/here",), "the config of 'no/folder/here' cannot be read"),
    ],
)
def test_mistakes(plan, words, said):
    device_given = ("--device", "A100") if "--device" not in words else ()
    code, printed, err = plan(*words, *device_given)
    assert code == 2
    assert printed == ""
    assert err.startswith("pytest-quant: ")
    assert said in err
    assert err.count("\n") == 1


def test_the_known_devices_are_listed(plan):
    _, _, err = plan("--parameters", "7B", "--device", "RTX 9999")
    assert ", GH200, " in err
    assert ", T4, " in err


def test_a_hub_id_that_cannot_be_reached(plan):
    code, printed, err = plan("org/name", "--device", "A100")
    assert (code, printed) == (2, "")
    assert "the config of 'org/name' cannot be read" in err
    assert "a hub id that can be reached or is in the cache" in err
    assert err.count("\n") == 1


def test_a_context_beyond_the_positions(plan, llama_70b):
    code, _, err = plan(llama_70b, "--device", "A100", "--context", "8192")
    assert code == 2
    assert "--context=8192: the model's positions end at 4096 (max_position_embeddings in its config)" in err
    assert plan(llama_70b, "--device", "A100", "--context", "4096")[0] == 0


def test_a_choice_that_is_none(capsys):
    assert main(["plan", "--parameters", "7B", "--goal", "beauty"]) == 2
    assert "--goal: no 'beauty'; there are quality, latency" in capsys.readouterr().err
