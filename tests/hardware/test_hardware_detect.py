"""The order of asking, and that nothing is ever raised."""

from __future__ import annotations

import subprocess
import sys

from hardware_replay import nvml

from pytest_quant.hardware import Device, detect, nvidia
from pytest_quant.hardware.detect import FINDERS

GPU = Device("cuda", "nvidia", "a GPU", "sm_90", notes=("its own note",))


def nothing():
    return None, ()


def test_the_vendors_in_order():
    assert [vendor for vendor, _ in FINDERS] == ["NVIDIA", "AMD", "Intel", "Apple"]


def test_the_first_that_is_found_wins_and_the_rest_is_not_asked():
    asked = []
    finders = [("A", nothing), ("B", lambda: (GPU, ())), ("C", lambda: asked.append(1) or (None, ()))]
    assert detect(finders) == GPU
    assert asked == []


def test_what_stood_in_the_way_is_noted_before_the_device_s_own_notes():
    found = detect([("A", lambda: (None, ("A is broken.",))), ("B", lambda: (GPU, ("B left one out.",)))])
    assert found.notes == ("A is broken.", "B left one out.", "its own note")


def test_a_broken_driver_leaves_the_cpu_with_a_sentence():
    found = detect([("NVIDIA", lambda: nvidia.find(lambda: nvml("driver-not-loaded"), {}))])
    assert found.kind == "cpu"
    assert found.notes[0].startswith("NVIDIA's driver could not be asked: NVML says 'Driver Not Loaded'")


def test_an_unforeseen_error_is_a_note_and_not_raised():
    def broken():
        raise OSError("no such thing")

    found = detect([("A", broken), ("B", lambda: (GPU, ()))])
    assert found.notes[0] == "Looking for A devices failed: OSError: no such thing."
    assert found.name == "a GPU"


def test_even_a_cpu_that_cannot_be_asked_is_an_answer(monkeypatch):
    def broken():
        raise OSError("no such thing")

    monkeypatch.setattr("pytest_quant.hardware.cpu.find", broken)
    found = detect([])
    assert (found.kind, found.name, found.memory_bytes) == ("cpu", "unknown CPU", None)
    assert found.notes == ("The CPU could not be asked: OSError: no such thing.",)


def test_here():
    found = detect()
    assert found.kind in {"cuda", "rocm", "xpu", "mps", "cpu"}
    assert found.name
    assert not any("failed" in note for note in found.notes)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_it_imports_nothing_heavy():
    heavy = "('numpy', 'torch', 'pynvml', 'transformers')"
    code = f"import sys, pytest_quant.hardware; print([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]"


def test_asking_imports_no_framework():
    asked = "import sys; from pytest_quant.hardware import detect; detect(); "
    assert run(asked + "print([name for name in ('numpy', 'torch') if name in sys.modules])") == "[]"
