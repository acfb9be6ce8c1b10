"""What of two engines gets into identities, keys and measurements."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, Unsupported, UsageError
from pytest_quant.hardware import Device
from pytest_quant.identity import identity, reference_runs_on, served
from pytest_quant.journal.keys import Keys
from pytest_quant.markers import gate
from pytest_quant.model import ModelHandle
from pytest_quant.placement import parse
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec, packed

CPU = Device("cpu", "amd", "a CPU", "x86_64")
SPEED = gate("throughput_ratio", {"min": 1.0})


def spec(engine="transformers", reference_engine=None, **engine_args):
    return ModelSpec(
        ModelSource("org/model"), "fp32", engine, engine_args=packed(engine_args), reference_engine=reference_engine
    )


def of(asked, gate=SPEED, name="int8"):
    of_reference = served(asked, asked.reference, CPU) if asked.mixes_engines else {}
    return identity(asked, name, gate, "sha", {}, None, served(asked, name, CPU), of_reference)


def test_transformers_alone_says_nothing_of_engines():
    """So that baselines of before stay valid."""
    found = of(spec())
    assert (found["engine"], found["reference"], "engine_args" in found) == ("transformers", {"name": "fp32"}, False)


def test_what_decides_answers_is_in_it_and_what_only_this_machine_knows_is_not():
    asked = spec("vllm", max_model_len=512, gpu_memory_utilization=0.3, distributed_executor_backend="mp")
    assert of(asked, name="w4a16")["engine_args"]["args"] == {"max_model_len": 512}
    assert of(asked, name="w4a16") != of(spec("vllm", max_model_len=1024), name="w4a16")


def test_a_cache_type_is_the_format_s_alone():
    asked = spec("vllm", kv_cache_dtype="fp8")
    assert served(asked, "bf16", CPU)["args"] == {"kv_cache_dtype": "fp8"}
    assert "args" not in served(asked, "fp32", CPU)
    assert reference_runs_on(asked, CPU) == reference_runs_on(spec("vllm"), CPU)


def test_what_the_reference_s_engine_was_told_counts_where_only_that_was_told():
    """The formats run on transformers, which hears nothing of it."""
    plain, told = spec("transformers", "vllm"), spec("transformers", "vllm", max_model_len=128)
    assert of(plain)["reference"]["engine"] == "vllm"
    assert of(plain) != of(told)
    assert of(told)["reference"]["engine_args"]["args"] == {"max_model_len": 128}


def test_a_stored_reference_is_of_its_engine():
    names = {reference_runs_on(each, CPU) for each in (spec(), spec("vllm"), spec("vllm", max_model_len=128))}
    assert len(names) == 3
    assert reference_runs_on(spec("vllm", "transformers", max_model_len=128), CPU) == "transformers"


@pytest.fixture
def keys(tiny_llama, tmp_path):
    session = Session(Settings(cache_dir=tmp_path / "cache"), Quiet())
    made = Keys(session)
    source = ModelSource(str(tiny_llama))
    return lambda **asked: made.key(ModelSpec(source, "fp32", **asked), "int8", SPEED, 1)


def test_a_measurement_is_not_taken_for_one_under_another_map_or_engine(keys, monkeypatch):
    asked = [
        {},
        {"placement": parse("auto")},
        {"placement": parse({"": "cpu"})},
        {"engine": "vllm"},
        {"engine": "vllm", "reference_engine": "transformers"},
        {"engine": "vllm", "engine_args": packed({"max_model_len": 128})},
    ]
    found = [keys(**each) for each in asked]
    assert None not in found
    assert len(set(found)) == len(asked)
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "1")
    assert keys(engine="vllm") != found[3]
    assert keys() == found[0]


def test_a_model_elsewhere_is_asked_for_predictions_only():
    loaded = SimpleNamespace(engine="vllm", changed=False)
    handle = ModelHandle(loaded, SimpleNamespace(name="bf16"), None, "m")
    with pytest.raises(Unsupported, match=r'asked: a scan of bf16 on the engine vllm.*needed: engine="transformers"'):
        handle.in_process("a scan")
    with pytest.raises(UsageError, match=r"cache='static' and compile=False are asked of the engine vllm"):
        handle.timer("static")


@pytest.fixture
def floored(tiny_llama, tmp_path):
    """A session that knows what the reference gives on both engines, without any of them."""
    session = Session(Settings(cache_dir=tmp_path / "cache"), Quiet())
    plain = [SimpleNamespace(nll=np.array([1.0, 2.0 + i], dtype=np.float32)) for i in range(2)]

    class Known:
        def __len__(self) -> int:
            return len(plain)

        def windows(self, start, count):
            return plain[start : start + count]

    session.quality.known = lambda spec: Known()
    return session, plain


def test_a_format_that_answers_as_the_plain_weights_on_its_engine_is_none(floored):
    """The transformers reference is a rounding away, so that alone would prove nothing."""
    session, plain = floored
    asked = ModelSpec(ModelSource("m"), "fp32", "vllm", reference_engine="transformers")
    same = SimpleNamespace(scores=[SimpleNamespace(nll=each.nll.copy()) for each in plain])
    with pytest.raises(ProofFailed, match="w8a8 answers on vllm exactly as fp32 does there"):
        session.quality.require_difference(asked, "w8a8", same)
    same.scores[1].nll[0] += 1e-3
    session.quality.require_difference(asked, "w8a8", same)
