"""Apple silicon, replayed through the answers of sysctl."""

from __future__ import annotations

from pytest_quant.hardware import apple, cpu

M2 = {
    "machdep.cpu.brand_string": b"Apple M2 Max\0",
    "hw.memsize": (64 * 2**30).to_bytes(8, "little"),
    "hw.optional.arm.FEAT_DotProd": b"\1\0\0\0",
    "hw.optional.arm.FEAT_I8MM": b"\1\0\0\0",
    "hw.optional.arm.FEAT_BF16": b"\1\0\0\0",
}
UNKNOWN = "The memory bandwidth is not known, so no speed is predicted."


def test_m2():
    found, notes = apple.find("Darwin", "arm64", "14.5", M2.get)
    assert notes == ()
    assert (found.kind, found.vendor, found.name, found.architecture) == ("mps", "apple", "Apple M2 Max", "apple")
    assert (found.memory_bytes, found.driver, found.notes) == (64 * 2**30, "macOS 14.5", (UNKNOWN,))


def test_a_system_that_answers_nothing():
    found, _ = apple.find("Darwin", "arm64", "", lambda name: None)
    assert (found.name, found.memory_bytes, found.driver) == ("Apple silicon", None, None)
    assert found.notes == ("The system does not tell the chip's name.", "The system does not tell its memory.", UNKNOWN)


def test_other_machines_have_none():
    assert apple.find("Darwin", "x86_64", "14.5", M2.get) == (None, ())
    assert apple.find("Linux", "aarch64", "", M2.get) == (None, ())


def test_the_cpu_of_a_mac(tmp_path):
    found = cpu.find("Darwin", "arm64", tmp_path, 12, M2.get)
    assert (found.name, found.vendor, found.architecture) == ("Apple M2 Max, 12 cores", "apple", "aarch64")
    assert found.features == {"dotprod", "i8mm", "bf16"}
    assert found.memory_bytes == 64 * 2**30


def test_the_cpu_of_an_intel_mac(tmp_path):
    answers = {
        "machdep.cpu.brand_string": b"Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz\0",
        "hw.memsize": (16 * 2**30).to_bytes(8, "little"),
        "hw.optional.avx2_0": b"\1\0\0\0",
        "hw.optional.avx512f": b"\0\0\0\0",
    }
    found = cpu.find("Darwin", "x86_64", tmp_path, 12, answers.get)
    assert (found.vendor, found.architecture, found.features) == ("intel", "x86_64", {"avx2"})


def test_sysctl_of_an_unknown_name_is_none():
    assert apple.sysctl("pytest_quant.no.such.name") is None
