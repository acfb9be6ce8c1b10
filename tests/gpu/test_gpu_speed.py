"""On a CUDA device: speed, memory and energy of a model of 8 billion random weights, each beside what the hardware
allows. Ready to run where one is; it takes 50 GB of its memory and 16 GB of disk."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

RANDOM_MODELS = Path(__file__).parents[2] / "benchmarks" / "random_models.py"
FORMATS = ("int8", "nf4", "fp8")
DECODES = [{"batch_size": size, "new_tokens": 16} for size in (1, 8, 64)]
PREFILL = {"phase": "prefill", "prompt_tokens": 2048}
BUDGET = 10.0
"""Seconds of one measurement: what is asserted needs no narrow interval."""

HOG = """
import os, pathlib, sys, time, torch
held = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
told = pathlib.Path(sys.argv[1])
told.with_suffix(".part").write_text(str(os.getpid()))
told.with_suffix(".part").rename(told)
time.sleep(600)
"""
LAUNCH = "import subprocess, sys; subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)"
"""Leaves a process behind that descends from nobody here: a test's own children are not others."""


@pytest.fixture(scope="session")
def large_model(tmp_path_factory) -> Path:
    """A Llama of the shape of Llama-3-8B, 16 GB in fp16."""
    made = runpy.run_path(str(RANDOM_MODELS))
    folder = made["save"](tmp_path_factory.mktemp("models") / "llama-3-8b", made["SHAPES"]["llama-3-8b"])
    torch.cuda.empty_cache()
    return folder


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    from pytest_quant.progress import Quiet
    from pytest_quant.session import Session
    from pytest_quant.settings import Settings

    return Session(Settings(cache_dir=tmp_path_factory.mktemp("cache"), speed_budget=BUDGET), Quiet())


@pytest.fixture(scope="module")
def spec(large_model):
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.spec import ModelSpec

    return ModelSpec(ModelSource(str(large_model)), reference="fp16")


@pytest.fixture(scope="module")
def measure(session, spec):
    """Measure a metric of a format, beside no more than the reference."""
    from pytest_quant.errors import Unsupported
    from pytest_quant.markers import gate

    def ask(metric, name, **parameters):
        session.models.keep({(spec, name), (spec, spec.reference)})
        try:
            return session.measure(spec, name, gate(metric, parameters, limits_required=False))
        except Unsupported as reason:
            pytest.skip(f"{name}: {reason}")

    yield ask
    session.models.keep(())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("work", [*DECODES, PREFILL], ids=["1", "8", "64", "prefill"])
def test_no_run_is_faster_than_its_bound(measure, name, work):
    found = measure("throughput_ratio", name, **work)
    assert set(found.bounds) == {"format", "reference"}, "the rates of the device and the model's shape are known"
    for which, bound in found.bounds.items():
        assert 0 < bound["share"] <= 1.05, (which, bound["arithmetic"])
    if work.get("batch_size") == 1:
        assert [bound["regime"] for bound in found.bounds.values()] == ["bandwidth", "bandwidth"]
    assert found.quantity.low <= found.value <= found.quantity.high
    assert found.figures["format_value"] > 0


@pytest.mark.parametrize("name", FORMATS)
def test_a_larger_batch_makes_more_tokens(measure, name):
    one, _, many = (measure("throughput_ratio", name, **work) for work in DECODES)
    for which in ("format_value", "reference_value"):
        assert many.figures[which] > one.figures[which]


def test_the_bound_of_the_reference_follows_from_its_bytes(measure, session, spec):
    found = measure("throughput_ratio", "nf4", **DECODES[0])
    weights = session.model(spec, "fp16").weight_bytes
    table = 128256 * 4096 * 2  # of which a step reads one row
    least = (weights - table) / session.device.bandwidth
    assert 1 / found.bounds["reference"]["tokens_per_second"] == pytest.approx(least, rel=0.01)


@pytest.mark.parametrize(
    "cache", [{"cache": "static"}, {"cache": "static", "compile": True}], ids=["static", "compile"]
)
def test_a_static_cache_and_compiled_steps_keep_below_the_bound(measure, cache):
    found = measure("throughput_ratio", "bf16", new_tokens=32, **cache)
    for which, bound in found.bounds.items():
        assert 0 < bound["share"] <= 1.05, (which, bound["arithmetic"])
    assert found.identity["metric"]["cache"] == "static"
    assert found.identity["metric"]["compile"] is cache.get("compile", False)


def test_compiled_steps_say_what_plain_ones_do(session, spec, measure):
    """Logits of the same steps: tokens of random weights have near ties that rounding decides."""
    import numpy as np

    from pytest_quant.engines.timing import Runner

    measure("memory_budget", "fp16")
    loaded = session.model(spec, "fp16").loaded
    prompts = np.arange(1, 65, dtype=np.int64)[None]
    said = []
    for runner in (Runner(loaded, "static"), Runner(loaded, "static", compiled=True)):
        runner.start(prompts, 4)
        assert runner._start is not None
        with torch.inference_mode():
            for token in (7, 11, 13):
                out = runner._step(torch.full_like(runner._token, token), runner._start.cache)
                said.append(out.logits[:, -1].float().cpu())  # before the next step overwrites a graph's outputs
    plain, compiled = torch.cat(said[:3]), torch.cat(said[3:])
    assert (plain - compiled).norm() <= 0.02 * plain.norm()
    assert (plain[0] - plain[1]).norm() > 0.1 * plain[0].norm(), "the steps differ, so that a mix-up would show"


def test_events_and_the_hosts_clock_tell_the_same_time(session, spec, measure):
    import numpy as np

    from pytest_quant.engines.timing import Runner

    measure("memory_budget", "fp16")
    runner = Runner(session.model(spec, "fp16").loaded)
    prompts = np.arange(1, 65, dtype=np.int64)[None]
    for _ in range(2):
        runner.start(prompts, 32)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        steps = runner.steps(32)
        wall = time.perf_counter() - begun
    assert 0.5 * wall < sum(steps) <= 1.01 * wall
    inputs = np.resize(prompts, (1, 2048))
    runner.prefill(inputs)
    begun = time.perf_counter()
    prefill = runner.prefill(inputs)
    assert 0.5 * (time.perf_counter() - begun) < prefill


def test_memory_follows_the_formats_and_the_kv_cache_its_prediction(measure):
    used = {name: measure("memory_budget", name).value for name in ("fp16", *FORMATS)}
    assert used["nf4"] < used["int8"] < used["fp16"]
    assert used["nf4"] < used["fp8"] < used["fp16"]
    assert used["fp16"] == pytest.approx(16.06e9, rel=0.01)
    for size, context in ((1, 2048), (8, 512), (64, 96)):
        kept = measure("memory_budget", "fp16", of="kv_cache", batch_size=size, context=context)
        assert kept.figures["kv_predicted_bytes"] == kept.value == size * context * 32 * 2 * 8 * 128 * 2


@pytest.mark.parametrize("work", [DECODES[0], PREFILL], ids=["decode", "prefill"])
def test_energy_is_counted_and_is_that_of_the_board(measure, work):
    found = measure("energy_ratio", "nf4", **work)
    assert found.quantities["joules"].low > 0
    assert found.figures["reference_value"] > 0
    limit = found.figures.get("power_limit_w", 2000.0)
    for which in ("format_watts", "reference_watts"):
        assert 20 < found.figures[which] < 1.1 * limit


def test_the_counter_agrees_with_power_over_time(session):
    import pynvml

    from pytest_quant.errors import Unsupported
    from pytest_quant.hardware import nvidia
    from pytest_quant.hardware.energy import counter

    try:
        counts = counter(session.device)
    except Unsupported as reason:
        pytest.skip(str(reason))
    pynvml.nvmlInit()
    found = nvidia.handles(pynvml, None)
    assert found is not None
    one = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
    watts: list[float] = []

    def work(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(10):
                torch.mm(one, one)
            watts.append(pynvml.nvmlDeviceGetPowerUsage(found.board) / 1e3)
            torch.cuda.synchronize()

    work(2.0)  # the driver's power is a mean over the last second
    watts.clear()
    before, begun = counts.joules(), time.perf_counter()
    work(4.0)
    joules, seconds = counts.joules() - before, time.perf_counter() - begun
    pynvml.nvmlShutdown()
    expected = seconds * sum(watts) / len(watts)
    assert 0.5 * expected < joules < 2.0 * expected


def test_clocks_heat_and_power_are_noted_beside_a_speed(measure):
    figures = measure("throughput_ratio", "nf4", **DECODES[0]).figures
    assert 0 < figures["sm_clock_mhz_min"] <= figures["sm_clock_mhz_max"]
    assert 10 < figures["temperature_c"] < 110
    assert figures["power_w"] > 20
    assert 0 <= figures["power_throttled_share"] <= 1
    assert 0 <= figures["thermal_throttled_share"] <= 1


def test_another_process_on_the_gpu_is_seen(measure, tmp_path):
    quiet = measure("throughput_ratio", "nf4", new_tokens=8)
    if "other-process" in dict(quiet.conditions):
        pytest.skip(f"somebody is here already: {dict(quiet.conditions)['other-process']}")
    told = tmp_path / "pid"
    subprocess.run([sys.executable, "-c", LAUNCH, "-c", HOG, str(told)], check=True)
    end = time.monotonic() + 120
    while not told.exists():
        assert time.monotonic() < end, "the other process did not start"
        time.sleep(0.1)
    try:
        # rounds of its own: those of the same workload would be remembered
        found = measure("throughput_ratio", "nf4", new_tokens=9)
    finally:
        os.kill(int(told.read_text()), signal.SIGKILL)
    assert "1 other process" in dict(found.conditions)["other-process"]
