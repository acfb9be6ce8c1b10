"""What the probe measures, and what it leaves unknown; no test looks at how fast this machine is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quant.engines import probe
from pytest_quant.hardware import Device, specs

torch = pytest.importorskip("torch")

CPU = Device("cpu", "amd", "AMD EPYC", "x86_64")


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(probe, "_READING", 0.01)
    monkeypatch.setattr(probe, "_MULTIPLYING", 0.01)
    monkeypatch.setattr(probe, "_SIZES", (32, 64))


def test_a_cpu_is_measured_and_says_so():
    rates = probe.measure(CPU, 10**6, ("fp32", "bf16", "int8"))
    assert rates.bandwidth > 0
    assert set(rates.operations) == {"fp32", "bf16", "int8"}
    assert all(rate > 0 for rate in rates.operations.values())
    assert rates.bandwidth_source == "measured: best of many reads by all threads"
    assert rates.operations_source == "measured: best of many products of square matrices (bf16, fp32, int8)"


def test_what_torch_does_not_multiply_in_stays_unknown():
    rates = probe.measure(CPU, 10**6, ("fp8", "nvfp4", "int4"))
    assert (dict(rates.operations), rates.operations_source) == ({}, "not known")


def test_only_what_was_asked_for():
    assert dict(probe.measure(CPU, 10**5, ()).operations) == {}


def test_what_is_published_is_not_measured():
    device = replace(specs.device("A100"), notes=())
    rates = probe.measure(device, 10**9, ("fp16",))
    assert (rates.bandwidth, rates.bandwidth_source) == (device.bandwidth, specs.SOURCE)
    assert (rates.operations["fp16"], rates.operations_source) == (312e12, specs.SOURCE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_a_device_that_torch_cannot_use_stays_unknown():
    rates = probe.measure(Device("cuda", "nvidia", "NVIDIA Unheard-of", "sm_90"), 10**6, ("fp16",))
    assert (rates.bandwidth, dict(rates.operations)) == (None, {})
    assert (rates.bandwidth_source, rates.operations_source) == ("not known", "not known")


@pytest.mark.parametrize(
    ("working_set", "free", "size"),
    [
        (10**6, None, 10**6),
        (1, None, 64 * 2**10),
        (10**12, None, 2**30),
        (10**9, 8 * 10**8, 10**8),
        (10**9, 10**5, None),
    ],
)
def test_the_set_that_is_read_is_the_working_set_between_limits(working_set, free, size):
    assert probe._size(working_set, free) == size


def test_no_free_memory_is_no_bandwidth(monkeypatch):
    monkeypatch.setattr(probe.memory, "free_bytes", lambda device: 1000)
    assert probe.measure(CPU, 10**6, ()).bandwidth is None


def test_the_best_of_many_counts(monkeypatch):
    """Clock readings: of each call its start and end."""
    ticks = iter([0.0, 1.0, 1.5, 1.5, 1.75, 1.75, 3.0])
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(ticks))
    assert probe._best(CPU, lambda: None, 2.5) == 0.25


def test_bytes_over_the_best_time(monkeypatch):
    monkeypatch.setattr(probe, "_best", lambda device, work, seconds: 0.5)
    assert probe.measure(CPU, 2**26, ()).bandwidth == 2**26 / 0.5
    monkeypatch.setattr(probe, "_ONE_CALL", 2**26)
    assert probe.measure(CPU, 2**20, ()).bandwidth == 2**26 / 0.5, "a small set is read 64 times in a call"


def test_operations_over_the_best_time(monkeypatch):
    monkeypatch.setattr(probe, "_best", lambda device, work, seconds: 0.5)
    monkeypatch.setattr(probe, "_SIZES", (32,))
    assert probe.measure(CPU, 10**5, ("fp32",)).operations["fp32"] == 2 * 32**3 / 0.5
