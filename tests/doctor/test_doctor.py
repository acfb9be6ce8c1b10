"""What the command doctor says of replayed hardware, of missing libraries, and of other packages' backends."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as real_version
from pathlib import Path
from typing import Any

import pytest

from pytest_quant import doctor
from pytest_quant.cli import main
from pytest_quant.doctor import HARDWARE, LIBRARY, NOT_USED, SETUP, Diagnosis, Line, diagnose
from pytest_quant.errors import Unsupported
from pytest_quant.formats import registry
from pytest_quant.formats.backend import Backend
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix import Support, load
from pytest_quant.report.doctor import render
from pytest_quant.report.wrapping import WIDTH

HARDWARE_TESTS = Path(__file__).parent.parent / "hardware"
REPLAYED = ("V100", "T4", "A10G", "L40S", "H100", "B200", "RTX 5090", "MI250", "MI300X", "Max 1550", "Apple M2")
AVX512 = Device("cpu", "intel", "a CPU", "x86_64", features=frozenset({"avx2", "avx512", "avx512_vnni"}))
A100 = Device("cuda", "nvidia", "NVIDIA A100-SXM4-80GB", "sm_80", compute_capability=(8, 0))


def replayed(name: str, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.syspath_prepend(HARDWARE_TESTS)
    import matrix_devices

    return matrix_devices.device(name)


@pytest.fixture
def install(monkeypatch):
    """Every library that a backend asks for is there, but those given with ``None``, or with another version."""

    def pretend(**versions: str | None) -> None:
        def version(name: str) -> str:
            found = versions.get(name.replace("-", "_"), _newest(name))
            if found is None:
                raise PackageNotFoundError(name)
            return found

        monkeypatch.setattr("pytest_quant.formats.backend.version", version)

    return pretend


def _newest(name: str) -> str:
    return "0.18.5" if name == "kernels" else "99"


def line(found: Diagnosis, format: str) -> Line:
    (only,) = (line for line in found.lines if line.format == format)
    return only


@pytest.mark.parametrize("name", REPLAYED)
def test_hardware_that_is_not_here(name, monkeypatch):
    device, matrix = replayed(name, monkeypatch), load()
    found = diagnose(device, matrix, here=False)
    assert {line.format for line in found.lines} == {f.name for b in registry.backends()[0] for f in b.formats}
    assert found.libraries == ()
    for line in found.lines:
        support = matrix.support(registry.get(line.format), device)
        assert line.status == support.status
        assert line.source == support.source
        assert line.reason
        assert "pip install" not in line.remedy
        assert (line.cause, bool(line.remedy)) == (("", line.status != "native") if line.runs else (HARDWARE, True))


@pytest.mark.parametrize("name", REPLAYED)
@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("here", [False, True])
def test_rendered(name, verbose, here, monkeypatch, install):
    install(optimum_quanto=None)
    monkeypatch.setattr(doctor, "_obstacle", lambda device: None)
    found = diagnose(replayed(name, monkeypatch), load(), here=here)
    text = render(found, verbose=verbose)
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    rows = [row.split() for row in text.splitlines() if row.startswith("  ")]
    verdicts = {"native": "runs natively", "dequantized": "runs dequantized", "unsupported": "cannot run"}
    for line in found.lines:
        words = [line.format, *verdicts[line.status].split()]
        assert [row[: len(words)] for row in rows].count(words) == 1, line.format
    assert ("source:" in text) == verbose
    assert ("Libraries" in text) == here
    assert ("are not judged" in text) == (not here)


def test_the_summary_counts():
    text = render(diagnose(A100, load(), here=False))
    words = next(row for row in text.splitlines() if row.startswith("Formats: ")).replace(",", "").split()
    native, dequantized, cannot = (int(words[at]) for at in (1, 4, 7))
    assert (native, dequantized, cannot) == (5, 17, 6)


def test_a_missing_library_is_told_apart_from_hardware(install):
    install(torchao=None)
    found = diagnose(AVX512, load(), here=True)
    missing, refused = line(found, "int4-unpacked"), line(found, "nvfp4")
    assert (missing.status, missing.cause) == ("unsupported", LIBRARY)
    assert missing.reason == "torchao not installed; the hardware would run it dequantized"
    assert missing.remedy == "pip install 'pytest-quant[torchao]'"
    assert line(found, "w8a8").reason == "torchao not installed; the hardware would run it natively"
    assert (refused.status, refused.cause) == ("unsupported", HARDWARE)
    assert "pip install" not in refused.remedy
    assert "compute capability 10.0" in refused.remedy
    assert line(found, "nf4").runs
    text = render(found)
    assert "to change it: pip install 'pytest-quant[torchao]'" in text
    assert any(row.split()[:2] == ["torchao", "-"] for row in text.splitlines())


def test_a_library_that_is_too_old(install):
    install(hqq="0.1")
    found = diagnose(AVX512, load(), here=True)
    assert (line(found, "int4@hqq").cause, line(found, "int4@hqq").remedy) == (
        LIBRARY,
        "pip install 'pytest-quant[hqq]'",
    )
    assert line(found, "int4@hqq").reason.startswith("hqq 0.1, not >=0.2.8")
    (library,) = (library for library in found.libraries if library.name == "hqq")
    assert (library.version, library.wanted, library.backends) == ("0.1", ">=0.2.8", ("hqq",))
    assert "needed: hqq>=0.2.8" in render(found)


def test_the_formats_that_run_instead_are_named(install):
    install(torchao=None)
    found = diagnose(AVX512, load(), here=True)
    remedy = line(found, "int8-weight-only").remedy
    assert remedy == "pip install 'pytest-quant[torchao]'; or instead int8-weight-only@quanto, which can run here"
    install(torchao=None, optimum_quanto=None)
    assert "instead" not in line(diagnose(AVX512, load(), here=True), "int8-weight-only").remedy


def test_every_library_that_a_backend_requires_is_listed(install):
    install()
    found = diagnose(AVX512, load(), here=True)
    from packaging.requirements import Requirement

    required = {Requirement(text).name for backend in registry.backends()[0] for text in backend.requires}
    listed = [library.name for library in found.libraries]
    assert required <= set(listed)
    assert len(listed) == len(set(listed))
    assert all(library.backends or library.purpose for library in found.libraries)
    assert not [library for library in found.libraries if library.wanted]


def test_a_torch_that_cannot_use_the_device(install, monkeypatch):
    pytest.importorskip("torch")
    install()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = diagnose(A100, load(), here=True)
    assert not [line for line in found.lines if line.runs]
    nf4 = line(found, "nf4")
    assert nf4.cause == SETUP
    assert "which cannot use it" in nf4.reason
    assert "build of torch for cuda" in nf4.remedy
    assert line(found, "fp8").cause == HARDWARE


def test_a_torch_that_cannot_be_imported(install, monkeypatch):
    install()

    def broken(*_: Any) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("pytest_quant.engines.loading.require_torch_for", broken)
    found = line(diagnose(A100, load(), here=True), "nf4")
    assert found.cause == SETUP
    assert "libcudart.so.13" in found.reason


def test_what_stands_in_the_way_of_an_installed_library(install, monkeypatch):
    install()
    nf4 = registry.get("nf4")
    trouble = Unsupported("nf4", "bitsandbytes 0.46, built without this GPU", "another wheel")
    monkeypatch.setattr(type(registry.backend(nf4)), "trouble", lambda self, format, device: trouble)
    found = line(diagnose(AVX512, load(), here=True), "nf4")
    assert (found.status, found.cause, found.remedy) == ("unsupported", SETUP, "another wheel")
    assert found.reason == "bitsandbytes 0.46, built without this GPU"
    assert line(diagnose(AVX512, load(), here=False), "nf4").runs, "what is installed here says nothing of elsewhere"


def test_a_format_from_a_checkpoint_says_so():
    found = diagnose(A100, load(), here=False)
    assert line(found, "gptq").from_checkpoint
    text = " ".join(render(found).split())
    assert "gptq runs dequantized from a checkpoint:" in text


class Point:
    """An entry point."""

    def __init__(self, name: str, load: Any) -> None:
        self.name, self.value, self._load = name, f"{name}.quant:BACKEND", load

    def load(self) -> Any:
        if isinstance(self._load, Exception):
            raise self._load
        return self._load


class Theirs(Backend):
    """A backend of another package, which our matrix does not know."""

    name = "theirs"
    requires = ("theirs>=2",)
    install = "theirs"
    formats = (Format("int3@theirs", QuantizationArgs(3, "int"), "theirs", "int3"),)

    def support(self, format: Format, device: Device) -> Support | None:
        return Support("dequantized", "theirs unpacks it", "its documentation")


class Careless(Theirs):
    name = "careless"
    formats = (replace(Theirs.formats[0], name="int3@careless", backend="careless"),)

    def support(self, format: Format, device: Device) -> Support | None:
        raise ZeroDivisionError("division by zero")


class Unreadable(Theirs):
    name = "unreadable"
    requires = ("theirs >> 2",)


@pytest.fixture
def others(monkeypatch):
    def bring(*points: Point) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        registry._of_others.cache_clear()

    yield bring
    monkeypatch.undo()
    registry._of_others.cache_clear()


def test_a_format_of_another_package(others, install):
    others(Point("theirs", Theirs()))
    install(theirs="2.1")
    found = line(diagnose(AVX512, load(), here=True), "int3@theirs")
    assert (found.status, found.reason, found.source) == ("dequantized", "theirs unpacks it", "its documentation")
    install(theirs=None)
    found = line(diagnose(AVX512, load(), here=True), "int3@theirs")
    assert (found.cause, found.remedy) == (LIBRARY, "pip install theirs")


def test_broken_backends_of_other_packages_are_lines(others, install, capsys):
    others(
        Point("gone", ModuleNotFoundError("No module named 'gone'")),
        Point("number", 42),
        Point("careless", Careless()),
        Point("unreadable", Unreadable()),
        Point("theirs", Theirs()),
    )
    install()
    found = diagnose(AVX512, load(), here=True)
    assert line(found, "int3@theirs").runs
    assert line(found, "nf4").runs
    gone, number, careless, unreadable = found.broken
    assert "'gone' (gone.quant:BACKEND) of another package cannot be imported: ModuleNotFoundError" in gone
    assert "'number' (number.quant:BACKEND) is no pytest_quant Backend" in number
    assert "the backend 'careless' fails: ZeroDivisionError: division by zero" in careless
    assert "the backend 'unreadable' fails: InvalidRequirement: " in unreadable
    text = " ".join(render(found).split())
    assert all(" ".join(message.split()) in text for message in found.broken)
    assert main(["doctor"]) == 0
    assert "No module named 'gone'" in capsys.readouterr().out


def test_a_broken_backend_is_still_an_error_where_formats_are_asked_for(others):
    from pytest_quant.errors import UsageError

    others(Point("gone", ModuleNotFoundError("No module named 'gone'")))
    for _ in range(2):
        with pytest.raises(UsageError, match="mend or uninstall it"):
            registry.formats()


@pytest.mark.parametrize("way", NOT_USED, ids=lambda way: way.name)
def test_what_is_not_used_says_what_works_and_what_to_use(way):
    assert way.version is None
    assert any(name in way.instead for name in registry.formats())
    assert way.works_with
    assert any(mark in way.source for mark in (".py:", "README:"))


def test_autoawq_auto_gptq_hqq_and_fbgemm_are_among_them(install):
    install(autoawq="0.2.9", auto_gptq=None, hqq="0.2.8", fbgemm_gpu=None)
    found = diagnose(AVX512, load(), here=True)
    assert {way.distribution: way.version for way in found.not_used if way.distribution != "kernels"} == {
        "autoawq": "0.2.9",
        "auto-gptq": None,
        "hqq": "0.2.8",
        "fbgemm-gpu": None,
    }
    text = " ".join(render(found).split())
    assert "AutoAWQ (autoawq 0.2.9 is installed): it is deprecated" in text
    assert "works with: autoawq 0.2.9 (its last release) with transformers 4.51.3" in text
    assert "works with: auto-gptq 0.7.1" in text
    assert "the format int4@hqq" in text
    assert "is installed)" not in " ".join(render(diagnose(A100, load(), here=False)).split())


def test_the_command_for_this_machine(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "fp32" in printed
    torch = [row.split()[1] for row in printed.splitlines() if row.split()[:1] == ["torch"]]
    assert torch == [real_version("torch")]
    assert main(["doctor", "--verbose"]) == 0
    assert "source: " in capsys.readouterr().out


def test_the_command_for_hardware_that_is_not_here(capsys):
    assert main(["doctor", "--device", "NVIDIA H100 80GB HBM3"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("NVIDIA H100 80GB HBM3 [sm_90]: ")
    assert "Libraries" not in printed
    assert any(row.split()[:3] == ["fp8", "runs", "natively"] for row in printed.splitlines())


def test_the_command_asks_the_matrix_that_is_named(capsys):
    assert main(["doctor", "--device", "NVIDIA GeForce RTX 4090", "--matrix", "lesson"]) == 0
    printed = capsys.readouterr().out
    assert "Support matrix: lesson" in printed
    assert any(row.split()[:3] == ["fp8", "cannot", "run"] for row in printed.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--device", "RTX 9999"], "RTX 9999"), (["--matrix", "nowhere.toml"], "nowhere.toml")]
)
def test_a_mistake(arguments, said, capsys):
    assert main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_nothing_heavy_is_imported_for_hardware_that_is_not_here():
    code = (
        "import sys; from pytest_quant.cli import main; assert main(['doctor', '--device', 'H100']) == 0; "
        "assert not {'torch', 'transformers', 'torchao', 'bitsandbytes', 'gptqmodel'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
