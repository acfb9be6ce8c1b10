"""What is free, what says that memory did not suffice, and what an error holds on to."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

torch = pytest.importorskip("torch")

from pytest_quant.engines import memory  # noqa: E402
from pytest_quant.errors import NotMeasured, Unsupported  # noqa: E402
from pytest_quant.hardware.device import Device  # noqa: E402

CPU = Device("cpu", "amd", "Zen 4", "x86_64")


def machine(root, available=5000, **more):
    files = {"proc/meminfo": f"MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: {available} kB\n", **more}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_free_is_what_the_system_could_give(tmp_path):
    assert memory.free_bytes(CPU, machine(tmp_path)) == 5000 * 1024


def test_free_is_less_where_a_control_group_leaves_less(tmp_path):
    group = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "3000000\n",
        "sys/fs/cgroup/memory.current": "1000000\n",
    }
    assert memory.free_bytes(CPU, machine(tmp_path, **group)) == 2_000_000


def test_free_is_unknown_where_nobody_tells(tmp_path):
    assert memory.free_bytes(CPU, tmp_path) is None
    assert memory.free_bytes(Device("mps", "apple", "M3", "apple"), machine(tmp_path)) is None


def test_on_a_gpu_what_the_allocator_keeps_is_free_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 500)
    assert memory.free_bytes(Device("cuda", "nvidia", "H100", "sm_90")) == 1200


@pytest.mark.parametrize("make", [lambda: torch.empty(10**15), lambda: torch.empty(10**12, 10**12)])
def test_what_torch_says_on_a_cpu(make):
    with pytest.raises(RuntimeError) as told:
        make()
    assert memory.is_out_of_memory(told.value)


@pytest.mark.parametrize("shape", [(10**7, 10**8), (10**12, 10**9)])
def test_what_numpy_says(shape):
    import numpy as np

    with pytest.raises((MemoryError, ValueError)) as told:
        np.ones(shape)
    assert memory.is_out_of_memory(told.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.87 GB, other allocations: 384.00 KB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_what_says_that_memory_did_not_suffice(error):
    assert memory.is_out_of_memory(error)
    assert memory.first_line(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("a tensor is out of memory bounds"),
        OSError(2, "No such file or directory"),
        KeyError("out of memory"),
    ],
)
def test_what_does_not(error):
    assert not memory.is_out_of_memory(error)
    assert memory.origin_out_of_memory(error) is None


def test_a_conversion_that_transformers_ends_tells_by_its_report_what_went_wrong():
    from transformers.core_model_loading import SkipParameters, log_conversion_errors
    from transformers.utils.loading_report import LoadStateDictInfo, log_state_dict_report

    def load(burst):
        info = LoadStateDictInfo(set(), set(), set(), [], {}, set())
        with pytest.raises(SkipParameters), log_conversion_errors("a.weight", info, "a.weight", None):
            raise burst
        log_state_dict_report(torch.nn.Linear(1, 1), "x", False, info)

    with pytest.raises(RuntimeError, match="conversion of the weights") as told:
        load(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert memory.is_out_of_memory(told.value)
    assert memory.first_line(told.value).endswith("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match="conversion of the weights") as other:
        load(RuntimeError("a group size that does not divide the row"))
    assert not memory.is_out_of_memory(other.value)


def test_the_line_that_says_it_is_the_one_that_is_told():
    error = RuntimeError("Traceback:\n  somewhere\nCUDA out of memory. Tried to allocate 2.00 GiB.\nand more")
    assert memory.first_line(error) == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert memory.first_line(MemoryError()) == "MemoryError"


class Tensorlike:
    """What can be watched."""


def burst(watched: list[weakref.ref[Tensorlike]], *, then: type[Exception] | None = None) -> None:
    large = Tensorlike()
    watched.append(weakref.ref(large))
    try:
        raise MemoryError("cannot allocate 1 TB")
    except MemoryError:
        other = Tensorlike()
        watched.append(weakref.ref(other))
        if then is None:
            raise
        raise then("it failed") from None


def caught(**arguments):
    watched = []
    try:
        burst(watched, **arguments)
    except Exception as error:
        return error, watched
    raise AssertionError


@pytest.mark.parametrize("then", [None, RuntimeError])
def test_frames_of_an_error_and_of_those_before_it_are_let_go(then):
    error, watched = caught(then=then)
    gc.collect()
    assert all(one() is not None for one in watched), "a failing frame holds what it had"
    assert isinstance(memory.origin_out_of_memory(error), MemoryError)
    memory.drop_frames(error)
    gc.collect()
    assert [one() for one in watched] == [None, None]
    assert error.__traceback__ is None
    assert isinstance(memory.origin_out_of_memory(error), MemoryError), "what was said is still there"


def test_frames_that_somebody_looked_at_and_still_holds_let_go_too():
    error, watched = caught()
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    assert any("large" in frame.f_locals for frame in frames)
    memory.drop_frames(error)
    gc.collect()
    assert [one() for one in watched] == [None, None]
    assert len(frames) >= 2


def test_errors_that_refer_to_each_other_end():
    one, other = RuntimeError("one"), Unsupported("a", "b", "c")
    one.__cause__, other.__context__ = other, one
    assert memory.origin_out_of_memory(one) is None
    memory.drop_frames(one)


def test_a_frame_that_still_runs_keeps_what_it_has():
    kept = Tensorlike()
    try:
        burst([])
    except MemoryError as error:
        memory.drop_frames(error)
    assert isinstance(kept, Tensorlike)


def test_the_last_error_that_nobody_caught_is_let_go_where_it_was_of_memory(monkeypatch):
    error, watched = caught()
    monkeypatch.setattr(sys, "last_value", error, raising=False)
    monkeypatch.setattr(sys, "last_traceback", error.__traceback__, raising=False)
    memory.recover(CPU)
    assert [one() for one in watched] == [None, None]


def test_any_other_keeps_its_frames_for_a_debugger(monkeypatch):
    monkeypatch.delattr(sys, "last_value", raising=False)
    memory.recover(CPU)
    with pytest.raises(RuntimeError) as other:
        raise RuntimeError("something else")
    monkeypatch.setattr(sys, "last_value", other.value, raising=False)
    memory.recover(CPU)
    assert other.value.__traceback__ is not None


def test_the_peak_of_work_is_what_was_held_at_once():
    def work():
        first = torch.ones(1_000_000)
        del first
        second = torch.ones(500_000)
        third = torch.ones(700_000)
        return second, third

    assert memory.peak_above_start(CPU, work) == 1_200_000 * 4


def test_the_peak_elsewhere_is_not_measured():
    with pytest.raises(NotMeasured, match="on mps cannot be measured"):
        memory.peak_above_start(Device("mps", "apple", "M3", "apple"), lambda: None)
